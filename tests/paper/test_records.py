"""Files of results."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from worker_program import shades

from keras_brn.paper.records import describe_images, provenance, run_lock, write_json


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "run.json"

    def write_and_read(_):
        write_json(path, {"numbers": list(range(3_000))})
        return len(json.loads(path.read_text())["numbers"])

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(write_and_read, range(200))) == {3_000}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1] and list(tmp_path.iterdir()) == [path]


def test_json_has_neither_nan_nor_infinity(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": [1.5, float("nan")], "b": (float("inf"), None, "NaN")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": [1.5, None],
        "b": [None, None, "NaN"],
    }


def test_a_lock_is_of_one_holder_and_goes_with_it(tmp_path):
    path = tmp_path / "results" / "run.json"
    with run_lock(path) as first, run_lock(path) as second, run_lock(tmp_path / "other") as other:
        assert (first, second, other) == (True, False, True)
    assert not list(path.parent.iterdir())
    with pytest.raises(KeyboardInterrupt), run_lock(path):
        raise KeyboardInterrupt
    with run_lock(path) as again:
        assert again


def test_provenance_names_all_that_a_result_depends_on():
    made = provenance(shades())
    assert {"matplotlib", "pillow", "numpy", "keras"} <= made["versions"].keys()
    assert made["processor"] and made["memory_gib"] > 0.1
    assert made["images"]["sha256"] == shades().digest
    assert "images" not in provenance()


def test_images_are_told_apart():
    data = shades()
    others = [
        dataclasses.replace(data, validation_images=data.validation_images + np.uint8(1)),
        dataclasses.replace(data, train_labels=data.train_labels[::-1]),
        dataclasses.replace(data, flip=True),
        dataclasses.replace(data, classes=11),
    ]
    described = [describe_images(each) for each in (data, *others)]
    assert describe_images(shades()) == described[0] and described[0] not in described[1:]
