"""Options, and the configurations that they give."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from funcvae import runs
from funcvae._support import files
from funcvae.cli.training import TrainOptions
from funcvae.errors import BadData, BadType, BadValue
from funcvae.runs.config import config_sha256, resumed, upgraded
from funcvae.runs.folder import read_config


def test_options_have_the_fields_of_a_configuration():
    names = {field.name for field in fields(runs.Config)}
    assert {field.name for field in fields(runs.Options)} == names
    assert {field.name for field in fields(TrainOptions)} == names


def test_the_recipe_decides_missing_options():
    recipe = runs.find_system("burda_vae").recipe
    config = runs.with_defaults(runs.Options(system="burda_vae", samples=3, out="run"))
    assert config == runs.configure("burda_vae", samples=3, out="run", epochs=None)
    assert (config.samples, config.batch, config.epochs) == (3, recipe.batch, recipe.epochs)


def test_paths_become_strings_and_numpys_numbers_pythons():
    config = runs.configure("burda_vae", out=Path("run"), batch=np.int64(7), lr=1)
    assert config == runs.configure("burda_vae", out="run", batch=7, lr=1.0)
    assert [type(value) for value in (config.out, config.batch, config.lr)] == [str, int, str]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epoch": 3}, BadValue, "epochs"),
        ({"out": None}, BadValue, "out is missing"),
        ({"batch": "7"}, BadType, "batch is '7': it must be a whole number"),
        ({"batch": True}, BadType, "batch is True: it must be a whole number"),
    ],
)
def test_the_error_names_a_wrong_option(options, error, message):
    with pytest.raises(error, match=message):
        runs.configure("burda_vae", **{"out": "run", **options})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"epochs": 0}, BadValue, "epochs is 0: it must be at least 1"),
        ({"batch": -1}, BadValue, "batch is -1: it must be at least 1"),
        ({"keep": 0}, BadValue, "keep is 0: it must be at least 1"),
        ({"shards": -1}, BadValue, "shards is -1: it must be at least 0"),
        ({"checkpoint_every": -1}, BadValue, "checkpoint_every is -1: it must be at least 0"),
        ({"seed": 2**64}, BadValue, "seed is about 2\\*\\*64: it must be a whole number of 64 bits"),
        ({"compile": 1}, BadType, 'compile is 1: it must be True, False or "auto"'),
        ({"lr": "cosin:1"}, BadValue, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"optimizer": "adm"}, BadValue, "unknown optimizer 'adm': did you mean 'adam'"),
        ({"clip": -1}, BadValue, "clip is -1: it must be at least 0"),
        ({"early_stopping": -1}, BadValue, "early_stopping is -1: it must be at least 0"),
        ({"precision": "hihgest"}, BadValue, "unknown precision 'hihgest': did you mean 'highest'"),
        ({"device": "auto"}, BadValue, "unknown device 'auto': choose from: cpu, cuda"),
        ({"split": "row"}, BadValue, "unknown split 'row': did you mean 'rows'"),
        ({"sample_each_step": True}, BadValue, "sample_each_step needs data in the plane: burda_vae has images"),
    ],
)
def test_a_configuration_checks_itself(changed, error, message):
    config = runs.configure("burda_vae", out="run")
    with pytest.raises(error, match=message):
        replace(config, **changed)


def test_a_resumed_run_may_have_more_epochs():
    config = runs.configure("burda_vae", out="run")
    assert resumed(config, runs.Options(epochs=9), Path("moved")) == runs.configure("burda_vae", epochs=9, out="moved")


def test_resume_takes_options_only():
    with pytest.raises(BadType, match="epochs is '9'"):
        runs.Options(epochs="9")
    with pytest.raises(BadType, match="options is of type dict: it must be an Options"):
        runs.resume("run", {"epochs": 3})


REFERENCE = Path(__file__).parents[1] / "reference" / "run-0.6"


def test_a_configuration_of_06_is_read_with_the_defaults_of_later_fields():
    content, config = files.read_json(REFERENCE / "config.json"), read_config(REFERENCE)
    later = {"size": None, "model": config.system.defaults, "optimizer": "adam", "clip": 0.0}
    later |= {"early_stopping": 0, "test_every": 1, "keep_best": False, "stream": False}
    assert config.content() == {**content, **later}
    assert config_sha256(content) == files.read_json(REFERENCE / "manifest.json")["config_sha256"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epoch": 3}, "unknown field 'epoch': did you mean 'epochs'"),
        ({"epochs": True}, "epochs is True: it must be a whole number"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"lr": 1}, "lr is 1: it must be a string or None"),
        ({"system": "burda"}, "unknown system 'burda'"),
    ],
)
def test_a_damaged_configuration_is_an_error(tmp_path, changed, message):
    content = files.read_json(REFERENCE / "config.json") | changed
    files.write(tmp_path / "config.json", files.as_json(content))
    with pytest.raises(BadData, match=r"config\.json is not the configuration of a run: ") as raised:
        read_config(tmp_path)
    assert message in str(raised.value)


def test_fields_of_an_earlier_version_are_upgraded():
    content = {"system": "burda_vae", "lr": 0.001, "gone": 3, "off": False}
    assert upgraded(content) == ({"system": "burda_vae", "lr": "0.001"}, {"gone": 3, "off": False})


@pytest.mark.parametrize("config", [runs.Options(system="burda_vae", out="run"), "burda_vae", None])
def test_run_takes_a_configuration_only(config):
    with pytest.raises(BadType, match=r"config is .*: it must be a Config"):
        runs.run(config)


def test_a_configuration_needs_a_system():
    with pytest.raises(BadValue, match="system is missing: give one of `funcvae list systems`"):
        runs.with_defaults(runs.Options(out="run"))
