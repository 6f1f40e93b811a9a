"""`verify` and `replay` reproduce runs bit by bit, and name differences."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import funcvae as fv
from funcvae import cli, runs, tracking
from funcvae.errors import BadData, BadValue, Missing, NonFinite
from funcvae.runs import environment
from funcvae.runs.folder import read_config
from funcvae.runs.prepare import prepare
from funcvae.train import checkpoint, loop
from tests.support.figures import without_figures

GAUSSIAN = ["train", "--epochs", "3", "--batch", "1000", "--samples", "2", "--checkpoint-every", "7"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with without_figures():
        cli.main([*GAUSSIAN, "--out", str(folder)])
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def spoil(path: Path, step: int, field: str, change) -> None:
    """Changes a number in a row of metrics.jsonl."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["step"] == step and field in row:
            row[field] = change(row[field])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("steps", "compared"), [(None, 1), (1, 0), (10, 1), (21, 2), (30, 5), (999, 5)])
def test_a_run_is_identical_to_the_bit(run, steps, compared):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    verdict = runs.verify(run, steps)
    assert verdict.steps == min(steps or 10, 30)
    assert verdict.first_difference is None
    assert verdict.environment == {}
    assert verdict.largest_difference == 0
    assert verdict.parameter_checks == compared, "each epoch's SHA-256, and the checkpoints that stayed: 28 and 30"
    assert verdict.holds
    assert "identical to the bit" in str(verdict)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("field", "step", "what"),
    [
        ("loss", 4, "loss at step 4"),
        ("bound", 0, "bound at step 0"),
        ("grad_norm", 9, "grad_norm at step 9"),
        ("test_bound", 10, "test_bound at step 10"),
        ("train_bound", 10, "train_bound at step 10"),
    ],
)
def test_a_difference_in_the_last_bit_is_found(run, capsys, field, step, what):
    spoil(run / "metrics.jsonl", step, field, lambda value: math.nextafter(value, math.inf))
    verdict = runs.verify(run)
    assert not verdict.holds
    assert verdict.first_difference.startswith(what)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verify", str(run)])
    assert exit_.value.code == 1
    assert "NOT identical, though the environment is the same" in capsys.readouterr().out


def test_a_difference_in_the_parameters_is_found(run):
    spoil(run / "metrics.jsonl", 10, "params_sha256", lambda digest: digest[::-1])
    assert runs.verify(run).first_difference == "the parameters after 10 steps"
    newest = checkpoint.path_of(run / "checkpoints", 28)
    setup = prepare(read_config(run), runs.load_data)
    ts, about = checkpoint.load(newest, setup.start)
    moved = fv.tree.map(torch.clone, ts.params)
    moved["encoder"]["shared.0.bias"][0] += 1e-7
    checkpoint.save(newest, ts._replace(params=moved), about)
    spoil(run / "metrics.jsonl", 10, "params_sha256", lambda digest: digest[::-1])
    verdict = runs.verify(run, 29)
    assert verdict.first_difference == "the checkpoint after 28 steps"
    assert 0 < verdict.largest_difference < 1e-6


@pytest.mark.parametrize(
    ("field", "value"), [("threads", 64), ("cpu", "another"), ("torch", "1.0"), ("device", "H100")]
)
def test_in_another_environment_the_tolerance_applies(run, field, value):
    manifest = json.loads((run / "manifest.json").read_text())
    (manifest["versions"] if field == "torch" else manifest)[field] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    verdict = runs.verify(run)
    if field == "threads":  # a setting, which verify restores
        assert verdict.environment == {}
        return
    assert list(verdict.environment) == [field]
    assert verdict.holds
    assert f"{field} was {value}" in str(verdict)
    spoil(run / "metrics.jsonl", 4, "loss", lambda loss: loss * (1 + 1e-5))
    verdict = runs.verify(run)
    assert verdict.holds
    assert verdict.largest_difference == pytest.approx(1e-5, rel=1e-3)
    assert "within the tolerance of 0.0001" in str(verdict)
    assert not runs.verify(run, tolerance=1e-6).holds
    assert "NOT within" in str(runs.verify(run, tolerance=1e-6))


def test_the_number_of_threads_is_set_and_restored(run, monkeypatch):
    before = torch.get_num_threads()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "threads": 3}))
    seen = []
    fit = loop.fit_task
    monkeypatch.setattr(loop, "fit_task", lambda *a, **k: (seen.append(torch.get_num_threads()), fit(*a, **k))[1])
    runs.verify(run, 2)
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_an_incomplete_last_row_is_ignored(run):
    content = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(content[:6]) + content[6][:9])
    verdict = runs.verify(run)
    assert verdict.steps == 6
    assert verdict.holds


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), Missing, "metrics.jsonl is missing"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b""), BadData, "has no steps to compare with"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"[]\n"), BadData, "line 1, does not hold a JSON object"),
        (lambda run: spoil(run / "metrics.jsonl", 3, "step", lambda s: 7), BadData, "in place of step 3"),
        (lambda run: spoil(run / "metrics.jsonl", 3, "loss", lambda s: "x"), BadData, "it must be a number"),
        (lambda run: (run / "manifest.json").write_bytes(b"{}"), BadData, "versions is missing"),
    ],
)
def test_a_run_that_cannot_be_compared_is_an_error(run, change, error, message):
    change(run)
    with pytest.raises(error, match=message):
        runs.verify(run)


