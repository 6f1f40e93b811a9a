"""Resumed runs have the same bytes as uninterrupted ones."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import cli, runs, tracking
from funcvae._support import files
from funcvae.errors import BadData, BadValue, InUse, Missing, NonFinite, Stopped
from funcvae.runs.config import config_sha256
from funcvae.runs.folder import times_in
from funcvae.train import checkpoint
from tests.support.faults import wait_for_rows
from tests.support.figures import without_figures
from tests.support.specs import slow_but

SYSTEMS = list(fv.models.SYSTEMS)
TRAIN, BATCH = 12, 5  # three steps an epoch, the last one short
GIVEN = {"epochs": 2, "batch": BATCH, "samples": 2}


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """A file with twelve training and five test items of a system's shape."""
    folder = tmp_path_factory.mktemp("data")

    def file(system: str) -> str:
        shape = [16 if n is None else n for n in fv.models.SYSTEMS[system].recipe.shape]
        path = folder / f"{'x'.join(map(str, shape))}.npz"
        if not path.exists():
            x = fv.random.uniform(fv.random.key(0), (TRAIN + 5, *shape)).numpy()
            np.savez(path, train=x[:TRAIN], test=x[TRAIN:])
        return str(path)

    return file


@pytest.fixture
def config_of(data_of, tmp_path):
    def config(out: str, system: str = "gaussian2d_vae", **options) -> runs.Config:
        given = {"data": data_of(system), **GIVEN, **options}
        return runs.configure(system, out=str(tmp_path / out), **given)

    return config


@pytest.fixture(scope="module")
def whole(data_of, tmp_path_factory):
    """An uninterrupted run on the same data, without figures; each is trained once."""

    @cache
    def run(**options) -> Path:
        out = str(tmp_path_factory.mktemp("whole") / "run")
        with without_figures():
            return runs.run(
                runs.configure("gaussian2d_vae", out=out, data=data_of("gaussian2d_vae"), **GIVEN, **options)
            )

    return run


