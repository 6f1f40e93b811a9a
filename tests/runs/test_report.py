"""Evaluation reports of runs, mostly through the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import cli, evaluate, runs
from funcvae._support import files
from funcvae.errors import BadValue
from tests.support.figures import without_figures


@pytest.fixture(scope="module")
def points(folder):
    """A short run of points in the plane."""
    with without_figures():
        cli.main(["train", "--epochs", "2", "--out", str(folder / "points")])
    return folder / "points"


def evaluated(capsys, *args):
    capsys.readouterr()
    cli.main(["evaluate", *map(str, args)])
    return capsys.readouterr().out


def test_evaluate_prints_a_table_and_writes_a_report(points, capsys):
    out = evaluated(capsys, points, "--samples", 50, "--n", 40, "--seed", 3)
    report = json.loads((points / "evaluation.json").read_text())
    assert out.startswith("evaluation of ")
    assert "\ngaussian2d_vae after 2 epochs, 40 of 1,000 test items, seed 3; nats per example" in out
    assert max(map(len, out.split("\n/")[0].splitlines())) <= 80
    value = float(re.search(r"log p\(x\) >= L_50 +(\S+)", out)[1])
    assert value == pytest.approx(report["log_likelihood"]["mean"], abs=6e-4)
    assert list(report["ladder"]) == ["1", "10", "50"]
    assert report["ladder"]["50"]["mean"] == pytest.approx(report["log_likelihood"]["mean"], abs=1e-12)
    assert len(report["log_likelihood"]["per_item"]) == len(set(report["item_numbers"])) == 40
    for name in ("bound_ladder", "latent_use", "log_weights"):
        assert (points / "figures" / f"{name}.png").is_file()
        assert str(points / "figures" / f"{name}.png") in out
    (points / "evaluation.json").unlink()


def test_the_report_equals_the_same_calls_in_python(points):
    run = runs.load(points)
    report = runs.evaluation_report(run, samples=20, n=30, chunk=7, seed=1)
    choice_key, _, weight_key, error_key = fv.random.split(fv.random.key(1), 4)
    x = run.dataset().test[fv.random.permutation(choice_key, 1000)[:30]]
    log_w = evaluate.log_weights(*run.trained, x, fv.random.fold_in(weight_key, 0), samples=20)
    known = evaluate.likelihood(log_w)
    np.testing.assert_allclose(report["log_likelihood"]["per_item"], known.log_p.value, rtol=1e-5)
    assert report["log_likelihood"]["se"] == pytest.approx(known.log_p.mean_se, rel=1e-4)
    assert report["log_likelihood"]["data_se"] == pytest.approx(known.log_p.sampling_se, rel=1e-5)
    assert report["posterior_gap"]["mean"] == pytest.approx(evaluate.posterior_gap(log_w).mean, rel=1e-4)
    assert report["ess"]["median"] == pytest.approx(float(known.ess.median()), rel=1e-4)
    typical, worst = report["log_weights"]
    assert typical["ess"] == pytest.approx(report["ess"]["median"])
    assert worst["ess"] == report["ess"]["least"]
    for item in (typical, worst):
        j = report["item_numbers"].index(item["item"])
        assert (item["ess"], item["pareto_k"]) == (report["ess"]["per_item"][j], report["pareto_k"]["per_item"][j])
        np.testing.assert_allclose(item["log_w"], log_w[:, j], atol=6e-5, rtol=1e-5)
    error = evaluate.reconstruction_error(*run.trained, x, error_key, samples=100)
    assert report["reconstruction_error"]["mean"] == pytest.approx(error.mean)
    assert report["kl_to_prior"]["total"] == pytest.approx(float(evaluate.kl_per_dimension(*run.trained, x).sum()))
    assert report["squared_error"] == pytest.approx(float(evaluate.squared_error(*run.trained, x).mean()))
    assert report["active_units"]["number"] == evaluate.active_units(*run.trained, x).number


def test_slabs_cover_all_data(points, monkeypatch):
    run, calls = runs.load(points), []
    monkeypatch.setattr("funcvae.runs.report._SLAB", 8)
    report = runs.evaluation_report(
        run, samples=10, n=20, chunk=5, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(k, 200) for k in (0, 40, 80, 80, 120, 160, 160, 180, 200)]  # each slab has a start
    assert len(report["pareto_k"]["per_item"]) == 20
    assert report["log_weights"][1]["ess"] == report["ess"]["least"], "of all slabs"


def test_equal_commands_give_equal_bytes_and_others_a_new_file(points, capsys):
    shutil.rmtree(points / "figures", ignore_errors=True)
    args = (points, "--samples", 30, "--n", 10)
    evaluated(capsys, *args)
    first = (points / "evaluation.json").read_bytes()
    evaluated(capsys, *args)
    assert (points / "evaluation.json").read_bytes() == first
    assert not (points / "evaluation-2.json").exists()
    out = evaluated(capsys, *args, "--seed", 1)
    assert (points / "evaluation.json").read_bytes() == first
    assert (points / "evaluation-2.json").is_file()
    assert str(points / "figures" / "bound_ladder-2.png") in out
    elsewhere = points.parent / "mine.json"
    for seed in (1, 2):
        evaluated(capsys, *args, "--seed", seed, "--out", elsewhere)
    assert json.loads(elsewhere.read_text())["seed"] == 1
    assert json.loads(elsewhere.with_stem("mine-2").read_text())["seed"] == 2
    evaluated(capsys, *args, "--seed", 3, "--out", elsewhere, "--force")
    assert json.loads(elsewhere.read_text())["seed"] == 3
    assert (points.parent / "mine_bound_ladder.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_burda_vae_is_evaluated_on_binarized_digits(run_of, capsys):
    out = evaluated(capsys, run_of("burda_vae"), "--samples", 100)
    assert "burda_vae after 1 epoch, 20 of 20 test items" in out
    assert "warning: the standard error of L_100 is not reliable for" in out


def test_two_layers_have_no_closed_form_kl_and_the_rest_is_reported(run_of, capsys):
    out = evaluated(capsys, run_of("burda2_vae"), "--samples", 100)
    assert "log p(x) >= L_100" in out
    assert "of 150" in out
    report = json.loads((run_of("burda2_vae") / "evaluation.json").read_text())
    assert report["kl_to_prior"] is None
    assert not (run_of("burda2_vae") / "figures" / "latent_use.png").exists()


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("system", "why"),
    [
        ("mnist_ae", "a Delta, which has no density"),
        ("mnist_sigma_vae", "a SignedNormal, whose density is not that of its samples"),
    ],
)
def test_without_a_likelihood_the_rest_is_reported(run_of, capsys, system, why):
    run = run_of(system)
    out = evaluated(capsys, run)
    report = json.loads((run / "evaluation.json").read_text())
    assert report["log_likelihood"] is report["ladder"] is report["pareto_k"] is None
    assert why in report["why_not"]
    assert f"no log-likelihood: {report['why_not']}" in " ".join(out.split())
    assert "log p(x) >=" not in out
    assert report["squared_error"] > 0
    assert (report["kl_to_prior"] is None) == (system == "mnist_ae")


def test_one_sample_has_no_standard_error(points):
    report = runs.evaluation_report(runs.load(points), samples=1, n=5)
    assert report["log_likelihood"]["se"] == np.inf
    assert "L_1 " in runs.evaluation_table(report)
    assert json.loads(files.as_json(report))["pareto_k"]["median"] == "inf"
    assert "bound_ladder" not in runs.evaluation_figures(report)


def test_parameters_that_are_not_finite_are_an_error(points, capsys):
    run = runs.load(points)
    run.params["decoder"]["param_layer.bias"].fill_(torch.nan)
    with pytest.raises(fv.errors.NonFinite, match=r"log-weights of item \d+ are not finite"):
        runs.evaluation_report(run, samples=5, n=5)


def test_the_error_has_the_number_of_the_item_in_the_test_set(points, monkeypatch):
    run = runs.load(points)
    monkeypatch.setattr("funcvae.runs.report._SLAB", 8)
    chosen = fv.random.permutation(fv.random.split(fv.random.key(0), 4)[0], 1000)[:20].tolist()
    test = run.dataset().test.clone()
    test[chosen[13]] = 1e30  # its log-weight is -inf for every sample
    dataset = run.dataset()._replace(test=test)
    monkeypatch.setattr(runs.Run, "dataset", lambda self: dataset)
    with pytest.raises(fv.errors.NonFinite, match=f"log-weights of item {chosen[13]} are not finite"):
        runs.evaluation_report(run, samples=5, n=20)


def test_an_impossible_sample_gives_an_infinite_bound(points, monkeypatch):
    run, whole = runs.load(points), evaluate.log_weights

    def with_an_impossible_one(*args, **kwargs):
        log_w = whole(*args, **kwargs)
        log_w[0, 0] = -torch.inf
        return log_w

    monkeypatch.setattr(evaluate, "log_weights", with_an_impossible_one)
    report = runs.evaluation_report(run, samples=20, n=5)
    assert json.loads(files.as_json(report))["ladder"]["1"]["mean"] == "-inf"
    assert np.isfinite(report["log_likelihood"]["mean"])
    assert re.search(r"L_1 \(ELBO\) +-inf", runs.evaluation_table(report))
    assert set(runs.evaluation_figures(report)) == {"bound_ladder", "latent_use", "log_weights"}


def test_an_autoencoder_with_broken_parameters_is_an_error(run_of):
    run = runs.load(run_of("mnist_ae"))
    next(iter(run.params["decoder"].values())).fill_(torch.nan)
    with pytest.raises(fv.errors.NonFinite, match="reconstructions of item 0 are not finite"):
        runs.evaluation_report(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "."], "--out is .: it must be"),
        (["--samples", "0"], "samples is 0"),
        (["--chunk", "0"], "chunk is 0"),
        (["--n", "1"], "n is 1: it must lie between 2 and 1000, the number of test items"),
        (["--n", "1001"], "n is 1001"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_an_error_is_one_line(points, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["evaluate", str(points), *options])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip("\r\n").split("\r")[-1]
    assert message in error
    assert "Traceback" not in error


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path)])
    assert "is not a run folder" in capsys.readouterr().err


def test_the_chunk_is_checked(points):
    with pytest.raises(BadValue, match="chunk is 0"):
        runs.evaluation_report(runs.load(points), samples=2, n=5, chunk=0)
    assert Path(points).is_dir()
