"""Killed processes, full disks and read-only folders lose no data."""

import ctypes
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from funcvae import cli, runs
from funcvae.train import checkpoint

ROOT = Path(__file__).parents[2]


def program(*args: str, before: str = "") -> subprocess.CompletedProcess:
    """Runs the fault program in its own process, after the given lines of Python."""
    code = f"import sys\nfrom tests.support import faults\n{before}\nsys.exit(faults.main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path, kills):
    epochs = "2" if kills == 6 else "6"
    done = program(str(tmp_path), "--kills", str(kills), "--epochs", epochs, "--seed", str(kills))
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= kills
    for stage in ("opened", "written", "synced", "renamed", "whole", "time"):
        assert stage in done.stdout, "kills of every kind"


CARELESS = """
def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: len(content) // 2])
    faults.files._between("written", path)
    path.write_bytes(content)
    return path
faults.files.write = write
"""


def test_files_written_in_place_are_lost(tmp_path):
    done = program(str(tmp_path), "--kinds", "written", "--epochs", "2", "--seed", "2", before=CARELESS)
    assert done.returncode == 1
    assert "ended with 1" in done.stderr or "differs in" in done.stderr


def run_python(
    command: list[str], *, limit: int | None = None, unprivileged: bool = False
) -> subprocess.CompletedProcess:
    """Python under a limit on the size of files, or without root's right to write everywhere."""

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if unprivileged:
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)

    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it writes files, too
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, preexec_fn=prepare, env=env, check=False
    )


_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def files_of(run: Path) -> dict[str, bytes]:
    left_out = ("manifest.json", "config.json", ".lock")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in left_out}


RUN = ("--epochs", "8", "--samples", "2", "--checkpoint-every", "20")


@pytest.mark.parametrize("limit", [pytest.param(3_000, marks=pytest.mark.slow), 20_000])
def test_a_full_disk_damages_no_complete_file(tmp_path, limit):
    """No file may exceed the limit: depending on it, metrics, a checkpoint or a figure fails."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    full = run_python(["-m", "funcvae", "train", *RUN, "--out", str(run)], limit=limit)
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1].startswith("funcvae: error: ")
    assert "File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(run.rglob("*.partial"))
    for path in checkpoint.in_folder(run / "checkpoints").values():
        assert path.stat().st_size > 10_000, "whole ones alone have the name"
    cli.main(["train", "--resume", str(run)])
    cli.main(["train", *RUN, "--out", str(whole)])
    assert files_of(run) == files_of(whole)


COMMANDS = """
import contextlib, io, json, sys, traceback
from funcvae import cli
found = []
for command in json.loads(sys.argv[1]):
    status, error = 0, io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(command)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
    found.append([status, error.getvalue()])
print(json.dumps(found))
"""


def test_a_read_only_folder_is_read_and_not_changed(tmp_path):
    run = runs.run(runs.configure("gaussian2d_vae", epochs=1, samples=2, out=str(tmp_path / "run")))
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("config.json", "manifest.json"):
        (stopped / name).write_bytes((run / name).read_bytes())
    for path in [*tmp_path.rglob("*"), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = files_of(tmp_path)
    try:
        allowed = [["verify", str(run)], ["replay", str(run), "3"], ["train", "--resume", str(run)]]  # finished
        denied = [
            ["train", "--resume", str(stopped)],
            ["train", "--epochs", "1", "--out", str(tmp_path / "new")],
            ["sample", str(run), "--out", str(run / "new.png")],
        ]
        done = run_python(["-c", COMMANDS, json.dumps(allowed + denied)], unprivileged=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        for status, error in found[: len(allowed)]:
            assert (status, "Traceback" in error) == (0, False), error
        for status, error in found[len(allowed) :]:
            assert status == 2, error
            assert "Permission denied" in error
            assert error.splitlines()[-1].startswith("funcvae: error: ")
        assert files_of(tmp_path) == before
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IRWXU)