def after(steps: int):
    """A `stop_context` that stops a run after so many steps."""

    def stop_context():
        made = iter(range(1, 1000))
        return nullcontext(lambda: next(made) >= steps)

    return stop_context


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run that must not depend on where it stopped: parameters, metrics, the last checkpoint, figures
    and samples."""
    found = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    last = max(name for name in found if name.startswith("checkpoints/"))
    left_out = {"config.json", "manifest.json", "times.jsonl", "result.json", ".lock"}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name not in left_out and (name == last or not name.startswith("checkpoints/"))
    }


def assert_same(run: Path, whole: Path) -> None:
    a, b = contents(run), contents(whole)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    results = [{**runs.read_result(folder), "seconds": 0, "steps_per_second": 0} for folder in (run, whole)]
    assert results[0] == results[1]


def stopped(config: runs.Config, *at: int) -> Path:
    """A run that was stopped and resumed every so many steps until its end."""
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(at[0]))
    for steps in at[1:]:
        with pytest.raises(Stopped):
            runs.resume(config.out, stop_context=after(steps))
    return runs.resume(config.out)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "system", slow_but(("gaussian2d_vae", "mnist_vae", "mnist_bn_vae", "burda_vae", "sbn_vae"), SYSTEMS)
)
def test_every_system_resumes_to_the_same_bits(config_of, system):
    """Stops in the first epoch, at its end, and in the second one. Covers BatchNorm's statistics, Adam's state and a
    schedule (`burda_vae`'s learning rate falls after its first epoch)."""
    options = {"estimator": "iwae"} if system == "burda_vae" else {}
    whole = runs.run(config_of("whole", system, **options))
    run = stopped(config_of("stopped", system, **options), 2, 1, 1)
    assert_same(run, whole)
    assert {"params.safetensors", "metrics.jsonl"} <= contents(run).keys()


def test_a_resumed_run_has_the_same_figures(config_of):
    whole = runs.run(config_of("whole", "mnist_vae"))
    run = stopped(config_of("stopped", "mnist_vae"), 4)
    assert_same(run, whole)
    assert {"figures/training.png", "figures/latent_scatter.png"} <= contents(run).keys()


@pytest.mark.usefixtures("no_figures")
def test_a_run_resumes_only_with_the_same_chunk(config_of):
    options = {"samples": 5, "chunk": 2}
    whole = runs.run(config_of("whole", **options))
    run = stopped(config_of("stopped", **options), 2, 1)
    assert_same(run, whole)
    with pytest.raises(BadValue, match="chunk"):
        runs.resume(run, runs.Options(chunk=3))
    assert runs.verify(run).holds


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("k", slow_but((1, 3, 6), range(1, 7)))
def test_a_run_resumes_from_any_step(config_of, whole, k):
    """With samples and the variance; also stops after the last step."""
    options = {"sample_each_step": True, "variance_every": 2, "variance_replicates": 3, "checkpoint_every": 4}
    run = stopped(config_of("stopped", **options), k)
    assert_same(run, whole(**options))
    assert "samples.npy" in contents(run)
    rows = list(tracking.MetricsReader(run / "metrics.jsonl"))
    assert [row["step"] for row in rows if "loss" in row] == list(range(6))
    assert len([row for row in rows if "variance/elbo/encoder" in row]) == 3


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("damage", [b"", b'{"step": 5, "ep', None])
def test_the_times_of_a_resumed_run_continue(config_of, damage):
    """Without its last line the file has the steps before it; without the file, the clock starts at 0."""
    config = config_of("run")  # two epochs of three steps
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(4))
    path = Path(config.out, "times.jsonl")
    before = times_in(path)
    assert [(row["step"], row["epoch"]) for row in before] == [(3, 0), (4, 1)]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + damage)
    runs.resume(config.out)
    rows = times_in(path)
    assert [row["step"] for row in rows] == [*([3, 4] if damage is not None else []), 6]
    assert damage is None or rows[:2] == before
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert runs.read_result(config.out)["seconds"] == seconds[-1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("system", ["burda_vae", "mnist_bn_vae"])
def test_a_run_on_cuda_resumes_to_the_same_bits(config_of, system):
    options = {"device": "cuda", "deterministic": True}
    whole = runs.run(config_of("whole", system, **options))
    assert_same(stopped(config_of("stopped", system, **options), 2, 2), whole)


@pytest.mark.usefixtures("no_figures")
def test_more_epochs_give_the_same_bits_as_a_longer_run(config_of):
    options = {"sample_each_step": True}
    whole = runs.run(config_of("whole", epochs=4, **options))
    run = runs.run(config_of("run", **options))
    runs.resume(run, runs.Options(epochs=4))
    assert_same(run, whole)
    assert json.loads((run / "config.json").read_text())["epochs"] == 4
    manifest = json.loads((run / "manifest.json").read_text())
    assert [each["step"] for each in manifest["resumed"]] == [6]
    with pytest.raises(BadValue, match="has 12 steps, and epochs is 1, which is 3 steps"):
        runs.resume(run, runs.Options(epochs=1))


def test_a_run_without_the_latest_fields_can_be_looked_at_after_it_was_resumed(config_of):
    path = runs.run(config_of("run"))
    content, manifest = (files.read_json(path / name) for name in ("config.json", "manifest.json"))
    del content["test_every"]  # as if this version had added it
    files.write(path / "config.json", files.as_json(content))
    files.write(path / "manifest.json", files.as_json(manifest | {"config_sha256": config_sha256(content)}))
    runs.resume(path, runs.Options(epochs=3))
    assert files.read_json(path / "config.json")["test_every"] == 1
    assert runs.load(path).config.epochs == 3
    files.write(path / "config.json", files.as_json(files.read_json(path / "config.json") | {"samples": 3}))
    with pytest.raises(BadData, match="was changed"):
        runs.load(path)


def test_a_finished_run_does_not_change(config_of, capsys, monkeypatch):
    run = runs.run(config_of("run"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr("funcvae.train.loop.fit_task", None)
    cli.main(["train", "--resume", str(run)])
    assert f"next: funcvae evaluate {run}\n" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("lost", ["params.safetensors", "figures/training.png"])
def test_a_run_killed_at_its_end_is_finished(config_of, lost):
    """If the parameters are missing, damaged or old, all results are written again."""
    whole = runs.run(config_of("whole"))
    run = runs.run(config_of("run"))
    (run / lost).unlink()
    if lost != "params.safetensors":
        (run / "params.safetensors").write_bytes(b"half")
    runs.resume(run)
    assert_same(run, whole)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.1}, "lr was that of the recipe and is '0.1' now"),
        ({"batch": 3, "samples": 7}, "batch was 5 and is 3 now, samples was 2 and is 7 now"),
        ({"system": "mnist_vae"}, "run is a run of gaussian2d_vae, not of mnist_vae"),
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"deterministic": True}, "deterministic was False and is True now"),
    ],
)
def test_the_error_names_options_that_may_not_change(config_of, given, message):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(2))
    before = {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    with pytest.raises(BadValue, match=r"cannot be resumed with other settings|is a run of") as raised:
        runs.resume(config.out, runs.Options(**given))
    assert message in str(raised.value)
    assert {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_figures")
def test_some_options_may_change(config_of, whole, tmp_path, data_of):
    """The locations of data and run, and the number of checkpoints."""
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(2))
    moved, elsewhere = tmp_path / "moved", tmp_path / "points.npz"
    Path(config.out).rename(moved)
    elsewhere.write_bytes(Path(data_of("gaussian2d_vae")).read_bytes())
    runs.resume(moved, runs.Options(data=str(elsewhere), checkpoint_every=1, keep=3))
    assert list(checkpoint.in_folder(moved / "checkpoints")) == [4, 5, 6]
    a, b = contents(moved), contents(whole())
    assert [name for name in a if a[name] != b[name]] == []
    assert json.loads((moved / "config.json").read_text())["out"] == str(moved)


def test_other_data_are_an_error(config_of, tmp_path):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(2))
    np.savez(tmp_path / "others.npz", train=np.ones((TRAIN, 2)), test=np.zeros((5, 2)))
    with pytest.raises(BadData, match=r"others\.npz is not the data that .*run was trained on"):
        runs.resume(config.out, runs.Options(data=str(tmp_path / "others.npz")))


