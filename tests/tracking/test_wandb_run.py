"""Runs of Weights & Biases in its offline mode, read back from its files."""

import json
import struct
from contextlib import nullcontext

import pytest

from funcvae import runs, tracking
from funcvae.errors import Missing, Stopped
from tests.support.tracking import CONFIG, EPOCHS, STEPS, rows, track

pytest.importorskip("wandb", reason="wandb is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import wandb

    wandb.teardown()  # it reads the environment once
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    yield
    wandb.teardown()


def records(path):
    """The records of a .wandb file: a log of LevelDB, whose blocks of 32 KiB hold records or parts of them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of the block
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def logged(folder):
    """Each wandb run in a run folder: its id and project, its configuration, and its rows."""
    import wandb

    wandb.teardown()  # waits until the files are complete
    for path in sorted(folder.glob("wandb/*run-*/*.wandb")):
        found, history, config = None, [], {}
        for record in records(path):
            if record.HasField("run"):
                found = record.run
                config |= {item.key: json.loads(item.value_json) for item in found.config.update}
            if record.HasField("history"):
                items = record.history.item
                history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        yield found, config, history


def test_every_number_and_image_reads_back_with_its_step(tmp_path):
    folder = tmp_path / "a run"
    with tracking.wandb(folder, CONFIG) as tracker:
        assert not folder.exists()
        track(tracker)
    ((run, config, history),) = logged(folder)
    assert (run.project, run.display_name) == ("funcvae", "a run")
    assert {name: config[name] for name in CONFIG} == CONFIG
    shown = [row for row in history if "images/latent/path" in row]
    assert [row["step"] for row in shown] == [120, 240]
    assert (shown[0]["images/x/height"], shown[0]["images/x/width"]) == (2 * (5 + 2), 8 * (7 + 2))
    numbers = [row for row in history if row not in shown]
    assert len(numbers) == EPOCHS * (STEPS + 2)
    for row, known in zip(numbers, rows(), strict=True):
        assert row["step"] == known["step"]
    known = {"bound/train": -297, "grad_norm/train": 4.5, "loss/train": 297, "step": 3}
    assert {name: numbers[3][name] for name in known} == known
    assert numbers[-2]["variance/elbo/encoder"] == 10
    assert numbers[-1]["bound/test"] == -109


def test_a_resumed_run_continues_its_wandb_run(tmp_path):
    made = iter(range(100))
    options = {"epochs": 2, "batch": 1000, "compile": False, "out": str(tmp_path / "run")}
    with pytest.raises(Stopped):
        runs.train(
            "gaussian2d_vae", **options, trackers=[tracking.wandb],
            stop_context=lambda: nullcontext(lambda: next(made) == 13),
        )  # fmt: skip
    runs.resume(tmp_path / "run", trackers=[tracking.wandb])
    (first, _, before), (second, config, after) = logged(tmp_path / "run")
    assert first.run_id == second.run_id
    assert (config["lr"], config["estimator"]) == (1e-3, "elbo")
    assert [row["step"] for row in before + after if "loss/train" in row] == list(range(20))


def test_a_run_tracked_only_when_resumed_logs_its_past_rows(tmp_path):
    past = [row for row in rows() if row["step"] < 5]
    with tracking.wandb(tmp_path, CONFIG, past) as tracker:
        tracker.log({**past[-1], "step": 5})
    ((_, _, history),) = logged(tmp_path)
    assert [row["step"] for row in history] == list(range(6))


def test_an_error_of_wandb_stops_the_tracker_but_not_the_run(tmp_path, monkeypatch, capsys):
    import wandb

    def fails(**options):
        raise wandb.Error("no\nconnection")

    monkeypatch.setattr(wandb, "init", fails)
    with tracking.wandb(tmp_path, CONFIG) as tracker:
        track(tracker)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "funcvae: wandb stopped; the run continues without it: no connection"


def test_without_a_key_it_says_what_to_do_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(Missing, match="run `wandb login`, or set WANDB_MODE=offline"), tracking.wandb(tmp_path, CONFIG):
        pass
