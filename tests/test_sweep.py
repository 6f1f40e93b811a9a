"""Sweeps: grids of runs, whoever trains them, and what is collected of them."""

import csv
import importlib
import json
import math
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from faults import wait_for_rows

import funcvae as fv
from funcvae import checkpoint, cli, files, plots, reports, runs, tracking
from funcvae.errors import BadData, BadType, BadValue, Missing, NonFinite, Stopped
from funcvae.plots import OverSeeds
from funcvae.runs.collect import over

module = importlib.import_module("funcvae.runs.sweep")  # `runs.sweep` is the function


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with twelve points for training and five for testing."""
    monkeypatch.chdir(tmp_path)
    x = fv.random.uniform(fv.random.key(0), (17, 2)).numpy()
    np.savez("points.npz", train=x[:12], test=x[12:])
    return tmp_path


def content(seeds=(0,), estimators=("elbo",), samples=(2,), replicates=None, **settings) -> dict:
    """A grid of cells with six steps each."""
    settings = {"data": "points.npz", "epochs": 2, "batch": 5} | settings
    axes = {"systems": ["gaussian2d_vae"], "estimators": estimators, "samples": samples, "seeds": seeds}
    made = {**{name: list(axis) for name, axis in axes.items()}, "settings": settings}
    return made if replicates is None else {**made, "replicates": replicates}


def grid_of(**given) -> runs.Grid:
    return runs.parse_grid(content(**given))


def written(name: str = "grid.json", **given) -> str:
    Path(name).write_text(json.dumps(content(**given)))
    return name


def swept(grid: runs.Grid, folder: str = "sweep", **options) -> dict:
    return runs.sweep(grid, folder, measure=reports.own_variance, **options)


def all_files(folder: str) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def after(steps: int):
    """What stops a sweep after so many looks whether to stop."""
    looks = iter(range(10**6))
    return lambda: nullcontext(lambda: next(looks) >= steps)


def params(folder: str, name: str) -> bytes:
    return Path(folder, "cells", name, "params.safetensors").read_bytes()


# Grids.


def test_a_grid_has_a_cell_for_each_combination():
    grid = grid_of(seeds=(3, 4), estimators=("renyi:.5", "tvo:0:0.5:1"), samples=(2, 8))
    cells = runs.cells(grid, "sweep")
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


def test_what_a_grid_leaves_out_is_each_systems_own():
    grid = runs.parse_grid({"systems": ["gaussian2d_vae", "burda_vae"], "settings": {"compile": False}})
    found = [(cell.system, cell.estimator, cell.samples, cell.seed) for cell in runs.cells(grid, "sweep")]
    own = [fv.models.RECIPES[system] for system in ("gaussian2d_vae", "burda_vae")]
    assert found == [(recipe.name, recipe.estimator, recipe.samples, 0) for recipe in own]
    assert grid.replicates is None


def test_a_grid_survives_its_file(here):
    grid = grid_of(seeds=(1, 2), replicates=5, lr=0.1)
    Path("copy.json").write_bytes(files.as_json(grid.as_json()))
    assert runs.read_grid("copy.json") == grid


def test_settings_go_before_the_machines_choice():
    (cell,) = runs.cells(grid_of(device="cuda", compile=True), "sweep", device="cpu")
    assert (cell.device, cell.compile) == ("cuda", True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sytems": ["gaussian2d_vae"]}, "unknown key 'sytems': did you mean 'systems'?"),
        ({"systems": None}, "systems is None: it must be a list"),
        ({"systems": "gaussian2d_vae"}, "systems is 'gaussian2d_vae': it must be a list"),
        ({"systems": []}, "systems is empty: name one or more, or leave it out"),
        ({"systems": ["gaussian_vae"]}, "unknown system 'gaussian_vae': did you mean 'gaussian2d_vae'?"),
        ({"systems": [3]}, "system is 3: it must be a string"),
        ({"estimators": ["dregs"]}, "unknown estimator 'dregs': did you mean 'dreg'?"),
        ({"estimators": ["renyi:.5", "renyi:0.5"]}, "estimators has 'renyi:0.5' twice"),
        ({"samples": [0]}, "a number in samples is 0: it must be at least 1"),
        ({"samples": [1.5]}, "a number in samples is 1.5: it must be a whole number"),
        ({"seeds": [True]}, "a number in seeds is True: it must be a whole number"),
        ({"seeds": [1, 1]}, "seeds has 1 twice"),
        ({"settings": []}, "settings is list (): it must be an object"),
        ({"settings": {"epoch": 3}}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"settings": {"seed": 3}}, "settings has seed, which `seeds` lists: leave it out there"),
        ({"settings": {"out": "a"}}, "settings has out, which is each cell's own: leave it out there"),
        ({"replicates": 1}, "replicates is 1: it must be at least 2"),
    ],
)
def test_a_bad_grid_is_refused_in_a_line(here, capsys, changed, message):
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
            "gaussian2d_vae-rloo-k1-s0: rloo sets each sample against the others: it needs samples >= 2",
        ),
        ({"estimators": ("miwae:3",), "samples": (3, 4)}, "gaussian2d_vae-miwae_3-k4-s0: "),
        ({"samples": (3,), "noise": "mirrored"}, "samples is 3: antithetic noise comes in pairs"),
        ({"estimators": ("dreg",), "noise": "mirrored"}, "dreg"),
        ({"noise": "sobl"}, "unknown noise 'sobl': did you mean 'sobol'?"),
        ({"epochs": 0}, "--epochs is 0: it must be at least 1"),
        ({"epochs": "many"}, "epochs is 'many': it must be of type int"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
        ({"data": "mnist-5k"}, "gaussian2d_vae takes items of shape [2]"),
    ],
)
def test_what_cannot_be_trained_is_found_before_anything_is_made(here, capsys, given, message):
    before = [here / written(**{"seeds": (0, 1), **given}), here / "points.npz"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "grid.json"])
    error = capsys.readouterr().err
    assert error.startswith("funcvae: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


# Sweeping.


def test_a_sweep_trains_every_cell_as_a_run_by_itself_and_keeps_its_results(here):
    grid = grid_of(seeds=(0, 1), estimators=("iwae",), replicates=4)
    told = []
    results = swept(grid, log=lambda name, result: told.append(name))
    names = ["gaussian2d_vae-iwae-k2-s0", "gaussian2d_vae-iwae-k2-s1"]
    assert list(results) == told == names
    alone = runs.run(
        runs.configure("gaussian2d_vae", **grid.settings, estimator="iwae", samples=2, seed=1, out="alone")
    )
    assert params("sweep", names[1]) == (alone / "params.safetensors").read_bytes()
    *_, last = tracking.Rows(alone / "metrics.jsonl")
    variance = reports.own_variance(runs.load(alone), 4)
    assert set(variance) == {"encoder", "decoder"}
    assert results[names[1]] == {
        "system": "gaussian2d_vae", "estimator": "iwae", "samples": 2, "seed": 1, "target": "L_K", "steps": 6,
        "bound": last["bound"], "test_bound": last["test_bound"], "params_sha256": last["params_sha256"],
        "replicates": 4, "variance": variance,
    }  # fmt: skip
    assert files.read_json(Path("sweep/cells", names[1], "result.json")) == results[names[1]]
    assert runs.read_grid("sweep/grid.json") == grid


def test_a_second_start_does_nothing(here, monkeypatch):
    grid = grid_of(seeds=(0, 1))
    results = swept(grid)
    before = all_files("sweep")
    monkeypatch.setattr(fv.train, "fit", None)
    assert swept(grid) == results
    assert all_files("sweep") == before


def test_a_larger_grid_does_what_is_missing(here):
    swept(grid_of())
    before = all_files("sweep/cells")
    assert len(swept(grid_of(seeds=(0, 1), estimators=("elbo", "stl")))) == 4
    now = all_files("sweep/cells")
    assert {path: now[path] for path in before} == before
    assert runs.read_grid("sweep/grid.json").seeds == (0, 1)


def test_replicates_that_come_later_are_made_without_training_again(here, monkeypatch):
    swept(grid_of())
    before = all_files("sweep/cells")
    monkeypatch.setattr(fv.train, "fit", None)
    (result,) = swept(grid_of(replicates=3)).values()
    assert result["replicates"] == 3
    now = all_files("sweep/cells")
    assert [path for path in now if now[path] != before[path]] == ["sweep/cells/gaussian2d_vae-elbo-k2-s0/result.json"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_cell_that_was_begun_otherwise_is_named(here, finished):
    if finished:
        swept(grid_of())
    else:
        with pytest.raises(Stopped):
            swept(grid_of(), stopping=after(2))
    before = all_files("sweep")
    with pytest.raises(
        BadValue, match=r"s0 was begun otherwise: epochs was 2 and is 3 now, lr was None and is 0\.1 now;"
    ):
        swept(grid_of(epochs=3, lr=0.1))
    assert all_files("sweep") == before
    swept(grid_of(checkpoint_every=7))


def test_a_stopped_sweep_goes_on_to_the_same_bytes(here):
    grid = grid_of(seeds=(0, 1))
    swept(grid, "whole")
    with pytest.raises(Stopped, match="stopped, with 0 of 2 cells finished; the same command goes on"):
        swept(grid, stopping=after(4))
    (found,) = checkpoint.found(Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/checkpoints"))
    assert 0 < found < 6
    for _ in range(20):
        try:
            swept(grid, stopping=after(3))
            break
        except Stopped:
            pass
    for cell in runs.cells(grid, "sweep"):
        name = Path(cell.out).name
        assert params("sweep", name) == params("whole", name)
        assert Path(cell.out, "result.json").read_bytes() == Path("whole/cells", name, "result.json").read_bytes()


def test_a_worker_begins_with_its_share_and_goes_round(here):
    told = []
    swept(grid_of(seeds=range(5)), share=(1, 2), log=lambda name, result: told.append(name[-1]))
    assert told == ["2", "3", "4", "0", "1"]
    with pytest.raises(BadValue, match=r"share is \(2, 2\)"):
        swept(grid_of(), share=(2, 2))


def test_a_cell_in_use_is_come_back_to_and_taken_when_its_worker_dies(here, monkeypatch):
    grid, told = grid_of(seeds=(0, 1)), []
    lock = files.lock(Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/.claim"))
    lock.__enter__()

    def sleep(seconds: float) -> None:
        assert told == ["gaussian2d_vae-elbo-k2-s1"]
        lock.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", sleep)
    swept(grid, log=lambda name, result: told.append(name))
    assert told == ["gaussian2d_vae-elbo-k2-s1", "gaussian2d_vae-elbo-k2-s0"]


def test_a_cell_that_another_finishes_meanwhile_is_not_trained_again(here, monkeypatch):
    """The result comes between the first look and the lock."""
    grid = grid_of()
    swept(grid)
    (cell,) = runs.cells(grid, "sweep")
    monkeypatch.setattr(fv.train, "fit", None)
    before = all_files("sweep")
    result = module._work(cell, grid, reports.own_variance, lambda: False)
    assert result == files.read_json(Path(cell.out, "result.json"))
    assert all_files("sweep") == before


def test_a_cell_that_diverges_is_finished_and_the_others_go_on(here, monkeypatch, capsys):
    begin = module.training.run

    def run(cell, **options):
        if cell.seed == 0:
            raise NonFinite("loss became nan in step 3")
        return begin(cell, **options)

    monkeypatch.setattr(module.training, "run", run)
    written(seeds=(0, 1))
    for _ in range(2):  # it is not tried again
        with pytest.raises(SystemExit, match="1"):
            cli.main(["sweep", "grid.json"])
        out, error = capsys.readouterr()
        assert "gaussian2d_vae-elbo-k2-s0: diverged: loss became nan in step 3\n" in out
        assert "gaussian2d_vae-elbo-k2-s1: test bound -" in out
        assert error.endswith("funcvae: 1 of 2 cells diverged: gaussian2d_vae-elbo-k2-s0\n")
        monkeypatch.setattr(module.training, "run", None)
    cli.main(["collect", "runs/grid"])
    assert "diverged: gaussian2d_vae-elbo-k2-s0: loss became nan" in capsys.readouterr().out


def test_a_rate_that_is_far_too_high_diverges(here):
    (result,) = swept(grid_of(lr=1e4, epochs=40)).values()
    assert "funcvae replay sweep/cells/gaussian2d_vae-elbo-k2-s0" in result["diverged"]
    assert "test_bound" not in result
    found = runs.collect("sweep")
    assert [cell["status"] for cell in found.cells] == ["diverged"]
    assert found.groups[0]["seeds"] == 0
    assert found.figures() == {}


def test_a_result_that_is_another_cells_is_damaged(here):
    swept(grid_of())
    path = Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/result.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(BadData, match="its seed is 1, and should be 0"):
        swept(grid_of())
    path.write_text(json.dumps({"system": "gaussian2d_vae", "estimator": "elbo", "samples": 2, "seed": 0}))
    with pytest.raises(BadData, match="is no cell's result: KeyError, 'steps'"):
        runs.collect("sweep")


# Who does what.


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"TASK_ID": "7", "TASK_MIN": "5", "TASK_COUNT": "4"}, (2, 4)),
        ({"TASK_ID": "6", "TASK_MIN": "5", "TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
        ({"TASK_ID": "90", "TASK_MIN": "1", "TASK_COUNT": "3"}, (2, 3)),  # --array=1,7,90
    ],
)
def test_a_worker_finds_its_share(monkeypatch, environment, share):
    set_environment(monkeypatch, environment)
    assert runs.own_share() == share


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4, and its WORLD_SIZE 4"),
        ({"RANK": "a", "WORLD_SIZE": "4"}, "RANK is 'a'"),
        ({"TASK_ID": "x", "TASK_MIN": "1", "TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID is 'x'"),
        ({"TASK_ID": "1", "TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_MIN is ''"),
        ({"TASK_ID": "1", "TASK_MIN": "1", "TASK_COUNT": "0"}, "a Slurm array of 0 tasks"),
        ({"TASK_ID": "1", "TASK_MIN": "2", "TASK_COUNT": "4"}, "from 2 on, and this is task 1"),
    ],
)
def test_an_environment_that_nobody_sets_is_refused(monkeypatch, environment, message):
    set_environment(monkeypatch, environment)
    with pytest.raises(BadValue, match=message):
        runs.own_share()


def set_environment(monkeypatch, environment: dict[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", *(f"SLURM_ARRAY_TASK_{end}" for end in ("ID", "MIN", "COUNT"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name.replace("TASK_", "SLURM_ARRAY_TASK_"), value)


def starts(*command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_two_workers_train_every_cell_once(here):
    grid = written(seeds=range(8), epochs=60)
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    others = ["--device", "cpu"], ["--out", "runs/grid", "--device", "cpu"]
    workers = [
        starts("funcvae", "sweep", grid, *other, SLURM_ARRAY_TASK_ID=str(i), **array)
        for i, other in enumerate(others, 1)
    ]
    for worker in workers:
        out, error = worker.communicate(timeout=240)
        assert worker.returncode == 0, error
        assert sorted(line.partition(":")[0][-2:] for line in out.splitlines()[:-1]) == [f"s{i}" for i in range(8)]
    by = set()
    for cell in runs.cells(runs.read_grid(grid), "runs/grid"):
        manifest = files.read_json(Path(cell.out, "manifest.json"))
        assert "resumed" not in manifest
        by.add(len(manifest["command"]))
        steps = [row["step"] for row in tracking.Rows(Path(cell.out, "metrics.jsonl")) if tracking.is_a_step(row)]
        assert steps == list(range(180))
    assert len(by) == 2, "each has done some"


def test_a_cell_whose_worker_is_killed_comes_to_the_same_bytes(here):
    grid = written(seeds=(0, 1), epochs=200, checkpoint_every=100)
    worker = starts("funcvae", "sweep", grid, "--device", "cpu")
    wait_for_rows(Path("runs/grid/cells/gaussian2d_vae-elbo-k2-s0"))
    worker.kill()
    worker.communicate(timeout=60)
    assert not list(Path("runs").rglob("result.json"))
    asked = runs.read_grid(grid)
    found, whole = swept(asked, "runs/grid"), swept(asked, "whole")
    assert found == whole
    for name in found:
        assert params("runs/grid", name) == params("whole", name)


@pytest.mark.parametrize(("name", "status"), [pytest.param("SIGINT", 130, marks=pytest.mark.slow), ("SIGTERM", 143)])
def test_a_signal_stops_a_sweep_after_its_step_with_a_checkpoint(here, name, status):
    worker = starts("funcvae", "sweep", written(epochs=10**6), "--device", "cpu")
    run = Path("runs/grid/cells/gaussian2d_vae-elbo-k2-s0")
    wait_for_rows(run)
    worker.send_signal(getattr(signal, name))
    out, error = worker.communicate(timeout=60)
    assert worker.returncode == status
    assert out == ""
    assert error.splitlines()[-1] == "funcvae: stopped, with 0 of 1 cells finished; the same command goes on"
    assert "Traceback" not in error
    assert len(checkpoint.found(run / "checkpoints")) == 1


@pytest.mark.slow
def test_torchrun_starts_workers_of_which_the_first_speaks(here):
    grid = written(seeds=range(4), epochs=20)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "funcvae", "sweep", grid]
    worker = starts(*command, "--device", "cpu")
    out, error = worker.communicate(timeout=240)
    assert worker.returncode == 0, error
    assert sorted(line.partition(":")[0][-2:] for line in out.splitlines()[:-1]) == [f"s{i}" for i in range(4)]
    assert out.splitlines()[-1] == "runs/grid"
    assert len(list(Path("runs").rglob("result.json"))) == 4
    assert not [path for path in Path("runs").rglob("manifest.json") if "resumed" in files.read_json(path)]


def test_what_is_wrong_is_told_once_by_all_workers_together(here):
    grid = written(data="nowhere.npz")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "funcvae", "sweep", grid]
    worker = starts(*command)
    out, error = worker.communicate(timeout=120)
    assert worker.returncode == 1
    assert out == ""
    assert [line for line in error.splitlines() if "funcvae: error" in line and "nowhere.npz" in line] != []
    assert error.count("funcvae: error") == 1


# What is collected.


def test_over_seeds_by_students_t():
    found = over([1.0, 2.0, 6.0])
    se = math.sqrt(7 / 3)
    assert found == pytest.approx({"mean": 3, "se": se, "low": 3 - 4.302653 * se, "high": 3 + 4.302653 * se}, rel=1e-6)
    assert over([1.0, 3.0]) == pytest.approx({"mean": 2, "se": 1, "low": 2 - 12.706205, "high": 2 + 12.706205})
    assert over([4.0]) == {"mean": 4.0, "se": None, "low": None, "high": None}


def test_what_is_collected_is_what_the_cells_say(here, capsys):
    grid = grid_of(seeds=(0, 1, 2), estimators=("elbo_mc", "iwae"), samples=(1, 2), replicates=3)
    results = swept(grid)
    cli.main(["collect", "sweep"])
    out = capsys.readouterr().out
    paths = ["sweep/table.csv", "sweep/table.json", "sweep/figures/sweep_bound.png", "sweep/figures/sweep_variance.png"]
    assert out.splitlines()[-4:] == paths
    assert all(Path(path).is_file() for path in paths)

    with open("sweep/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row, (name, result) in zip(rows, results.items(), strict=True):
        assert (row["folder"], row["status"], row["diverged"]) == (f"sweep/cells/{name}", "finished", "")
        assert [row[n] for n in ("estimator", "samples", "seed")] == [
            str(result[n]) for n in ("estimator", "samples", "seed")
        ]
        assert (float(row["bound"]), float(row["test_bound"])) == (result["bound"], result["test_bound"])
        assert (row["steps"], row["params_sha256"]) == ("6", result["params_sha256"])
        for network, of in result["variance"].items():
            assert float(row[f"variance_{network}"]) == of["variance"]
            assert float(row[f"low_{network}"]) == of["low"]
            assert row[f"trusted_{network}"] == str(of["trusted"])

    groups = json.loads(Path("sweep/table.json").read_text())["groups"]
    assert [(g["estimator"], g["target"], g["samples"], g["seeds"]) for g in groups] == [
        ("elbo_mc", "ELBO", 1, 3), ("elbo_mc", "ELBO", 2, 3), ("iwae", "L_K", 1, 3), ("iwae", "L_K", 2, 3),
    ]  # fmt: skip
    for i, group in enumerate(groups):
        of = list(results.values())[3 * i : 3 * i + 3]
        bounds = np.array([result["test_bound"] for result in of])
        se = bounds.std(ddof=1) / np.sqrt(3)
        found = [group["test_bound"][name] for name in ("mean", "se", "low", "high")]
        assert found == pytest.approx([bounds.mean(), se, bounds.mean() - 4.302653 * se, bounds.mean() + 4.302653 * se])
        logs = np.log([result["variance"]["encoder"]["variance"] for result in of])
        assert group["log_variance_encoder"]["mean"] == pytest.approx(logs.mean())
        line = next(
            line
            for line in out.splitlines()
            if line.split()[1:4]
            == [group[n] if n != "samples" else str(group[n]) for n in ("estimator", "target", "samples")]
        )
        assert f"{bounds.mean():.4f}" in line
        assert f"{np.exp(logs.mean()):.3g}" in line


def test_cells_that_are_not_finished_are_listed(here, capsys):
    grid = grid_of(seeds=(0, 1, 2))
    with pytest.raises(Stopped):
        swept(grid, stopping=after(10))  # in the second cell
    cli.main(["collect", "sweep", "--out", "elsewhere/t.csv"])
    out = capsys.readouterr().out
    assert "begun: gaussian2d_vae-elbo-k2-s1\nmissing: gaussian2d_vae-elbo-k2-s2\n" in out
    with open("elsewhere/t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "begun", "missing"]
    assert [bool(row["test_bound"]) for row in rows] == [True, False, False]
    assert Path("elsewhere/t.json").is_file()
    assert Path("elsewhere/figures/sweep_bound.png").is_file()
    (group,) = runs.collect("sweep").groups
    assert (group["seeds"], group["test_bound"]["se"]) == (1, None)


def test_collecting_what_is_no_sweep_is_refused(here, capsys):
    with pytest.raises(Missing, match="nowhere is no sweep's folder: it has no grid"):
        runs.collect("nowhere")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["collect", "nowhere", "--out", "table.txt"])
    assert "--out table.txt: give the name of a CSV file, NAME.csv" in capsys.readouterr().err


# The figure.

LINE = OverSeeds([1, 4], [-3.0, -2.0], [-3.5, math.nan], [-2.5, math.nan], [[-3.2, -2.8], [-2.0, math.nan]])


def test_the_figure_shows_means_intervals_and_seeds_side_by_side():
    figure = plots.over_seeds({"a": {"iwae": LINE, "dreg": LINE}, "b": {"iwae": LINE}}, ylabel="nats", title="mine")
    left, right = figure.axes
    assert (left.get_title(), left.get_ylabel(), left.get_xlabel()) == ("a", "nats", "samples K")
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "4"]
    assert figure.get_suptitle() == "mine"
    bars = [segment for bars in left.collections for segment in bars.get_segments()]
    assert sorted(bar[:, 1].tolist() for bar in bars) == [[-3.5, -2.5]] * 2
    assert len({bar[0, 0] for bar in bars}) == 2, "no interval hides another"
    shown = [line for line in right.lines if line.get_marker() == "o" and line.get_markersize() > 5]
    assert shown[0].get_ydata().tolist() == [-3.0, -2.0]
    assert shown[0].get_xdata() == pytest.approx([1, 4])
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["iwae", "dreg", "mean over seeds", "its 95% interval", "a single seed"]


def test_with_one_number_of_samples_the_estimators_stand_along_the_axis():
    one = OverSeeds([5], [1.0], [math.nan], [math.nan], [[1.0]])
    (ax,) = plots.over_seeds({"burda_vae": {"iwae (L_K)": one, "stl (ELBO)": one}}).axes
    assert ax.get_title() == "burda_vae, K = 5"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["iwae\n(L_K)", "stl\n(ELBO)"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.over_seeds({}),
        lambda: plots.over_seeds({"a": {}}),
        lambda: plots.over_seeds({"a": {"b": LINE._replace(mean=[1.0])}}),
        lambda: plots.over_seeds({"a": {"b": LINE._replace(samples=[4, 1])}}),
        lambda: plots.over_seeds({"a": {"b": LINE}}, yscale="log"),
        lambda: plots.over_seeds({"a": {"b": LINE}}, yscale="logg"),
        lambda: plots.over_seeds({"a": {"b": [1, 2]}}),
    ],
)
def test_what_the_figure_cannot_show_is_refused(call):
    with pytest.raises((BadValue, BadType)):
        call()