# What is on the disk after a crash.


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "tail", [b'{"epoch": 0, "st', b'{"epoch": 0, "step": 4, "loss": 1.0, "bound": 1}\n', b"\0" * 5000]
)
def test_rows_after_the_checkpoint_are_written_again(config_of, whole, tail):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(4))
    with Path(config.out, "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert_same(runs.resume(config.out), whole())


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_checkpoint_is_skipped(config_of, whole, capsys):
    config = config_of("run", checkpoint_every=2)
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(5))
    newest = Path(config.out, "checkpoints", "step-000000000005.safetensors")
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1  # one bit of a tensor: only the SHA-256 changes
    newest.write_bytes(content)
    runs.resume(config.out)
    error = capsys.readouterr().err
    assert "does not have" not in error
    assert "is damaged: the SHA-256 of its tensors is wrong; resuming from step 4" in error
    assert_same(Path(config.out), whole())


@pytest.mark.usefixtures("no_figures")
def test_without_an_intact_checkpoint_nothing_is_written(config_of):
    run = runs.run(config_of("run"))
    (only,) = checkpoint.in_folder(run / "checkpoints").values()
    only.write_bytes(b"nothing")
    with pytest.raises(BadData, match="not a complete safetensors file"):
        runs.resume(run)
    only.unlink()
    with pytest.raises(Missing, match="has no checkpoint to resume from"):
        runs.resume(run)
    assert (run / "params.safetensors").is_file()


