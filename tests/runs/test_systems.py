"""Systems found by name, in a file and in a module."""

import pickle
import sys
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import runs
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError, Missing
from funcvae.runs.systems import source_of
from tests.support.own_systems import SOURCE, SPEC, write_own_system


@pytest.fixture
def own(here) -> Path:
    return write_own_system()


@pytest.fixture(autouse=True)
def no_module_stays(monkeypatch):
    """Every test imports its files anew."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def test_named_systems_are_found_by_name():
    assert runs.find_system("burda_vae") is fv.models.SYSTEMS["burda_vae"]
    assert source_of(runs.find_system("burda_vae")) is None


def test_a_file_is_run_once_until_it_changes(own):
    first = runs.find_system(SPEC)
    assert runs.find_system(str(own.resolve()) + ":bird_vae") is first
    assert runs.find_system(first) is first
    assert list(runs.systems_in("my_systems.py")) == ["bird_vae"]
    own.write_text(SOURCE.replace("birds", "owls"))
    assert runs.find_system(SPEC).about == "VAE of owls"


def test_a_system_of_a_file_pickles_and_leaves_the_path_as_it_was(own):
    before = list(sys.path)
    system = runs.find_system(SPEC)
    assert pickle.loads(pickle.dumps(system)) == system
    assert sys.path == before
    assert sys.modules["my_systems"].bird is system


def test_a_file_may_have_the_name_of_a_module(own):
    import json

    own.rename("json.py")
    system = runs.find_system("json.py:bird_vae")
    assert sys.modules["json"] is json
    assert pickle.loads(pickle.dumps(system)) == system
    assert source_of(system)["source"] == "json.py:bird_vae"


def test_a_file_imports_its_neighbours(own):
    Path("birds").mkdir()
    Path("birds/shapes_of_birds.py").write_text("SHAPE = (1, None, None)\n")
    source = SOURCE.replace("(1, None, None)", "SHAPE").replace(
        "import torch\n", "from shapes_of_birds import SHAPE\nimport torch\n"
    )
    Path("birds/systems.py").write_text(source)
    system = runs.find_system("birds/systems.py:bird_vae")
    assert system.recipe.shape == (1, None, None)
    assert source_of(system)["source"] == "birds/systems.py:bird_vae"


def test_a_module_in_a_package(own):
    Path("pack_of_birds").mkdir()
    Path("pack_of_birds/__init__.py").touch()
    own.rename("pack_of_birds/systems.py")
    system = runs.find_system("pack_of_birds.systems:bird_vae")
    assert source_of(system)["source"] == "pack_of_birds.systems:bird_vae"


def test_the_hash_is_that_of_the_code_that_runs(own):
    system = runs.find_system(SPEC)
    before = source_of(system)
    own.write_text(SOURCE + "\n")
    assert source_of(system) == before
    assert source_of(runs.find_system(SPEC))["sha256"] != before["sha256"]


BAD = {
    "x = (": (BadData, "cannot be imported: SyntaxError in line 1: '(' was never closed"),
    "import os\nimport no_such_package": (BadData, "ModuleNotFoundError in line 2: No module named 'no_such_package'"),
    "def f():\n    1 / 0\nf()": (BadData, "cannot be imported: ZeroDivisionError in line 2: division by zero"),
    "raise SystemExit(3)": (BadData, "cannot be imported: SystemExit in line 1: 3"),
    "x = '\\0'\n\0": (BadData, "cannot be imported: "),
    "": (BadValue, "my_systems.py has no funcvae.System at its top level"),
    SOURCE.replace('"bird_vae"', '"bird"'): (BadType, "it must be the name of a funcvae.System, which are: bird"),
    SOURCE.replace('"bird_vae"', '"burda_vae"'): (BadValue, "'burda_vae' has the name of a named system"),
    SOURCE.replace('"bird_vae"', '"bird vae"'): (BadData, "BadValue in line 26: name is 'bird vae'"),
    SOURCE.replace("epochs=2", "epochs=0"): (BadData, "BadValue in line 26: epochs is 0: it must be at least 1"),
    SOURCE + "two = fv.System('bird_vae', '', bird_vae, bird.recipe)": (BadValue, "two systems of the name 'bird_vae'"),
}  # fmt: skip


@pytest.mark.parametrize("code", BAD)
def test_a_wrong_file_is_an_error_of_one_line(own, code):
    error, message = BAD[code]
    own.write_text(code)
    modules, path = dict(sys.modules), list(sys.path)
    with pytest.raises(FuncvaeError) as raised:
        runs.find_system(SPEC)
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sys.path == path
    if error is BadData:
        assert sys.modules.get("my_systems") is modules.get("my_systems")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("bird_vae", BadValue, "unknown system 'bird_vae': did you mean 'burda_vae'?"),
        ("my_systems.py", BadValue, "give FILE.py:NAME, one of `funcvae list systems --from my_systems.py`"),
        ("my_systems.py:", BadValue, "my_systems.py: unknown system ''"),
        (
            "my_systems.py:nn",
            BadType,
            "my_systems.py:nn is of type module: it must be the name of a funcvae.System, which are: bird_vae",
        ),
        ("my_systems.py:bird_vae", None, ""),
        ("nowhere.py:bird_vae", Missing, "nowhere.py is missing: no such file"),
        (".py:x", Missing, ".py is missing: no such file"),
        ("no.such.module:x", Missing, "there is no module no.such.module: give FILE.py:NAME"),
        (":x", BadData, "cannot be imported"),
        ("..:x", BadData, "cannot be imported"),
        (3, BadType, "system is 3: it must be a string"),
    ],
)
def test_a_wrong_name_is_an_error_of_one_line(own, spec, error, message):
    if error is None:
        assert runs.find_system(spec).name == "bird_vae"
        return
    with pytest.raises(error) as raised:
        runs.find_system(spec)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
