"""Grids of runs: their cells and their errors."""

import json
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import cli, runs
from funcvae._support import files
from funcvae.errors import BadType, BadValue
from tests.support.sweeps import content, grid_of, written


def test_a_grid_has_a_cell_for_each_combination():
    grid = grid_of(seeds=(3, 4), estimators=("renyi:.5", "tvo:0:0.5:1"), samples=(2, 8))
    cells = runs.expand_grid(grid, "sweep")
    names = [
        f"gaussian2d_vae-{estimator}-k{k}-s{seed}"
        for estimator in ("renyi_0.5", "tvo_0_0.5_1")
        for k in (2, 8)
        for seed in (3, 4)
    ]
    assert [cell.out for cell in cells] == [f"sweep/cells/{name}" for name in names]
    assert [(cell.estimator, cell.samples, cell.seed) for cell in cells[1:3]] == [
        ("renyi:0.5", 2, 4),
        ("renyi:0.5", 8, 3),
    ]
    assert {(cell.data, cell.epochs, cell.batch, cell.device) for cell in cells} == {("points.npz", 2, 5, "cpu")}


def test_the_system_decides_the_axes_that_are_missing():
    grid = runs.parse_grid({"systems": ["gaussian2d_vae", "burda_vae"], "settings": {"compile": False}})
    found = [(cell.system.name, cell.estimator, cell.samples, cell.seed) for cell in runs.expand_grid(grid, "sweep")]
    own = [fv.models.SYSTEMS[system] for system in ("gaussian2d_vae", "burda_vae")]
    assert found == [(system.name, system.recipe.estimator, system.recipe.samples, 0) for system in own]
    assert grid.replicates is None


def test_a_grid_can_be_written_and_read(here):
    grid = grid_of(seeds=(1, 2), replicates=5, lr=0.1)
    Path("copy.json").write_bytes(files.as_json(grid.as_json()))
    assert runs.read_grid("copy.json") == grid


def test_settings_have_priority_over_the_machine():
    (cell,) = runs.expand_grid(grid_of(device="cuda", compile=True), "sweep", device="cpu")
    assert (cell.device, cell.compile) == ("cuda", True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sytems": ["gaussian2d_vae"]}, "unknown key 'sytems': did you mean 'systems'?"),
        ({"systems": None}, "systems is None: it must be a list"),
        ({"systems": "gaussian2d_vae"}, "systems is 'gaussian2d_vae': it must be a list"),
        ({"systems": []}, "systems is list (): it must be a list of at least one item"),
        ({"systems": ["gaussian_vae"]}, "unknown system 'gaussian_vae': did you mean 'gaussian2d_vae'?"),
        ({"systems": [3]}, "systems[0] is 3: it must be a string"),
        ({"estimators": ["dregs"]}, "unknown estimator 'dregs': did you mean 'dreg'?"),
        ({"estimators": ["renyi:.5", "renyi:0.5"]}, "estimators has 'renyi:0.5' twice"),
        ({"samples": [0]}, "samples[0] is 0: it must be a whole number >= 1"),
        ({"samples": [1.5]}, "samples[0] is 1.5: it must be a whole number"),
        ({"seeds": [True]}, "seeds[0] is True: it must be a whole number"),
        ({"seeds": [1, 1]}, "seeds has 1 twice"),
        ({"settings": []}, "settings is list (): it must be a dict"),
        (
            {"settings": {"lr": [1e-3, 1e-2]}},
            "setting lr is a list: a setting has one value for all cells",
        ),
        ({"settings": {"epoch": 3}}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"settings": {"seed": 3}}, "settings has seed, but the grid's `seeds` determine it: remove it from settings"),
        ({"settings": {"out": "a"}}, "settings has out, but each cell has its own folder: remove it from settings"),
        ({"replicates": 1}, "replicates is 1: it must be a whole number >= 2"),
    ],
)
def test_a_bad_grid_is_an_error_of_one_line(here, capsys, changed, message):
    bad = {**content(), **changed}
    with pytest.raises((BadValue, BadType)) as raised:
        runs.parse_grid(bad)
    assert message in str(raised.value)
    Path("grid.json").write_text(json.dumps(bad))
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "grid.json"])
    error = capsys.readouterr().err
    assert error.startswith(f"funcvae: error: grid.json: {message}")
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"estimators": ("elbo", "rloo"), "samples": (1,)},
            "gaussian2d_vae-rloo-k1-s0: samples is 1: rloo compares the samples of a datum, so it must be at least 2",
        ),
        ({"estimators": ("miwae:3",), "samples": (3, 4)}, "gaussian2d_vae-miwae_3-k4-s0: "),
        ({"samples": (3,), "noise": "mirrored"}, "samples is 3: antithetic noise comes in pairs"),
        ({"estimators": ("dreg",), "noise": "mirrored"}, "dreg"),
        ({"noise": "sobl"}, "unknown noise 'sobl': did you mean 'sobol'?"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"epochs": "many"}, "epochs is 'many': it must be a whole number"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
        ({"data": "mnist-5k"}, "gaussian2d_vae takes items of shape [2]"),
    ],
)
def test_cells_are_checked_before_anything_is_written(here, capsys, given, message):
    before = [here / written(**{"seeds": (0, 1), **given}), here / "points.npz"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "grid.json"])
    error = capsys.readouterr().err
    assert error.startswith("funcvae: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before