def test_wrong_arguments(run):
    with pytest.raises(BadValue, match="steps is 0"):
        runs.verify(run, 0)
    with pytest.raises(BadValue, match="tolerance is -1"):
        runs.verify(run, tolerance=-1)
    with pytest.raises(BadValue, match="has no step 30: its steps are 0 to 29"):
        runs.replay(run, 30)


@pytest.mark.parametrize("step", [0, 6, 13, 14, 29])
def test_any_step_is_replayed_from_the_nearest_checkpoint(run, capsys, step):
    rows = {row["step"]: row for row in tracking.MetricsReader(run / "metrics.jsonl") if "loss" in row}
    config, found = runs.replay(run, step)
    assert config.system.name == "gaussian2d_vae"
    assert found.metrics._asdict() == {name: rows[step][name] for name in found.metrics._fields}
    assert int(found.before.step) == step
    capsys.readouterr()
    out = run.parent / "step.safetensors"
    cli.main(["replay", str(run), str(step), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: step {step} of elbo with 2 samples, a batch of 1000"
    assert lines[-1] == str(out)
    stored = load_file(out)
    assert torch.equal(stored["rows"], found.rows)
    assert torch.equal(stored["log_w"], found.log_w)
    assert {name for name in stored if name.startswith("grads/encoder")}


def test_a_replay_names_rows_that_are_not_finite(run):
    from funcvae.cli.reproduce import _describe

    _, found = runs.replay(run, 5)
    log_w = found.log_w.clone()
    log_w[1, 7] = float("nan")
    lines = _describe(found._replace(log_w=log_w)).splitlines()
    line = next(line for line in lines if line.startswith("log_w"))
    assert line.endswith(f"1 (rows {int(found.rows[7])})")


def test_the_manifest_has_everything_that_may_change_bits(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["versions"].keys() >= {"python", "torch", "numpy", "funcvae"}
    assert manifest.keys() >= {
        "command", "revision", "platform", "cpu", "cpu_capability", "device", "threads", "float32_matmul_precision",
        "deterministic", "compile", "seed", "data", "data_sha256",
    }  # fmt: skip
    assert manifest["revision"] is None or len(manifest["revision"].rstrip("+")) == 40
    assert environment.differences(manifest, manifest) == {}
    assert list(environment.differences(manifest, {**manifest, "cpu_capability": "?"})) == ["cpu_capability"]


@pytest.mark.usefixtures("no_figures")
def test_deterministic_is_set_and_restored(tmp_path, monkeypatch):
    seen = []
    fit = loop.fit_task

    def looked(*args, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return fit(*args, **options)

    monkeypatch.setattr("funcvae.train.loop.fit_task", looked)
    cli.main([*GAUSSIAN, "--deterministic", "--out", str(tmp_path / "a")])
    cli.main([*GAUSSIAN, "--out", str(tmp_path / "b")])
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["deterministic"] is True
    for name in ("params.safetensors", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_operation_without_a_deterministic_algorithm_is_an_error(tmp_path, monkeypatch):
    def fit(*args, **options):
        raise RuntimeError("foo_cuda does not have a deterministic implementation, but you set 'torch.use_…'. You can")

    monkeypatch.setattr("funcvae.train.loop.fit_task", fit)
    config = runs.configure("gaussian2d_vae", epochs=1, out=str(tmp_path / "run"), deterministic=True)
    with pytest.raises(BadValue, match="deterministic is not possible: foo_cuda does not have"):
        runs.run(config)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_flipped_bit_of_the_parameters_is_an_error(run):
    path = run / "params.safetensors"
    spoiled = bytearray(path.read_bytes())
    spoiled[-3] ^= 1
    path.write_bytes(spoiled)
    with pytest.raises(BadData, match="is damaged: the SHA-256 of its tensors is wrong"):
        runs.load(run)


def test_an_edited_configuration_is_an_error(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"samples": config["samples"] + 1}))
    for again in (runs.load, runs.resume, lambda path: runs.verify(path, 2), lambda path: runs.replay(path, 2)):
        with pytest.raises(BadData, match="was changed after the run started"):
            again(run)
    (run / "config.json").write_text(json.dumps(config | {"keep": 7}))  # does not change the result
    assert runs.verify(run, 2).first_difference is None


def test_a_run_that_became_nan_is_verified_up_to_there(tmp_path):
    config = runs.configure(
        "gaussian2d_vae", epochs=1, batch=1000, lr=1e38, checkpoint_every=1, out=str(tmp_path / "run")
    )
    with pytest.raises(NonFinite, match="funcvae replay"):
        runs.run(config)
    verdict = runs.verify(tmp_path / "run")
    assert verdict.holds
    assert verdict.steps >= 1
