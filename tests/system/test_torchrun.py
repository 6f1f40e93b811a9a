"""Several processes, started by torchrun, train one model.

Tests the collectives, equal bits with one process, and errors.
"""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from funcvae import cli
from tests.support.faults import wait_for_rows
from tests.support.figures import without_figures

LIMIT = 120  # seconds for a program
FUNCVAE = [sys.executable, "-m", "funcvae"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def torchrun(n: int, *program: str, restarts: int = 0) -> list[str]:
    """The command that starts a program n times."""
    options = ["--standalone", "--nproc-per-node", str(n), "--max-restarts", str(restarts), "--no-python"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *program]


def done(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False,
        env={**ENVIRONMENT, **environment},
    )  # fmt: skip


# What they send one another, and what they train.


SCRIPT = """
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

import funcvae as fv
from funcvae import distributed, tree
from funcvae.errors import BadValue

folder, compiled = sys.argv[1], sys.argv[2] == "compiled"


def normed():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))


def frozen():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    return net


def dropping():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 4))


def annealed(step):
    beta = fv.optim.linear(0, 1, 6)(step).float()

    def weights(log_w):
        r = beta / len(log_w) + (1 - beta) * log_w.softmax(0)
        return fv.Weights(path=r, score=-r, theta=r)

    return fv.estimators.weighted(weights, bound=fv.bounds.iwae, claims=fv.Claims("L_K", False, False, ()))


def sending(processes):
    r, n = processes.rank, processes.size
    found = {}

    def sent(name, f, given):
        before, copy = processes.sent, [leaf.clone() for leaf in tree.leaves(given)]
        found[name] = tree.map(lambda t: t.tolist(), f(given)) if name == "broadcast" else f(given).tolist()
        found[f"{name} sent"] = [processes.sent.messages - before.messages, processes.sent.bytes - before.bytes]
        assert all(map(torch.equal, copy, tree.leaves(given))), "it wrote to its argument"

    sent("all_reduce", lambda x: processes.all_reduce(x.clone()), torch.full((4, 3), r + 1.0, dtype=torch.float64))
    sent("all_gather", processes.all_gather, torch.full((2, 2), r + 1))
    each = 100 * r + torch.arange(n, dtype=torch.float32)
    sent("all_to_all", processes.all_to_all, each.view(n, 1, 1).expand(n, 2, 1))
    sent("all_gather_rows", processes.all_gather_rows, torch.full((r, 2), float(r)))
    sent("broadcast", processes.broadcast, {"a": torch.full((3,), 7.0 + r), "b": torch.tensor(r)})
    found["objects"] = processes.all_gather_object({"rank": r, "text": "é" * 1000 * r, "none": None})
    found["share"] = list(processes.share_of(10))
    processes.require_equal(same=1, also="x")
    try:
        processes.require_equal(same=1, the_rank=r, parity=r % 2)
    except BadValue as error:
        found["differ"] = str(error)
    return found


def training(processes):
    found = {}
    systems = {
        "plain": (fv.models.gaussian2d_vae(hidden=4), 11, 8),  # a last batch of three rows, for four shards
        "normed": (fv.vae(encoder=normed, decoder=normed, likelihood=fv.heads.normal_logvar, latent=2), 20, 12),
        "frozen": (fv.vae(encoder=frozen, decoder=frozen, likelihood=fv.heads.normal_logvar, latent=2), 11, 8),
        "random": (fv.vae(encoder=dropping, decoder=dropping, likelihood=fv.heads.normal_logvar, latent=2), 11, 8),
    }
    if compiled:  # few steps and shards of one size, because compiling is slow
        systems = {"plain": (systems["plain"][0], 12, 12)}
    for system, (model, n, batch) in systems.items():
        for split in (distributed.by_rows, distributed.by_samples):
            for count in (4,) if system in ("normed", "random") or compiled else (4, None):
                opt, x = fv.optim.adam(1e-2), fv.random.normal(fv.random.key(7), (n, 2))
                ts = fv.train.init(model, opt, fv.random.key(0))
                estimator = annealed if system == "frozen" else fv.estimators.iwae()
                fit = partial(fv.train.fit, ts, model, estimator, opt, x, test=x, epochs=3, batch=batch,
                              samples=8, shards=count, split=split, compile=compiled, processes=processes)
                after, history = fit()
                if system == "frozen":
                    assert tree.sha256(after.state) == tree.sha256(ts.state), "a frozen parameter has changed"
                asked = iter(range(1, 99))
                last = processes.rank == processes.size - 1
                stopped, _ = fit(stop=lambda: next(asked) >= 3 and last)  # one process requests it
                found[f"{system} {split.__name__} {count}"] = {
                    "sha256": tree.sha256({"params": after.params, "state": after.state}),
                    "stopped": [int(stopped.step), tree.sha256(stopped.params)],
                    "history": [torch.as_tensor(field).tolist() for field in history],
                    "params": torch.cat([leaf.flatten() for leaf in tree.leaves(after.params)]).tolist(),
                }
    return found


with distributed.process_group("cpu") as group:
    found = {"rank": group.rank, "size": group.size, "sending": sending(group), "training": training(group)}
found["threads"] = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
with open(f"{folder}/{group.rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def found_by(tmp_path_factory):
    """The results of the script in each of n processes."""

    @cache
    def found(n: int, how: str = "eager") -> list[dict]:
        folder = tmp_path_factory.mktemp(f"{n}-{how}")
        script = folder / "script.py"
        script.write_text(SCRIPT)
        if n == 1:  # in this process
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [str(script), str(folder), how])
                runpy.run_path(str(script))
        else:
            end = done(torchrun(n, sys.executable, str(script), str(folder), how), folder)
            assert end.returncode == 0, end.stderr
            assert "Warning" not in end.stderr, end.stderr
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(n)]

    return found


some = pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])


@some
def test_collectives(found_by, n):
    for r, found in enumerate(found_by(n)):
        assert (found["rank"], found["size"]) == (r, n)
        found = found["sending"]
        assert found["all_reduce"] == [[n * (n + 1) / 2] * 3] * 4
        assert found["all_gather"] == [[[k + 1, k + 1]] * 2 for k in range(n)]
        assert found["all_to_all"] == [[[100.0 * k + r]] * 2 for k in range(n)]
        assert found["all_gather_rows"] == [[float(k), float(k)] for k in range(n) for _ in range(k)]
        assert found["broadcast"] == {"a": [7.0] * 3, "b": 0}
        assert found["objects"] == [{"rank": k, "text": "é" * 1000 * k, "none": None} for k in range(n)]
        assert found["all_reduce sent"] == [2 * (n - 1), 2 * 96 * (n - 1) // n]
        assert found["all_gather sent"] == [n - 1, 32 * (n - 1)]
        assert found["all_to_all sent"] == [n - 1, 8 * (n - 1)]


@some
def test_no_thread_of_the_process_group_outlives_it(found_by, n):
    """Such a thread may abort the process when the interpreter ends."""
    for found in found_by(n):
        assert found["threads"]
        assert not [name for name in found["threads"] if "gloo" in name]


@some
def test_shares_are_parts_of_the_whole(found_by, n):
    shares = [found["sending"]["share"] for found in found_by(n)]
    assert [i for share in shares for i in share] == list(range(10))


@some
def test_the_error_names_values_that_differ(found_by, n):
    for found in found_by(n):
        assert found["sending"]["differ"] == (
            "the rank is 0 in process 0 and 1 in process 1, parity is 0 in process 0 and 1 in process 1: start all "
            "processes with the same command, code and settings"
        )


def assert_same_bits(mine: list[dict], alone: dict) -> None:
    """With a fixed number of shards. All processes have the same result in any case."""
    assert all(found["training"] == mine[0]["training"] for found in mine)
    for name, expected in alone["training"].items():
        if not name.endswith("None"):
            assert mine[0]["training"][name] == expected, name


@some
def test_fixed_shards_give_the_bits_of_one_process(found_by, n):
    assert_same_bits(found_by(n), found_by(1)[0])
    assert {run["stopped"][0] for run in found_by(n)[0]["training"].values()} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_with_fixed_shards_the_bits_are_those_of_one_process_compiled_too(found_by, n):
    assert_same_bits(found_by(n, "compiled"), found_by(1, "compiled")[0])


@some
def test_other_shards_give_the_numbers_of_one_process_up_to_rounding(found_by, n):
    """The bits differ, which shows that the other test can fail."""
    alone, together = found_by(1)[0]["training"], found_by(n)[0]["training"]
    for name in ("plain by_rows None", "plain by_samples None"):
        np.testing.assert_allclose(together[name]["params"], alone[name]["params"], rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(together[name]["history"], alone[name]["history"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5)
        assert together[name]["sha256"] != alone[name]["sha256"]


# The command line.


SHORT = ["train", "gaussian2d_vae", "--epochs", "2", "--shards", "4", "--device", "cpu"]
LONG = ["train", "gaussian2d_vae", "--epochs", "30", "--shards", "4", "--device", "cpu", "--checkpoint-every", "25"]
ENDLESS = ["train", "gaussian2d_vae", "--epochs", "5000", "--shards", "4", "--device", "cpu"]


def bits(run: Path) -> tuple[bytes, bytes]:
    return (run / "params.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run in one process."""

    @cache
    def run(*args: str) -> tuple[bytes, bytes]:
        folder = tmp_path_factory.mktemp("whole")
        with without_figures():
            cli.main([*args, "--out", str(folder / "run")])
        return bits(folder / "run")

    return run


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (2, ()),
        pytest.param(4, (), marks=pytest.mark.slow),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(3, (), marks=pytest.mark.slow),
        pytest.param(2, ("--split", "samples"), marks=pytest.mark.slow),
        pytest.param(3, ("--split", "samples", "--estimator", "iwae", "--chunk", "1"), marks=pytest.mark.slow),
    ],
)
def test_a_run_has_the_bytes_of_one_process_and_the_first_prints(tmp_path, whole, n, options):
    command = [*SHORT, *options]
    end = done(torchrun(n, *FUNCVAE, *command, "--out", "run"), tmp_path)
    assert end.returncode == 0, end.stderr
    assert bits(tmp_path / "run") == whole(*command)
    assert end.stdout.endswith("next: funcvae evaluate run\nnext: funcvae variance run\n")
    assert end.stdout.count("test bound") == 1, "only the first process prints"
    assert end.stderr.count("epoch 2/2, step 20/20") == 1, "one line for each epoch"
    assert "funcvae" not in end.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["processes"] == "any"


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")
@pytest.mark.parametrize("options", [(), ("--split", "samples", "--estimator", "iwae")])
def test_two_gpus_have_the_bytes_of_one(tmp_path, whole, options):
    command = [*SHORT[:-1], "cuda", "--deterministic", *options]
    end = done(torchrun(2, *FUNCVAE, *command, "--out", "run"), tmp_path)
    assert end.returncode == 0, end.stderr
    assert bits(tmp_path / "run") == whole(*command)


