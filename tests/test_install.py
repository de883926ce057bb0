"""What an installation brings, and that a wheel of this package works in one."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from test_imports import packages

import keras_brn
from keras_brn.extras import BACKENDS

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def distributions(*extras):
    """What the package requires with these extras, as an index names it."""
    names = set()
    for requirement in [line for extra in ("", *extras) for line in REQUIREMENTS[extra]]:
        name, further = re.match(r"([\w-]+)(?:\[(.*)\])?", requirement).groups()
        names |= distributions(*further.split(",")) if further else {name.replace("_", "-")}
    return names


def test_extras():
    assert distributions() == {"keras", "numpy"}
    named = {"keras", "tensorflow", "tensorflow-datasets", "matplotlib", "jupyter"}
    assert named <= distributions("notebooks")


def sources(folder):
    if folder != "notebooks":
        return [path.read_text() for path in (ROOT / folder).rglob("*.py")]
    notebooks = [json.loads(path.read_text()) for path in (ROOT / folder).glob("*.ipynb")]
    cells = [cell for notebook in notebooks for cell in notebook["cells"]]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "folder, extras",
    [
        ("keras_brn", ("jax", "torch", "notebooks", "tensorboard")),
        ("tests", ("test",)),
        ("notebooks", ("notebooks",)),
    ],
)
def test_what_is_imported_is_declared(folder, extras):
    names = set().union(*(packages(ast.parse(source)) for source in sources(folder)))
    names -= {"keras_brn", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    distribution_of = importlib.metadata.packages_distributions()
    imported = {distribution_of[name][0].lower().replace("_", "-") for name in names}
    assert imported <= distributions(*extras)


def command(*arguments, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [*map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "keras_brn", folder / "keras_brn")
    command(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, folder)
    (path,) = out.iterdir()
    return path


@pytest.mark.slow
def test_wheel_holds_the_package(wheel):
    files = [path for path in (ROOT / "keras_brn").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


@pytest.mark.slow
def test_wheel_works_in_a_new_environment(wheel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python, installed = tmp_path / "bin" / "python", importlib.metadata.version
    command(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    pip = sys.executable, "-m", "pip", "--python", python

    def install(*names):
        # The versions that the tests run with, and pip may have kept.
        versions = [f"{name}=={installed(name).partition('+')[0]}" for name in names]
        command(*pip, "install", "-q", "--no-compile", *versions, wheel)

    install("keras", "numpy")
    listed = json.loads(command(*pip, "list", "--format", "json"))
    extras = distributions(*BACKENDS, "notebooks", "tensorboard") - distributions()
    assert not extras & {distribution["name"].lower() for distribution in listed}
    for backend in ("jax", "torch"):
        install(backend)
        said = command(python, "-I", ROOT / "tests" / "smoke.py", KERAS_BACKEND=backend)
        assert said.split() == [keras_brn.__version__, installed("keras-brn")]
