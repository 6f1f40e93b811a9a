"""The variance measured during training."""

import json
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import cli, runs
from funcvae.variance.monitor import MonitorSettings, make_monitor
from tests.support.commands import GAUSSIAN, refused


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path):
    return [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("no_figures")
def test_monitoring_the_variance_changes_no_bit_of_the_training(here):
    cli.main([*GAUSSIAN, "--out", "plain"])
    followed = [*GAUSSIAN, "--variance-every", "4", "--variance-of", "iwae,dreg", "--variance-replicates", "20"]
    cli.main([*followed, "--out", "followed"])
    cli.main([*followed, "--out", "again"])
    assert Path("plain/params.safetensors").read_bytes() == Path("followed/params.safetensors").read_bytes()
    assert Path("followed/metrics.jsonl").read_bytes() == Path("again/metrics.jsonl").read_bytes()
    plain, rows = rows_of("plain"), rows_of("followed")
    measured = [row for row in rows if "variance/elbo/encoder" in row]
    assert [row for row in rows if row not in measured] == plain
    assert [row["step"] for row in measured] == [4, 8]
    for name in ("elbo", "iwae", "dreg"):
        for network in ("encoder", "decoder"):
            assert measured[0][f"variance/{name}/{network}"] > 0
            assert measured[0][f"variance_se/{name}/{network}"] > 0
            assert measured[0][f"snr/{name}/{network}"] >= 0
    at = rows.index(measured[0])
    assert rows[at - 1]["step"] == 3, "it follows the row of the fourth step, as steps are counted from 0"


@pytest.mark.usefixtures("no_figures")
def test_the_logged_variance_is_that_of_the_parameters_after_the_step(here):
    cli.main([*GAUSSIAN, "--out", "run", "--variance-every", "10", "--variance-replicates", "30"])
    (row,) = (row for row in rows_of("run") if "variance/elbo/encoder" in row)
    run = runs.load("run")  # ten steps: the final parameters are those after step 10
    _, run_key = fv.random.split(fv.random.key(0))
    *_, key = fv.random.split(fv.train.run_keys(run_key).pictures, 4)
    choice_key, _, noise_key = fv.random.split(key, 3)
    train = run.dataset().train
    x = train[fv.random.permutation(choice_key, len(train))[:1000]]
    known = fv.variance.moments(
        fv.estimators.elbo(), *run.trained, x, fv.random.fold_in(noise_key, 10), samples=2, replicates=30
    )
    assert row["variance/elbo/encoder"] == pytest.approx(known.groups["encoder"].variance.value, rel=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--variance-every", "-1"), "--variance-every is -1"),
        (("--variance-of", "iwae"), "--variance-of needs variance_every: give the number of steps"),
        (("--variance-every", "5", "--variance-replicates", "1"), "--variance-replicates is 1: it must be at least 2"),
        (("--variance-every", "5", "--variance-of", "dregg"), "unknown estimator 'dregg': did you mean 'dreg'"),
        (("--variance-every", "5", "--variance-of", "rloo", "--samples", "1"), "samples is 1: rloo compares"),
        (("--variance-every", "5", "--variance-of", "dreg", "--noise", "sobol"), "dreg requires independent samples"),
    ],
)
def test_wrong_options_raise_an_error_before_the_folder_is_made(here, capsys, args, message):
    assert message in refused(capsys, "train", "--out", "run", *args)


@pytest.mark.usefixtures("no_figures")
def test_a_gradient_that_is_not_finite_prints_a_line_and_the_run_goes_on(here, capsys, monkeypatch):
    def breaks(*args, **kwargs):
        raise fv.errors.NonFinite("the gradient of replicate 3 is not finite")

    monkeypatch.setattr("funcvae.variance.monitor.compare", breaks)
    cli.main([*GAUSSIAN, "--out", "run", "--variance-every", "5"])
    assert "funcvae: the variance after step 5 was not measured: the gradient of replicate 3" in capsys.readouterr().err
    assert Path("run/params.safetensors").is_file()


@pytest.mark.usefixtures("no_figures")
def test_tensorboard_shows_the_variance(here):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cli.main([*GAUSSIAN, "--out", "run", "--variance-every", "5", "--track", "tensorboard"])
    events = EventAccumulator("run")
    events.Reload()
    assert [event.step for event in events.Scalars("variance/elbo/encoder")] == [5, 10]


def test_the_estimator_of_the_step_that_was_reached_is_measured():
    x, key = fv.random.normal(fv.random.key(1), (20, 2)), fv.random.key(2)
    settings = MonitorSettings(1, ("beta_elbo:linear:0:1",), replicates=30, samples=2, batch=20)
    given = fv.noise.iid, x, lambda key, x: x, key
    monitor = make_monitor(settings, *given, steps=10)
    model = fv.models.gaussian2d_vae(hidden=4)
    params, state = model.init(fv.random.key(0))
    for step in (0, 4):
        known = make_monitor(settings._replace(estimators=(f"beta_elbo:{step / 10}",)), *given)
        one, two = monitor(model, params, state, step), known(model, params, state, step)
        assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-6)
        assert all(name.split("/")[1] == "beta_elbo:linear:0:1" for name in one)
