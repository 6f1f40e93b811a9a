"""Sweeps in one process, and the shares of workers."""

import json
from pathlib import Path

import pytest

from funcvae import cli, figures, runs, tracking
from funcvae._support import files
from funcvae.errors import BadData, BadValue, NonFinite, Stopped
from funcvae.runs import workers as module
from funcvae.train import checkpoint
from tests.support.sweeps import after, all_files, grid_of, params, swept, written


def test_a_cell_is_trained_like_a_single_run(here):
    grid = grid_of(seeds=(0, 1), estimators=("iwae",), replicates=4)
    logged = []
    results = swept(grid, log=lambda name, result: logged.append(name))
    names = ["gaussian2d_vae-iwae-k2-s0", "gaussian2d_vae-iwae-k2-s1"]
    assert list(results) == logged == names
    alone = runs.run(
        runs.configure("gaussian2d_vae", **grid.settings, estimator="iwae", samples=2, seed=1, out="alone")
    )
    assert params("sweep", names[1]) == (alone / "params.safetensors").read_bytes()
    *_, last = tracking.MetricsReader(alone / "metrics.jsonl")
    variance = runs.variance_report(runs.load(alone), 4)
    assert set(variance) == {"encoder", "decoder"}
    assert results[names[1]] == {
        "system": "gaussian2d_vae", "estimator": "iwae", "samples": 2, "seed": 1, "target": "L_K", "steps": 6,
        "bound": last["train_bound"], "test_bound": last["test_bound"], "params_sha256": last["params_sha256"],
        "replicates": 4, "variance": variance,
    }  # fmt: skip
    assert files.read_json(Path("sweep/cells", names[1], "cell.json")) == results[names[1]]
    assert runs.read_grid("sweep/grid.json") == grid


def test_a_second_start_trains_nothing(here, monkeypatch):
    grid = grid_of(seeds=(0, 1))
    results = swept(grid)
    before = all_files("sweep")
    monkeypatch.setattr("funcvae.train.loop.fit_task", None)
    assert swept(grid) == results
    assert all_files("sweep") == before


def test_a_larger_grid_trains_the_new_cells(here):
    swept(grid_of())
    before = all_files("sweep/cells")
    assert len(swept(grid_of(seeds=(0, 1), estimators=("elbo", "stl")))) == 4
    now = all_files("sweep/cells")
    assert {path: now[path] for path in before} == before
    assert runs.read_grid("sweep/grid.json").seeds == (0, 1)