def test_lost_rows_are_an_error(config_of):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(4))
    metrics = Path(config.out, "metrics.jsonl")
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:2]))
    with pytest.raises(BadData, match=r"metrics\.jsonl has lost rows"):
        runs.resume(config.out)
    metrics.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"loss"', b'"lost"'), *lines[3:]]))
    with pytest.raises(BadData, match=r"do not match|damaged"):
        runs.resume(config.out)


@pytest.mark.usefixtures("no_figures")
def test_a_run_killed_before_its_first_checkpoint_starts_again(config_of, whole):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(4))
    run = Path(config.out)
    (run / "checkpoints" / "step-000000000004.safetensors").unlink()
    assert_same(runs.resume(run), whole())
    other = config_of("other")
    with pytest.raises(Stopped):
        runs.run(other, stop_context=after(1))
    for path in ["manifest.json", "metrics.jsonl", "checkpoints/step-000000000001.safetensors"]:
        Path(other.out, path).unlink()
    assert_same(runs.resume(other.out), whole())


@pytest.mark.usefixtures("no_figures")
def test_partial_files_are_removed(config_of):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(4))
    run = Path(config.out)
    left = [run / ".params.safetensors.123.partial", run / "checkpoints" / ".step-000000000005.safetensors.9.partial"]
    for path in left:
        path.write_bytes(b"half")
    runs.resume(run)
    assert not any(path.exists() for path in left)


@pytest.mark.usefixtures("no_figures")
def test_the_folder_of_a_run_killed_at_once_can_be_used(config_of):
    config = config_of("run")
    Path(config.out).mkdir()
    Path(config.out, ".lock").touch()
    Path(config.out, ".config.json.77.partial").write_bytes(b"{")
    runs.run(config)
    assert not Path(config.out, ".config.json.77.partial").exists()


def test_checkpoints_sort_by_step_and_prune_keeps_the_newest(tmp_path):
    steps = [0, 9, 10, 99, 100, 12345, 10**9]
    for step in steps:
        checkpoint.save(checkpoint.path_of(tmp_path, step), {"step": torch.tensor(step)}, {})
    (tmp_path / "other.safetensors").touch()
    names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("step"))
    assert [int(name[5:17]) for name in names] == steps
    assert list(checkpoint.in_folder(tmp_path)) == steps
    checkpoint.prune(tmp_path, 2)
    assert list(checkpoint.in_folder(tmp_path)) == steps[-2:]
    checkpoint.prune(tmp_path, 0)
    assert list(checkpoint.in_folder(tmp_path)) == steps[-1:], "at least one stays"


# One folder, one writer.


@pytest.mark.usefixtures("no_figures")
def test_two_processes_cannot_resume_one_run(config_of):
    config = config_of("run")
    with pytest.raises(Stopped):
        runs.run(config, stop_context=after(2))
    with files.lock(Path(config.out)):
        with pytest.raises(InUse, match="is in use: another process writes there"):
            runs.resume(config.out)
        with pytest.raises(InUse), files.lock(Path(config.out)):
            pass
    runs.resume(config.out)


def test_a_new_run_in_a_folder_in_use_is_an_error(config_of):
    config = config_of("run")
    with files.lock(Path(config.out)), pytest.raises(InUse):
        runs.run(config)


# What stops a run.


def test_a_run_with_nan_names_the_replay_command_and_keeps_the_last_finite_state(config_of):
    """The learning rate grows until the numbers overflow."""
    config = config_of("run", lr=1e4, epochs=40, checkpoint_every=1)
    with pytest.raises(NonFinite, match=r"to see that step: funcvae replay \S+run (\d+)$") as raised:
        runs.run(config)
    step = raised.value.step
    newest = max(checkpoint.in_folder(Path(config.out, "checkpoints")))
    assert newest <= step + 1
    _, found = runs.replay(config.out, step)
    assert not all(np.isfinite(float(value)) for value in found.metrics) or not np.isfinite(
        float(fv.tree.norm(found.after.params))
    )
    assert np.isfinite(float(fv.tree.norm(found.before.params)))
    assert int(str(raised.value).split()[-1]) == step
    with pytest.raises(NonFinite):
        runs.resume(config.out)


