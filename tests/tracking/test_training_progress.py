"""The progress of training: a bar on a terminal, and otherwise a line for each epoch."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from contextlib import contextmanager

import pytest

from funcvae.tracking import TrainingProgress, speed

STEPS = 9_840_000


@contextmanager
def terminal(monkeypatch):
    """Makes stderr a terminal of 80 columns; yields a function that returns what was written since its last call."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(writer, "w") as stderr, os.fdopen(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stderr)

        def written():
            parts = []
            while select.select([screen], [], [], 0)[0]:
                parts.append(screen.read(2**16).decode())
            return "".join(parts)

        yield written


def step(number, bound=-98.123):
    return {"kind": "step", "epoch": 0, "step": number, "loss": 12345.678, "bound": bound, "grad_norm": 1.0}


def epoch(number, steps, bound=-99.5):
    return {"kind": "epoch", "epoch": number, "step": steps, "train_bound": bound, "test_bound": -97.25}


def test_a_speed_has_at_least_two_digits():
    assert speed(5201, 1.0) == "5,201 steps a second"
    assert speed(1, 1.9) == "0.53 steps a second"


@pytest.mark.parametrize("with_loss", [False, True])
def test_on_80_columns_the_bar_shows_step_bounds_and_time_left_whole(monkeypatch, with_loss):
    with terminal(monkeypatch) as written:
        with TrainingProgress("run", STEPS, 3280, STEPS - 2, with_loss=with_loss) as progress:
            progress.stepped()
            progress.log(step(STEPS - 2))
            progress.log(epoch(3279, STEPS))
        shown = next(line for line in reversed(written().split("\r")) if "test" in line)
    assert len(shown.rstrip()) <= 80
    loss = "loss 12345.68, " if with_loss else ""
    assert re.match(rf"step 98399\d\d/9840000 \|.*\| {loss}bound -98.12, test -97.25, \d+ s left", shown)


@pytest.mark.parametrize("with_loss", [False, True])
def test_without_a_terminal_each_epoch_is_one_line(capsys, with_loss):
    with TrainingProgress("run", 4, 2, with_loss=with_loss) as progress:
        for number in range(2):
            progress.stepped()
            progress.log(step(number, bound=-3.0))
        progress.log(epoch(0, 2))
    shown = capsys.readouterr().err
    assert "\r" not in shown
    loss = r"last loss 12345\.68, " if with_loss else ""
    line = rf"run: epoch 1/2, step 2/4, {loss}bound -99\.50, test bound -97\.25, \d+ s, \d+ s left\n"
    assert re.fullmatch(line, shown)


def test_a_clock_runs_while_the_step_compiles(monkeypatch):
    with terminal(monkeypatch) as written, TrainingProgress("run", 4, 2, compiling=True) as progress:
        time.sleep(1.2)
        progress.stepped()
        assert "compiling the step: 1 s" in written()
        time.sleep(0.6)
        assert written() == ""


def test_without_a_terminal_the_compilation_is_two_lines(capsys):
    with TrainingProgress("run", 4, 2, compiling=True) as progress:
        time.sleep(0.1)
        progress.stepped()
        progress.stepped()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "run: compiling the step"
    assert second == "run: the first step took 0 s, with its compilation"


def test_a_long_run_announces_its_duration_once_at_the_measured_speed(capsys, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    with TrainingProgress("run", 1_001_001, 10) as progress:
        clock["now"] = 100.0  # the first step, with its compilation
        progress.stepped()
        clock["now"] = 110.0
        for _ in range(1000):
            progress.stepped()
        progress.log(step(999))
        progress.log(step(1000))
    shown = capsys.readouterr().err
    assert shown == "run: at 100 steps a second, training takes about 2 h 46 min\n"
    clock["now"] = 0.0
    with TrainingProgress("short", 2000, 10) as progress:
        progress.stepped()
        clock["now"] = 10.0
        for _ in range(1000):
            progress.stepped()
        progress.log(step(1000))
    assert "takes about" not in capsys.readouterr().err