def children(parent: int) -> dict[int, int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            if not path.name.isdecimal() or f"\nPPid:\t{parent}\n" not in (path / "status").read_text():
                continue
            environment = dict(line.split("=", 1) for line in (path / "environ").read_text().split("\0") if "=" in line)
        except OSError:  # it has exited
            continue
        if "RANK" in environment:
            found[int(environment["RANK"])] = int(path.name)
    return found


class Started:
    """A running command, whose processes end with the context."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> subprocess.Popen:
        return self.process

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            for pid in [*children(self.process.pid).values(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 4])
def test_any_number_of_processes_resumes_to_the_same_bytes(tmp_path, whole, then):
    with Started(torchrun(2, *FUNCVAE, *LONG, "--out", "run"), tmp_path) as process:
        wait_for_rows(tmp_path / "run", 20, lambda: process.poll() is None)
        pids = list(children(process.pid).values())
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    assert not alive(pids)
    (line,) = re.findall(r"funcvae: stopped after .*", error)
    assert re.fullmatch(r"funcvae: stopped after \d+ of 300 steps; to continue: funcvae train --resume run", line)
    assert "funcvae: error" not in error
    assert not (tmp_path / "run" / "params.safetensors").exists()
    again = [*FUNCVAE, "train", "--resume", "run"]
    end = done(again if then == 1 else torchrun(then, *again), tmp_path)
    assert end.returncode == 0, end.stderr
    assert end.stdout == "run\n"
    assert bits(tmp_path / "run") == whole(*LONG)


@pytest.mark.parametrize(
    ("rank", "n"), [(1, 2), *(pytest.param(r, n, marks=pytest.mark.slow) for r, n in ((0, 2), (0, 3), (2, 4)))]
)
def test_when_a_process_is_killed_the_others_report_it_and_exit(tmp_path, rank, n):
    with Started(torchrun(n, *FUNCVAE, *ENDLESS, "--out", "run"), tmp_path) as process:
        wait_for_rows(tmp_path / "run", 20, lambda: process.poll() is None)
        pids = children(process.pid)
        assert sorted(pids) == list(range(n))
        os.kill(pids[rank], signal.SIGKILL)
        out, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not alive(list(pids.values()))
    assert out == ""
    (line,) = re.findall(r"^.*funcvae: error: .*", error, re.MULTILINE)
    assert f"funcvae: error: process {rank} exited unexpectedly (possibly killed)" in line
    assert not re.search(r'File ".*funcvae/', error)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_restarted_processes_resume_to_the_same_bytes(tmp_path, whole, rank):
    command = [*FUNCVAE, *LONG, "--resume", "auto", "--out", "run"]
    with Started(torchrun(2, *command, restarts=3), tmp_path) as process:
        wait_for_rows(tmp_path / "run", 40, lambda: process.poll() is None)
        os.kill(children(process.pid)[rank], signal.SIGKILL)
        out, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, error
    assert f"funcvae: error: process {rank} exited unexpectedly (possibly killed)" in error
    assert out == "run\n"
    assert bits(tmp_path / "run") == whole(*LONG)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["resumed"]


# Errors are reported once.


def refused(folder: Path, n: int, *args: str) -> str:
    """The only line of an error, when every process exits by itself."""
    program = f"trap '' TERM; {sys.executable} -m funcvae \"$@\"; code=$?; echo $code > code.$RANK; exit $code"
    end = done(torchrun(n, "bash", "-c", program, "funcvae", *args), folder)
    assert end.returncode != 0
    for rank in range(n):
        assert (folder / f"code.{rank}").read_text() == "2\n"
    return one_line(end)


def one_line(end: subprocess.CompletedProcess) -> str:
    said = end.stdout + end.stderr
    assert not re.search(r'File ".*funcvae/', said), said
    lines = re.findall(r"^.*funcvae: error: .*", said, re.MULTILINE)
    assert len(lines) == 1, said
    return lines[0].partition("funcvae: error: ")[2]


@pytest.mark.parametrize(
    ("n", "args", "message"),
    [
        (2, (*SHORT[:4], "--shards", "1", "--device", "cpu"), "there are 2 processes, but shards is 1: use at most 1"),
        pytest.param(
            2, (*SHORT, "--batch", "3"),
            "shards is 4, but each batch has only 3 rows: use at most 3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            3, (*SHORT[:4], "--split", "samples", "--samples", "2", "--device", "cpu"),
            "there are 3 processes, but each datum has only 2 samples: use at most 2", marks=pytest.mark.slow,
        ),
        pytest.param(2, (*SHORT, "--device", "cuda"), "CUDA", marks=pytest.mark.slow),
        pytest.param(2, ("train", "gaussian3d"), "unknown system 'gaussian3d'", marks=pytest.mark.slow),
        pytest.param(2, (*SHORT, "--resume", "auto"), "give --out RUN", marks=pytest.mark.slow),
        pytest.param(
            2, ("evaluate", "run"), "funcvae evaluate runs in one process: start it without torchrun",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_an_error_is_reported_once(tmp_path, n, args, message):
    out = () if "--resume" in args or args[0] != "train" else ("--out", "run")
    assert message in refused(tmp_path, n, *args, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_commands_for_one_process_report_one_error(monkeypatch, capsys, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    for command in sorted(cli.COMMANDS.keys() - cli.SHARED_COMMANDS):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *{"list": ["runs"], "replay": ["run", "0"]}.get(command, ["run"])])
        assert ended.value.code == 2
        line = f"funcvae: error: funcvae {command} runs in one process: start it without torchrun\n"
        assert tuple(capsys.readouterr()) == ("", "" if rank else line)


@pytest.mark.slow
def test_the_error_names_options_that_differ(tmp_path):
    """Each process requests rank + 1 epochs."""
    program = f'trap "" TERM; {sys.executable} -m funcvae train --device cpu --out run --epochs $((RANK + 1))'
    end = done(torchrun(2, "bash", "-c", f"{program}; code=$?; echo $code > code.$RANK; exit $code"), tmp_path)
    assert end.returncode != 0
    assert [(tmp_path / f"code.{rank}").read_text() for rank in range(2)] == ["2\n", "2\n"]
    line = one_line(end)
    assert (
        line
        == "epochs is 1 in process 0 and 2 in process 1: start all processes with the same command, code and settings"
    )
    assert not (tmp_path / "run").exists()


def free_port() -> str:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return str(at.getsockname()[1])


@pytest.mark.slow
def test_a_network_interface_that_does_not_exist_is_named(tmp_path):
    connect = "from funcvae.distributed import process_group\nwith process_group(): pass"
    end = done(torchrun(2, sys.executable, "-c", connect), tmp_path, GLOO_SOCKET_IFNAME="nope0")
    assert "cannot send data to one another: Unable to find address for: nope0; check" in end.stderr
    assert "within" not in end.stderr


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_waits_in_vain_is_an_error(tmp_path, rank):
    world = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    before = time.monotonic()
    end = done([*FUNCVAE, *SHORT, "--patience", "3", "--out", "run"], tmp_path, **world)
    assert time.monotonic() - before < 60
    assert end.returncode == 2
    line = one_line(end)
    assert f"the processes have not connected within 3 s at 127.0.0.1:{world['MASTER_PORT']}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "world",
    [
        pytest.param({"WORLD_SIZE": "two", "RANK": "0"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "one"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "5"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "x"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "99999999"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "nowhere.invalid"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "nowhere.invalid"}, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_environment_is_an_error_of_one_line(tmp_path, world):
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **world}
    end = done([*FUNCVAE, *SHORT, "--patience", "2", "--out", "run"], tmp_path, **there)
    assert end.returncode == 2
    assert one_line(end)