def test_replicates_can_be_added_without_training(here, monkeypatch):
    swept(grid_of())
    before = all_files("sweep/cells")
    monkeypatch.setattr("funcvae.train.loop.fit_task", None)
    (result,) = swept(grid_of(replicates=3)).values()
    assert result["replicates"] == 3
    now = all_files("sweep/cells")
    assert [path for path in now if now[path] != before[path]] == ["sweep/cells/gaussian2d_vae-elbo-k2-s0/cell.json"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_cell_with_other_settings_is_named(here, finished):
    if finished:
        swept(grid_of())
    else:
        with pytest.raises(Stopped):
            swept(grid_of(), stop_context=after(2))
    before = all_files("sweep")
    with pytest.raises(
        BadValue, match="s0 has a run with other settings: epochs was 2 and is 3 now, lr was that of the recipe and is"
    ):
        swept(grid_of(epochs=3, lr=0.1))
    assert all_files("sweep") == before
    swept(grid_of(checkpoint_every=7))


def test_a_stopped_sweep_continues_to_the_same_bytes(here):
    grid = grid_of(seeds=(0, 1))
    swept(grid, "whole")
    with pytest.raises(Stopped, match="stopped with 0 of 2 cells finished; start the sweep again"):
        swept(grid, stop_context=after(4))
    (found,) = checkpoint.in_folder(Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/checkpoints"))
    assert 0 < found < 6
    for _ in range(20):
        try:
            swept(grid, stop_context=after(3))
            break
        except Stopped:
            pass
    for cell in runs.expand_grid(grid, "sweep"):
        name = Path(cell.out).name
        assert params("sweep", name) == params("whole", name)
        assert Path(cell.out, "cell.json").read_bytes() == Path("whole/cells", name, "cell.json").read_bytes()


def test_the_figures_that_a_full_disk_cost_are_drawn_by_the_next_start(here, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(figures, "save", full)
        with pytest.raises(OSError, match="the run is finished, but figures are missing"):
            runs.train_grid(grid_of(), "sweep", measure=runs.variance_report)
    swept(grid_of())
    swept(grid_of(), "whole")
    drawn, whole = ({path.name for path in Path(folder).glob("cells/*/figures/*")} for folder in ("sweep", "whole"))
    assert drawn == whole != set()


def test_a_worker_starts_with_its_share(here):
    logged = []
    swept(grid_of(seeds=range(5)), share=(1, 2), log=lambda name, result: logged.append(name[-1]))
    assert logged == ["2", "3", "4", "0", "1"]
    with pytest.raises(BadValue, match=r"share is \(2, 2\)"):
        swept(grid_of(), share=(2, 2))


def test_a_cell_in_use_is_trained_after_its_worker_dies(here, monkeypatch):
    grid, logged = grid_of(seeds=(0, 1)), []
    lock = files.lock(Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/.claim"))
    lock.__enter__()

    def sleep(seconds: float) -> None:
        assert logged == ["gaussian2d_vae-elbo-k2-s1"]
        lock.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", sleep)
    swept(grid, log=lambda name, result: logged.append(name))
    assert logged == ["gaussian2d_vae-elbo-k2-s1", "gaussian2d_vae-elbo-k2-s0"]


def test_a_worker_that_does_not_wait_ends_when_no_cell_is_free(here):
    with files.lock(Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/.claim")):
        assert list(swept(grid_of(seeds=(0, 1)), wait=False)) == ["gaussian2d_vae-elbo-k2-s1"]
    lock = files.lock(Path("sweep/cells/gaussian2d_vae-elbo-k2-s2/.claim"))
    lock.__enter__()
    found = swept(
        grid_of(seeds=(2, 3, 4)), wait=False, log=lambda name, _: name[-1] == "4" and lock.__exit__(*[None] * 3)
    )
    assert len(found) == 3  # the lock was released while this worker trained the others


def test_a_task_of_a_slurm_array_does_not_wait(here, monkeypatch, capsys):
    Path("grid.json").write_text(files.as_json(grid_of(seeds=(0, 1)).as_json()).decode())
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with files.lock(Path("runs/grid/cells/gaussian2d_vae-elbo-k2-s0/.claim")):
        cli.main(["sweep", "grid.json"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["runs/grid", "1 of 2 cells are in use by other workers"]
    cli.main(["sweep", "grid.json"])
    assert capsys.readouterr().out.splitlines()[-1] == "next: funcvae collect runs/grid"


def test_a_cell_that_another_worker_has_just_finished_is_not_trained(here, monkeypatch):
    """The other worker writes the result after the first check, before the lock."""
    grid = grid_of()
    swept(grid)
    (cell,) = runs.expand_grid(grid, "sweep")
    monkeypatch.setattr("funcvae.train.loop.fit_task", None)
    before = all_files("sweep")
    result = module._train_cell(cell, grid, runs.variance_report, lambda: False)
    assert result == files.read_json(Path(cell.out, "cell.json"))
    assert all_files("sweep") == before


def test_a_cell_that_diverges_does_not_stop_the_others(here, monkeypatch, capsys):
    begin = module.execute.run

    def run(cell, **options):
        if cell.seed == 0:
            raise NonFinite("loss became nan in step 3")
        return begin(cell, **options)

    monkeypatch.setattr(module.execute, "run", run)
    written(seeds=(0, 1))
    for _ in range(2):  # it is not tried again
        with pytest.raises(SystemExit, match="1"):
            cli.main(["sweep", "grid.json"])
        out, error = capsys.readouterr()
        assert "gaussian2d_vae-elbo-k2-s0, 1 of 2: diverged: loss became nan in step 3\n" in out
        assert "gaussian2d_vae-elbo-k2-s1, 2 of 2: test bound -" in out
        assert error.endswith("funcvae: 1 of 2 cells diverged: gaussian2d_vae-elbo-k2-s0\n")
        monkeypatch.setattr(module.execute, "run", None)
    cli.main(["collect", "runs/grid"])
    assert "diverged: gaussian2d_vae-elbo-k2-s0: loss became nan" in capsys.readouterr().out


def test_a_very_high_learning_rate_diverges(here):
    (result,) = swept(grid_of(lr=1e4, epochs=40)).values()
    assert "funcvae replay sweep/cells/gaussian2d_vae-elbo-k2-s0" in result["diverged"]
    assert "test_bound" not in result
    found = runs.collect("sweep")
    assert [cell["status"] for cell in found.cells] == ["diverged"]
    assert found.groups[0]["seeds"] == 0
    assert found.figures() == {}


def test_the_result_of_another_cell_is_an_error(here):
    swept(grid_of())
    path = Path("sweep/cells/gaussian2d_vae-elbo-k2-s0/cell.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(BadData, match="its seed is 1, not 0"):
        swept(grid_of())
    path.write_text(json.dumps({"system": "gaussian2d_vae", "estimator": "elbo", "samples": 2, "seed": 0}))
    with pytest.raises(BadData, match="is not the result of a cell: KeyError, 'steps'"):
        runs.collect("sweep")


# The share of a worker.


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"TASK_ID": "7", "TASK_MIN": "5", "TASK_COUNT": "4"}, (2, 4)),
        ({"TASK_ID": "6", "TASK_MIN": "5", "TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
        ({"TASK_ID": "90", "TASK_MIN": "1", "TASK_COUNT": "3"}, (2, 3)),  # --array=1,7,90
        ({"TASK_ID": "2"}, (2, 3)),  # without Slurm
    ],
)
def test_worker_share(monkeypatch, environment, share):
    set_environment(monkeypatch, environment)
    assert runs.worker_share() == share


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4: it must be below WORLD_SIZE, which is 4"),
        ({"RANK": "a", "WORLD_SIZE": "4"}, "RANK is 'a'"),
        ({"TASK_ID": "x", "TASK_MIN": "1", "TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID is 'x'"),
        ({"TASK_ID": "1", "TASK_MIN": "1", "TASK_COUNT": "0"}, "the array has 0 tasks"),
        ({"TASK_ID": "1", "TASK_MIN": "2", "TASK_COUNT": "4"}, "ID is 1: the array has 4 tasks and starts at 2"),
    ],
)
def test_an_inconsistent_environment_is_an_error(monkeypatch, environment, message):
    set_environment(monkeypatch, environment)
    with pytest.raises(BadValue, match=message):
        runs.worker_share()


def set_environment(monkeypatch, environment: dict[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", *(f"SLURM_ARRAY_TASK_{end}" for end in ("ID", "MIN", "COUNT"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name.replace("TASK_", "SLURM_ARRAY_TASK_"), value)
