"""The comparison with other layers: its reference, and that what is there is measured."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from reference import Reference

from keras_brn.benchmarks import peers


@pytest.mark.once
@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 5, 3)])
def test_the_reference_is_algorithm_1(shape):
    example = peers.Example(shape)
    reference = Reference(3, r_max=3, d_max=5, alpha=0.01, epsilon=peers.EPSILON)
    reference.mu, reference.sigma = example.mu.astype("float64"), example.sigma.astype("float64")
    y, dx, *_ = reference.step(example.x, example.dy)
    np.testing.assert_allclose(y, example.y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dx, example.dx, rtol=1e-9, atol=1e-9)
    shifted = example.errors(y + 0.1 * y.std(), dx)
    np.testing.assert_allclose([shifted["y"], shifted["dx"]], [0.1, 0], atol=1e-9)


@pytest.mark.slow
def test_what_is_installed_is_measured(monkeypatch, tmp_path, backend, capsys):
    monkeypatch.setattr(peers, "SHAPES", ((8, 3), (4, 3, 3, 2)))
    path = tmp_path / "peers.json"
    if backend == "tensorflow":
        with pytest.raises(SystemExit, match="set KERAS_BACKEND to torch or jax"):
            peers.main(["--out", str(path)])
        return
    peers.main(["--out", str(path), "--seconds", "0.01"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| | (8, 3) | (4, 3, 3, 2) |")
    assert shown[2].startswith("| keras batchnorm | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | –")
    stored = json.loads(path.read_text())
    for of_shape in stored["results"].values():
        assert of_shape["keras batchnorm"]["ratio"] == 1
        assert of_shape["keras batchnorm"]["errors"] is None
        assert ("torch batchnorm" in of_shape) == (backend == "torch")
        for name in ("ours", "keras renorm"):
            assert max(of_shape[name]["errors"].values()) < 1e-4
    assert len(stored["provenance"]["commit"].removesuffix("-dirty")) == 40


@pytest.mark.once
def test_the_tables_of_the_evidence_are_those_stored():
    figures = Path(__file__).parents[2] / "figures"
    shown = (figures / "README.md").read_text()
    stored = json.loads((figures / "peers.json").read_text())
    assert set(stored) == {"torch", "jax"}
    for of_backend in stored.values():
        assert peers.table(of_backend["results"]) in shown


@pytest.mark.once
def test_a_package_that_is_not_installed():
    assert peers.load_file("no_such_package", "layers.py") is None
    module = peers.load_file("keras_brn", "version.py")
    assert module.__version__ and keras.__version__
