"""Options and the configurations that they make."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from funcvae import runs
from funcvae.cli.training import TrainOptions
from funcvae.errors import BadData, BadType, BadValue
from funcvae.runs.config import resumed


def test_options_have_the_fields_of_a_configuration():
    names = {field.name for field in fields(runs.Config)}
    assert {field.name for field in fields(runs.Options)} == names
    assert {field.name for field in fields(TrainOptions)} == names


def test_the_recipe_decides_what_is_not_given():
    recipe = runs.recipe("burda_vae")
    config = runs.with_defaults(runs.Options(system="burda_vae", samples=3, out="run"))
    assert config == runs.configure("burda_vae", samples=3, out="run", epochs=None)
    assert (config.samples, config.batch, config.epochs) == (3, recipe.batch, recipe.epochs)


def test_paths_and_numpys_numbers_become_pythons():
    config = runs.configure("burda_vae", out=Path("run"), batch=np.int64(7), lr=1)
    assert config == runs.configure("burda_vae", out="run", batch=7, lr=1.0)
    assert [type(value) for value in (config.out, config.batch, config.lr)] == [str, int, float]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epoch": 3}, BadValue, "epochs"),
        ({"out": None}, BadValue, "out is missing"),
        ({"batch": "7"}, BadType, "batch is '7': it must be of type int"),
        ({"batch": True}, BadType, "batch is True: it must be of type int"),
    ],
)
def test_what_is_wrong_with_an_option_is_named(options, error, message):
    with pytest.raises(error, match=message):
        runs.configure("burda_vae", **{"out": "run", **options})


def test_options_of_a_resumed_run_have_the_types_of_a_new_ones():
    config = runs.configure("burda_vae", out="run")
    assert resumed(config, runs.Options(epochs=9), Path("moved")) == runs.configure("burda_vae", epochs=9, out="moved")
    with pytest.raises(BadType, match="epochs is '9'"):
        resumed(config, runs.Options(epochs="9"), Path("run"))


def test_what_a_run_is_resumed_with_must_be_options():
    config = runs.configure("burda_vae", out="run")
    with pytest.raises(BadType, match="options is of type dict: it must be an Options"):
        resumed(config, {"epochs": 3}, Path("run"))


def test_a_run_that_06_made_is_named_as_such():
    with pytest.raises(BadData, match=r"made by funcvae 0\.6\.0"):
        runs.load(Path(__file__).parents[1] / "reference" / "run-0.6")


@pytest.mark.parametrize("config", [runs.Options(system="burda_vae", out="run"), "burda_vae", None])
def test_what_a_run_is_made_from_must_be_a_configuration(config):
    with pytest.raises(BadType, match=r"config is .*: it must be a Config, as runs\.configure makes it"):
        runs.run(config)


def test_a_configuration_needs_a_system():
    with pytest.raises(BadValue, match="system is missing: name one of `funcvae list systems`"):
        runs.with_defaults(runs.Options(out="run"))
