"""Killed processes, full disks and read-only folders lose no data."""

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from funcvae import cli, figures, runs
from funcvae.train import checkpoint
from tests.support.commands import write_digits

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


@pytest.mark.slow
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
    left_out = ("manifest.json", "config.json", "times.jsonl", "result.json", ".lock")
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


@pytest.mark.parametrize("options", [(), pytest.param(("--sample-each-step",), marks=pytest.mark.slow)])
def test_a_full_disk_at_the_figures_leaves_a_finished_run(tmp_path, monkeypatch, capsys, options):
    run, whole = tmp_path / "run", tmp_path / "whole"
    short = ("--epochs", "1", "--samples", "2", *options)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(figures, "save", full)
        patched.setattr(figures, "save_gif", full)
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *short, "--out", str(run)])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device: the run is finished, but figures are missing" in line
    assert line.endswith(f"to draw them: funcvae train --resume {run}")
    assert not (run / "figures").exists()
    assert int(runs.load(run).config.epochs) == 1, "the parameters were written"
    cli.main(["train", "--resume", str(run)])
    assert "finished" not in capsys.readouterr().err
    cli.main(["train", *short, "--out", str(whole)])
    assert files_of(run) == files_of(whole)


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_cold_compilation_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    """SIGINT reaches every process of the group, as from a terminal. The same command then finishes the run."""
    monkeypatch.chdir(tmp_path)
    write_digits()
    command = [sys.executable, "-m", "funcvae", "train", "mnist_vae", "--epochs", "1", "--device", "cpu"]
    command += ["--data", "digits.npz", "--resume", "auto", "--out"]

    def interrupted(run: Path, after: float) -> float:
        """Trains, and sends SIGINT after some seconds, unless there is a checkpoint by then. Returns the seconds."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(run.with_suffix(".cache")))
        process = subprocess.Popen([*command, run.name], stderr=subprocess.PIPE, text=True, process_group=0)
        while process.poll() is None and not (run / "metrics.jsonl").is_file():  # before the first step
            time.sleep(0.01)
        start = time.monotonic()
        while process.poll() is None and time.monotonic() < start + after and not list(run.glob("checkpoints/*")):
            time.sleep(0.01)
        seconds = time.monotonic() - start
        if process.poll() is None and seconds >= after:
            os.killpg(process.pid, signal.SIGINT)
        error = process.communicate()[1]
        assert process.returncode in (0, 128 + signal.SIGINT), error
        assert process.returncode == 0 or f"to continue: funcvae train --resume {run.name}" in error
        return seconds

    whole = interrupted(tmp_path / "whole", 600)  # to the first checkpoint: most of it is compilation
    for moment in range(10):
        run = tmp_path / f"run{moment}"
        interrupted(run, whole * (moment + 0.5) / 10)
        again = subprocess.run([*command, run.name], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert bits_of(run) == bits_of(tmp_path / "whole")


def bits_of(run: Path) -> tuple[bytes, bytes]:
    return (run / "params.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


COMPILED = """
import warnings
import torch
from funcvae import compilation
warnings.simplefilter("error", compilation.Uncompiled)
print(compilation.compiled(lambda x: (x.sin() * 2).sum(0))(torch.ones(8, 8)).sum())
"""


@pytest.mark.slow
def test_a_cut_off_file_in_the_cache_of_the_compiler_is_compiled_again(tmp_path):
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=env, check=True
        ).stdout

    expected = run()
    (library,) = tmp_path.rglob("*.main.so")
    whole = library.stat().st_size
    for content in (b"", bytes(whole)):  # "file too short", "invalid ELF header"
        library.unlink()
        library.write_bytes(content)
        assert run() == expected
        assert library.stat().st_size == whole


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