def trains(*args: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "funcvae", "train", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("name", "status"), [pytest.param("SIGINT", 130, marks=pytest.mark.slow), ("SIGTERM", 143)])
def test_a_signal_stops_a_run_after_its_step_with_a_checkpoint(tmp_path, name, status):
    run = tmp_path / "a run"
    process = trains("--epochs", "1000000", "--out", str(run))
    wait_for_rows(run)
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == ""
    assert "funcvae: stopping after this step; a second signal stops at once" in error
    last = error.splitlines()[-1]
    (step,) = checkpoint.in_folder(run / "checkpoints")
    assert last == f"funcvae: stopped after {step:,} of 10,000,000 steps; to continue: funcvae train --resume '{run}'"
    assert "Traceback" not in error
    rows = [row["step"] for row in tracking.MetricsReader(run / "metrics.jsonl") if "loss" in row]
    assert rows == list(range(step))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """Within a step that does not end, the first signal waits and the second one does not."""
    program = (
        "import sys, time; from funcvae import cli; from funcvae.train import loop\n"
        "def fit(*args, **options):\n"
        "    print('begun', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "loop.fit_task = fit\n"
        "cli.main(['train', '--out', sys.argv[1]])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


# The same elsewhere.


@pytest.mark.usefixtures("no_figures")
def test_tensorboard_shows_a_resumed_run_without_a_gap(config_of):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(run):
        events = EventAccumulator(str(run))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    whole = runs.run(config_of("whole"), trackers=[tracking.tensorboard])
    config = config_of("run", checkpoint_every=3)
    with pytest.raises(Stopped):
        runs.run(config, trackers=[tracking.tensorboard], stop_context=after(4))
    Path(config.out, "checkpoints", "step-000000000004.safetensors").unlink()  # as if killed: step 3 is shown twice
    runs.resume(config.out, trackers=[tracking.tensorboard])
    assert scalars(config.out) == scalars(whole)


def test_bits_do_not_depend_on_hash_seed_folder_locale_or_time_zone(data_of, tmp_path):
    """Compares this process with another one."""
    command = ["mnist_bn_vae", "--data", data_of("mnist_bn_vae"), "--epochs", "1", "--batch", "5", "--no-compile"]
    cli.main(["train", *command, "--out", str(tmp_path / "run")])
    env = {"PYTHONHASHSEED": "4242", "LC_ALL": "C", "TZ": "Pacific/Auckland", "LANG": "tr_TR.UTF-8"}
    cwd = tmp_path / "other folder"
    cwd.mkdir()
    process = trains(*command, "--out", "run", cwd=cwd, env={**os.environ, **env})
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert_same(cwd / "run", tmp_path / "run")


def test_the_order_of_parameters_changes_no_bit():
    """With parameters in another order, gradients, their norm and the update stay the same."""
    model = fv.models.mnist_bn_vae()
    opt, estimator = fv.optim.adam(), fv.estimators.iwae()
    start = fv.train.init(model, opt, fv.random.key(0))
    turned = start._replace(
        params=backwards(start.params), state=backwards(start.state), opt_state=opt.init(backwards(start.params))
    )
    x = fv.random.uniform(fv.random.key(1), (12, 1, 28, 28))
    a, history = fv.train.fit(start, model, estimator, opt, x, batch=5, samples=2, compile=False)
    b, other = fv.train.fit(turned, model, estimator, opt, x, batch=5, samples=2, compile=False)
    assert list(b.params["encoder"]) != list(a.params["encoder"])
    assert fv.tree.sha256(a._asdict() | {"opt_state": 0 * a.step}) == fv.tree.sha256(
        b._asdict() | {"opt_state": 0 * b.step}
    )
    np.testing.assert_array_equal(history.grad_norm, other.grad_norm)


def backwards(tree):
    return {name: backwards(value) for name, value in reversed(tree.items())} if isinstance(tree, dict) else tree
