"""Kills a run repeatedly with SIGKILL and resumes it until it ends. Its files must equal those of a run without kills.

python tests/support/faults.py FOLDER [--kills 50] [--kinds time written ...] [--epochs 6] [--seed 0]

Every attempt is a forked process, so that torch and its compiler are imported only once. Half of them are killed at a
random time, the others between two stages of a write (`files._between`): a file is opened, written, synced, renamed,
whole. When a run ends, another starts, until there have been enough kills and at least one of every kind. Prints the
number of kills of each kind.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch._dynamo  # otherwise every forked process would import it again

from funcvae import runs
from funcvae._support import files

STAGES = ("opened", "written", "synced", "renamed", "whole")
KINDS = ("time", *STAGES)


def config_of(out: Path, epochs: int) -> runs.Config:
    return runs.configure(
        "gaussian2d_vae", epochs=epochs, samples=2, checkpoint_every=4, sample_each_step=True, out=str(out)
    )


def train_or_resume(out: Path, epochs: int) -> None:
    """Starts a run, or resumes it if it was started before."""
    if (out / "config.json").is_file():
        runs.resume(out)
    else:
        runs.run(config_of(out, epochs))


def attempt(out: Path, epochs: int, kill: tuple[str, float]) -> int:
    """Trains in a forked process. Returns its exit status, or minus the signal that ended it."""
    kind, when = kill
    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars
            left = [when]

            def between(stage: str, path: Path) -> None:
                left[0] -= stage == kind
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            if kind in STAGES:
                files._between = between
            train_or_resume(out, epochs)
            status = 0
        finally:
            os._exit(status)
    if kind == "time":
        time.sleep(when)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_rows(run: Path, n: int = 1, alive: Callable[[], bool] = lambda: True) -> None:
    """Waits until training has written n rows. Raises after a minute, or if `alive` returns False."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= n:
            return
        assert alive(), "training ended before it wrote the rows"
        time.sleep(0.02)
    raise AssertionError("no rows after a minute")


def contents(run: Path) -> dict[str, bytes]:
    """Every file that must not depend on where a run was killed."""
    left_out = ("manifest.json", "config.json", "times.jsonl", "result.json")
    paths = [path for path in run.rglob("*") if path.is_file() and path.name not in left_out]
    last = max(path for path in paths if path.parent.name == "checkpoints")
    kept = [path for path in paths if path == last or path.parent.name != "checkpoints"]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept}


def time_or_one_stage(kinds: Sequence[str], choose: random.Random) -> list[str]:
    """The kinds to choose from: a random time, and one stage."""
    stages = [kind for kind in kinds if kind != "time"]
    return [kind for kind in kinds if kind == "time"] + ([choose.choice(stages)] if stages else [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a process with threads cannot be forked
    choose = random.Random(args.seed)
    whole = args.folder / "whole"
    assert attempt(whole, args.epochs, ("never", 0)) == 0, "the run without kills failed"
    expected = contents(whole)
    killed: Counter[str] = Counter()
    ended = 0
    while sum(killed.values()) < args.kills or not killed.keys() >= set(args.kinds):
        run = args.folder / f"run {ended}"
        kills = 0
        while True:
            missing = [kind for kind in args.kinds if kind not in killed]
            enough = kills > 40 or (not missing and sum(killed.values()) >= args.kills)
            kind = "never" if enough else choose.choice(missing or time_or_one_stage(args.kinds, choose))
            when = choose.uniform(0, 1.2) if kind == "time" else choose.randrange(0, 4 if kills % 2 else 12)
            status = attempt(run, args.epochs, (kind, when))
            if status == 0:
                break
            if status != -signal.SIGKILL:
                print(f"attempt {kills} of {run} ({kind}, {when}) ended with {status}", file=sys.stderr)
                return 1
            killed[kind] += 1
            kills += 1
        found = contents(run)
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if wrong:
            print(f"{run}, killed {kills} times, differs in {', '.join(sorted(wrong))}", file=sys.stderr)
            return 1
        shutil.rmtree(run)
        ended += 1
    where = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    print(f"{sum(killed.values())} kills ({where}); {ended} runs ended with the bits of the run without kills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
