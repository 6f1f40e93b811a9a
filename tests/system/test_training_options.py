"""Options of `funcvae train` that say how to train: optimizer, learning rate, clipping, early stopping, streams."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import cli, runs
from funcvae.errors import Stopped
from tests.support.commands import refused, trained
from tests.support.sweeps import after

pytestmark = pytest.mark.usefixtures("no_figures")


def test_optimizer_schedules_and_clipping_equal_the_same_calls_in_python(digits):
    options = ["--optimizer", "adamw:0.02", "--lr", "cosine:3e-3", "--clip", "1", "--estimator", "beta_elbo:linear:0:1"]
    path = trained(digits, "mnist_vae", "run", *options, "--epochs", "3")
    system, dataset = fv.models.SYSTEMS["mnist_vae"], fv.data.load(str(digits))
    adam = fv.optim.adamw(fv.optim.cosine(3e-3, 6), weight_decay=0.02, eps=system.recipe.eps)
    opt, rise = fv.optim.chain(fv.optim.clip_by_global_norm(1.0), adam), fv.optim.linear(0, 1, 6)
    model = system.build(dataset.train)
    _, history = fv.train.fit(
        fv.train.init(model, opt, fv.random.key(0)), model, lambda step: fv.estimators.beta_elbo(rise(step)), opt,
        dataset.train, test=dataset.test, epochs=3, batch=20, compile=False, observe=system.recipe.observe,
        scale=system.recipe.scale, offset=system.offset(),
    )  # fmt: skip
    found = runs.load(path).history
    for name, values in history._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), values)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert {"reconstruction", "kl"} < rows[0].keys()
    assert runs.verify(path).first_difference is None
    assert runs.evaluation_report(runs.load(path), n=4, samples=10)["estimator"] == "beta_elbo:linear:0:1"
    runs.comparison_report(runs.load(path), replicates=10)


def test_a_schedule_of_the_whole_run_forbids_other_epochs(digits, capsys):
    trained(digits, "mnist_vae", "run", "--lr", "cosine:1e-3")
    capsys.readouterr()
    assert "epochs: lr cosine:1e-3 depends on their number" in refused(
        capsys, "train", "--resume", "run", "--epochs", "3"
    )
    trained(digits, "mnist_vae", "other", "--lr", "cosine:1e-3:10")
    cli.main(["train", "--resume", "other", "--epochs", "2"])
    assert len(runs.load("other").history.test_bound) == 2


def test_training_ends_early_and_keeps_the_best_parameters(digits):
    lr = ["--lr", "0.01", "--epochs", "40"]
    path = trained(digits, "mnist_vae", "run", *lr, "--early-stopping", "2", "--keep-best")
    bounds = runs.load(path).history.test_bound
    best = int(bounds.argmax())
    assert len(bounds) == best + 3 < 40
    whole = trained(digits, "mnist_vae", "whole", "--lr", "0.01", "--epochs", str(best + 1))
    assert (path / "params.safetensors").read_bytes() == (whole / "params.safetensors").read_bytes()
    before = (path / "metrics.jsonl").read_bytes()
    cli.main(["train", "--resume", "run"])
    assert (path / "metrics.jsonl").read_bytes() == before


def test_test_bounds_after_some_epochs_change_nothing_else(digits):
    every, some = (
        trained(digits, "mnist_vae", name, "--epochs", "5", *options)
        for name, options in {"every": [], "some": ["--test-every", "2"]}.items()
    )
    assert (every / "params.safetensors").read_bytes() == (some / "params.safetensors").read_bytes()
    known, found = (runs.load(path) for path in (every, some))
    tested = [1, 3, 4]
    np.testing.assert_array_equal(found.history.test_bound[tested], known.history.test_bound[tested])
    assert np.isnan(found.history.test_bound[[0, 2]]).all()
    assert runs.read_result(some)["test_bound"] == runs.read_result(every)["test_bound"]
    assert runs.summarize(some).results["test_bound"] == runs.summarize(every).results["test_bound"]
    for steps in (4, 6, None):
        verdict = runs.verify(some, steps)
        assert verdict.first_difference is None, str(verdict)


def test_a_file_is_streamed_with_the_bits_of_memory(digits, capsys):
    with np.load(digits) as arrays:
        np.save("digits.npy", arrays["train"].reshape(-1, 1, 28, 28))
    trained("digits.npy", "mnist_vae", "memory")
    trained("digits.npy", "mnist_vae", "stream", "--stream")
    a, b = (Path(run, "params.safetensors").read_bytes() for run in ("memory", "stream"))
    assert a == b
    run = runs.load("stream")
    assert run.data_sha256 == runs.load("memory").data_sha256
    report = runs.evaluation_report(run, n=3, samples=10)
    assert report["of"] == 3
    for command in ("reconstruct", "sample", "latent"):
        cli.main([command, "stream"])
    assert runs.verify("stream").first_difference is None
    capsys.readouterr()
    assert "only an .npy file can" in refused(capsys, "train", "--data", str(digits), "--stream", "--out", "c")


def test_a_run_with_a_scheduled_estimator_is_reported_with_that_after_its_last_step(digits):
    options = ["--lr", "0.02", "--epochs", "3", "--estimator", "beta_elbo:linear:1:1.5:12"]
    run = runs.load(trained(digits, "mnist_vae", "run", *options))
    want, found = fv.estimators.beta_elbo(1.25), run.estimator(run.config.estimator)  # an epoch has two steps
    x, eps = run.dataset().test, torch.zeros(1, 10, 2)
    torch.testing.assert_close(*(each.bound(*run.trained, x, eps).double() for each in (found, want)))
    assert run.estimator("iwae").name == "iwae"


def test_a_stopped_run_resumes_with_the_same_best_parameters(digits):
    options = {"data": str(digits), "batch": 20, "epochs": 40, "compile": False, "lr": 0.01, "checkpoint_every": 3}
    options |= {"early_stopping": 2, "keep_best": True}
    runs.train("mnist_vae", out="whole", **options)
    with pytest.raises(Stopped):
        runs.train("mnist_vae", out="stopped", stop_context=after(7), **options)
    runs.resume("stopped")
    for name in ("params.safetensors", "metrics.jsonl"):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_run_that_ended_early_does_not_ask_for_more_epochs(digits, capsys):
    trained(digits, "mnist_vae", "run", "--lr", "0.01", "--epochs", "40", "--early-stopping", "2")
    Path("run/figures").mkdir()
    Path("run/figures/training.png").touch()  # the last file of a finished run
    cli.main(["train", "--resume", "run", "--epochs", "50"])
    assert "run is finished; it ended early, or has all epochs" in capsys.readouterr().err


def test_points_are_streamed(here, capsys):
    np.save("points.npy", np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    options = ["--batch", "10", "--epochs", "1", "--no-compile", "--sample-each-step", "--stream", "--out", "run"]
    cli.main(["train", "gaussian2d_vae", "--data", "points.npy", *options])
    cli.main(["sample", "run"])
    assert "samples.png" in capsys.readouterr().out
    assert np.load("run/samples.npy").shape[0] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "cosin:1"], "unknown schedule 'cosin': did you mean 'cosine'"),
        (["--lr", "linear:1"], "schedule 'linear:1': write linear:START:END[:STEPS]"),
        (["--optimizer", "sgd:x"], "optimizer 'sgd:x': write sgd or sgd:0.9"),
        (["--clip", "-1"], "clip is -1.0: it must be at least 0"),
        (["--estimator", "beta_elbo:linear:0"], "schedule 'linear:0': write linear"),
        (["--estimator", "beta_elbo:linear:0:1:9", "--keep-best"], "keep_best compare the test bounds of epochs"),
    ],
)
def test_wrong_options_are_one_line(here, capsys, options, message):
    assert message in refused(capsys, "train", *options, "--out", "run")
