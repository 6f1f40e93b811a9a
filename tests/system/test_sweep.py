"""Sweeps with several worker processes: kills, signals and torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from funcvae import runs, tracking
from funcvae._support import files
from funcvae.train import checkpoint
from tests.support.faults import wait_for_rows
from tests.support.sweeps import params, swept, write_points, written


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with twelve points for training and five for testing."""
    monkeypatch.chdir(tmp_path)
    write_points()
    return tmp_path


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
    finished = set()
    for worker in workers:
        out, error = worker.communicate(timeout=240)
        assert worker.returncode == 0, error
        finished |= {line.partition(",")[0][-2:] for line in out.splitlines() if " of 8: " in line}
    assert finished == {f"s{i}" for i in range(8)}  # a task of an array does not wait for the cells of the other
    by = set()
    for cell in runs.expand_grid(runs.read_grid(grid), "runs/grid"):
        manifest = files.read_json(Path(cell.out, "manifest.json"))
        assert "resumed" not in manifest
        by.add(len(manifest["command"]))
        rows = tracking.MetricsReader(Path(cell.out, "metrics.jsonl"))
        assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(180))
    assert len(by) == 2, "each has done some"


def test_the_cell_of_a_killed_worker_is_finished_with_the_same_bytes(here):
    grid = written(seeds=(0, 1), epochs=60, checkpoint_every=30)
    worker = starts("funcvae", "sweep", grid, "--device", "cpu")
    wait_for_rows(Path("runs/grid/cells/gaussian2d_vae-elbo-k2-s0"))
    worker.kill()
    worker.communicate(timeout=60)
    assert not list(Path("runs").rglob("cell.json"))
    requested = runs.read_grid(grid)
    found, whole = swept(requested, "runs/grid"), swept(requested, "whole")
    assert found == whole
    for name in found:
        assert params("runs/grid", name) == params("whole", name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_stops_a_sweep_after_its_step_with_a_checkpoint(here, name, status):
    worker = starts("funcvae", "sweep", written(epochs=10**6), "--device", "cpu")
    run = Path("runs/grid/cells/gaussian2d_vae-elbo-k2-s0")
    wait_for_rows(run)
    worker.send_signal(getattr(signal, name))
    out, error = worker.communicate(timeout=60)
    assert worker.returncode == status
    assert out == ""
    assert error.splitlines()[-1] == "funcvae: stopped with 0 of 1 cells finished; start the sweep again to continue"
    assert "Traceback" not in error
    assert len(checkpoint.in_folder(run / "checkpoints")) == 1


@pytest.mark.slow
def test_under_torchrun_the_first_worker_prints(here):
    grid = written(seeds=range(4), epochs=20)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "funcvae", "sweep", grid]
    worker = starts(*command, "--device", "cpu")
    out, error = worker.communicate(timeout=240)
    assert worker.returncode == 0, error
    assert sorted(line.partition(",")[0][-2:] for line in out.splitlines()[:-2]) == [f"s{i}" for i in range(4)]
    assert out.splitlines()[-2:] == ["runs/grid", "next: funcvae collect runs/grid"]
    assert len(list(Path("runs").rglob("cell.json"))) == 4
    assert not [path for path in Path("runs").rglob("manifest.json") if "resumed" in files.read_json(path)]


@pytest.mark.slow
def test_workers_report_an_error_once(here):
    grid = written(data="nowhere.npz")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "funcvae", "sweep", grid]
    worker = starts(*command)
    out, error = worker.communicate(timeout=120)
    assert worker.returncode == 1
    assert out == ""
    assert [line for line in error.splitlines() if "funcvae: error" in line and "nowhere.npz" in line] != []
    assert error.count("funcvae: error") == 1
