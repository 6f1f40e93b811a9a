"""`funcvae variance`."""

import json
import re
from pathlib import Path

import pytest
import torch

import funcvae as fv
from funcvae import cli, runs
from funcvae.errors import BadValue
from funcvae.figures import of_results
from tests.support.commands import refused
from tests.support.figures import without_figures
from tests.support.specs import slow_but


@pytest.fixture(scope="module")
def points(folder):
    """A short run of points in the plane."""
    with without_figures():
        cli.main(["train", "--epochs", "2", "--batch", "50", "--out", str(folder / "points")])
    return folder / "points"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(capsys, *args):
    capsys.readouterr()
    cli.main(["variance", *map(str, args)])
    return capsys.readouterr().out


def less_times(value):
    """JSON without the fields that hold times."""
    if isinstance(value, dict):
        return {name: less_times(v) for name, v in value.items() if "second" not in name}
    return value


def test_the_command_prints_a_table_and_writes_a_report(points, capsys):
    out = compared(capsys, points, "--estimators", "iwae,dreg,stl,rloo", "--samples", 4, "--replicates", 60)
    report = json.loads((points / "variance.json").read_text())
    assert out.startswith("gaussian2d_vae after 2 epochs, as in")
    assert "50 of its training data, seed 0; gradients of nats per example" in " ".join(out.split())
    assert list(report["rows"]) == ["iwae", "dreg", "stl", "rloo"]
    assert (report["samples"], report["replicates"], report["batch"], report["reference"]) == (4, 60, 50, "iwae")
    value = re.search(r"^dreg +(\S+)", out, re.MULTILINE)[1]
    assert float(value) == pytest.approx(report["rows"]["dreg"]["groups"]["encoder"]["variance"]["value"], rel=6e-3)
    figures = ("variance_ratios", "variance_layers", "variance_cost")
    for name in figures:
        assert (points / "figures" / f"{name}.png").is_file()
        assert str(points / "figures" / f"{name}.png") in out
    assert len(set(report["item_numbers"])) == 50
    assert report["trained_with"] == "elbo"
    advice = " ".join(out[out.index("advice: ") :].split())
    winner = "(train with (iwae|dreg)|no clear winner)"
    assert re.match(rf"advice: for L_K, {winner}: dreg has \S+ \[\S+, \S+\] times the variance × time", advice)


def test_equal_commands_give_equal_bits_and_keep_other_reports(points, capsys):
    first = sorted(points.glob("variance*.json"))
    written = []
    for _ in range(2):
        out = compared(capsys, points, "--estimators", "iwae,dreg", "--replicates", 40, "--samples", 2, "--seed", 5)
        written.append(Path(re.search(r"^(.*\.json)$", out, re.MULTILINE)[1]))
    assert written[0] != written[1]
    assert not set(written) & set(first)
    assert less_times(json.loads(written[0].read_text())) == less_times(json.loads(written[1].read_text()))
    number = written[1].stem.removeprefix("variance")
    assert (points / "figures" / f"variance_ratios{number}.png").is_file()
    mine = points.parent / "mine.json"
    for seed in (1, 2):
        compared(capsys, points, "--estimators", "iwae,dreg", "--replicates", 5, "--seed", seed, "--out", mine)
    assert json.loads(mine.read_text())["seed"] == 1
    assert json.loads(mine.with_stem("mine-2").read_text())["seed"] == 2
    assert (points.parent / "mine_variance_ratios.png").is_file()


def test_the_report_equals_the_same_calls_in_python(points):
    run = runs.load(points)
    found, report = runs.comparison_report(run, names=["iwae", "dreg"], samples=3, replicates=30, batch=10, seed=2)
    choice_key, _, noise_key = fv.random.split(fv.random.key(2), 3)
    train = run.dataset().train
    x = train[fv.random.permutation(choice_key, len(train))[:10]]
    arms = {name: fv.estimators.parse(name) for name in ("iwae", "dreg")}
    known = fv.variance.compare(arms, *run.trained, x, noise_key, samples=3, replicates=30)
    for name, row in known.rows.items():
        assert found.rows[name].groups == row.groups
        assert found.rows[name].ratio == row.ratio
    assert report["rows"]["dreg"]["ratio"]["all"]["value"] == known.rows["dreg"].ratio["all"].value


def test_the_runs_own_estimator_is_the_reference(points):
    found, _ = runs.comparison_report(runs.load(points), replicates=3, batch=4)
    assert list(found.rows) == ["elbo", "elbo_mc", "stl", "iwae", "dreg"]
    assert found.samples == 4, "the recipe's"


def test_an_untrained_system(here, capsys):
    out = compared(capsys, "gaussian2d_vae", "--replicates", 20, "--batch", 8, "--seed", 3)
    path = Path(re.search(r"^(runs/gaussian2d_vae-untrained-.*\.json)$", out, re.MULTILINE)[1])
    report = json.loads(path.read_text())
    run = runs.initial_run("gaussian2d_vae", seed=3)
    init_key, _ = fv.random.split(fv.random.key(3))
    params, _ = fv.models.gaussian2d_vae().init(init_key)
    assert all(map(torch.equal, fv.tree.leaves(run.params), fv.tree.leaves(params)))
    found, _ = runs.comparison_report(run, replicates=20, batch=8, seed=3)
    assert report["rows"]["stl"]["ratio"]["encoder"]["value"] == found.rows["stl"].ratio["encoder"].value
    assert (path.parent / "figures" / "variance_ratios.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_several_noise_schemes(points, capsys):
    out = compared(
        capsys, points, "--estimators", "iwae,dreg", "--noise", "iid,mirrored", "--samples", 2, "--replicates", 40
    )
    assert re.findall(r"^(iwae, iid|dreg, iid|iwae, mirrored|dreg, mirrored) ", out, re.MULTILINE)[:3] == [
        "iwae, iid",
        "dreg, iid",
        "iwae, mirrored",
    ]
    assert "left out: dreg requires independent samples; mirrored noise is not independent" in out


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "system",
    slow_but(
        ("burda2_vae", "mnist_bn_vae", "mnist_sigma_vae"),
        ("burda_vae", "burda2_vae", "mnist_bn_vae", "mnist_sigma_vae", "mnist_vae"),
    ),
)
def test_systems_of_digits(run_of, capsys, system):
    out = compared(capsys, run_of(system), "--replicates", 4, "--samples", 2, "--batch", 5)
    assert "stl" in out
    assert "; 5 of its training data" in " ".join(out.split())


@pytest.mark.usefixtures("no_figures")
def test_discrete_latents_have_estimators_of_their_own(run_of, capsys):
    out = compared(capsys, run_of("sbn_vae"), "--replicates", 4, "--batch", 5, "--wide")
    assert re.findall(r"^(\w+) +(\d) ", out, re.MULTILINE)[:3] == [("disarm", "2"), ("score", "1"), ("arm", "2")]
    with pytest.raises(SystemExit):
        compared(capsys, run_of("sbn_vae"), "--estimators", "iwae")
    assert "iwae requires a posterior with reparameterised samples" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_an_autoencoder_has_no_noise(run_of, capsys):
    out = compared(capsys, run_of("mnist_ae"), "--replicates", 40, "--samples", 2)
    assert "a Delta posterior has no density" in out
    report = json.loads((run_of("mnist_ae") / "variance.json").read_text())
    assert list(report["rows"]) == ["elbo"]
    assert report["rows"]["elbo"]["groups"]["encoder"]["variance"]["value"] == 0


@pytest.mark.usefixtures("no_figures")
def test_target_se_adds_replicates_in_stages(points, capsys):
    args = ("--estimators", "elbo_mc,stl", "--replicates", 50, "--target-se", 0.05, "--samples", 2)
    out = compared(capsys, points, *args, "--out", points.parent / "target.json")
    assert "the relative standard error of every ratio is at most 0.05" in out
    report = json.loads((points.parent / "target.json").read_text())
    assert report["replicates"] in [50 * 2**i for i in range(8)]
    assert report["reached"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--replicates", "1"), "replicates is 1: it must be at least 2"),
        (("--chunk", "0"), "chunk is 0: it must be at least 1"),
        (("--samples", "0"), "samples is 0"),
        (("--batch", "0"), "batch is 0: it must lie between 1 and 10,000, the number of training data"),
        (("--estimators", "iwea"), "unknown estimator 'iwea': did you mean 'iwae'"),
        (("--estimators", "dreg", "--noise", "mirrored"), "dreg requires independent samples"),
        (("--noise", "sobl"), "unknown noise 'sobl': did you mean 'sobol'"),
        (("--target-se", "0"), "--target-se is 0.0"),
        (("--estimators", "rloo", "--samples", "1"), "samples is 1: rloo compares"),
        (("--out", "."), "--out is .: it must be the name of a file, NAME.json"),
        (("--out", "figure.png"), "it must be the name of a file, NAME.json"),
        (("--estimators", ""), "estimators and noise each need at least one name"),
    ],
)
def test_an_error_is_one_line(here, capsys, args, message):
    assert message in refused(capsys, "variance", "gaussian2d_vae", *args)


def test_the_argument_must_be_a_run_or_a_system(here, capsys):
    assert "unknown system or run folder 'gaussian2d': did you mean" in refused(capsys, "variance", "gaussian2d")
    assert "runs/nothing: no such run folder" in refused(capsys, "variance", "runs/nothing")


def test_a_comparison_has_its_figures(points):
    found, _ = runs.comparison_report(runs.load(points), names=["dreg", "rws", "elbo"], replicates=400, samples=4)
    figures = of_results.of_comparison(found, name="points")
    assert set(figures) == {"variance_ratios", "variance_layers", "variance_cost"}
    left = figures["variance_ratios"].axes[0]
    assert sorted(t.get_text() for t in left.get_yticklabels()) == ["dreg", "elbo", "rws (biased)"]
    headings = [text.get_text() for text in left.texts if text.get_weight() == "bold"]
    assert headings == ["L_K", "ELBO"]
    assert "relative to dreg\n" in figures["variance_ratios"].get_suptitle()
    assert "400 replicates" in figures["variance_layers"].get_suptitle()
    columns = [t.get_text() for t in figures["variance_layers"].axes[0].get_xticklabels()]
    assert columns == ["dreg", "rws", "elbo"]


def test_comparisons_at_several_numbers_of_samples(points):
    run, calls = runs.load(points), []
    found, report = runs.samples_report(
        run, [4, 1], names=["iwae", "vimco"], replicates=40, batch=8, seed=3,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert [each.samples for each in found] == report["samples"] == [1, 4]
    assert [list(each.rows) for each in found] == [["iwae"], ["iwae", "vimco"]]
    (reason,) = report["left_out"]
    assert reason.startswith("samples is 1: vimco")
    assert report["left_out"][reason] == [1]
    assert calls[-1] == (80, 80)
    assert calls == sorted(calls)
    known, _ = runs.comparison_report(run, names=["iwae", "vimco"], samples=4, replicates=40, batch=8, seed=3)
    assert found[1].rows["vimco"].groups == known.rows["vimco"].groups
    text = runs.samples_table(found)
    assert max(map(len, text.splitlines())) <= 80
    value = found[1].rows["iwae"].groups["encoder"].variance.value
    line = text.split("encoder: total variance of the gradient [nats²]\n")[1].splitlines()[1]
    assert line.split()[0] == "iwae"
    assert f"{value:.3g} ±" in line
    assert re.search(r"^vimco +– ", text, re.MULTILINE)
    figure = of_results.of_samples(found[::-1], name="points")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "4"]
    assert figure.get_suptitle().startswith("points: ")


def test_the_command_compares_at_several_numbers_of_samples(here, points, capsys):
    options = ["--samples", "1,4", "--estimators", "iwae", "dreg", "--replicates", "40", "--out", "two.json"]
    cli.main(["variance", str(points), *options])
    out = capsys.readouterr().out
    assert "two.json\ntwo_variance_samples.png\nadvice: at K = 1, for L_K, " in out
    assert "\nadvice: at K = 4, for L_K, " in out
    assert [each["samples"] for each in json.loads(Path("two.json").read_text())["comparisons"]] == [1, 4]


def test_a_table_over_many_numbers_of_samples_fits_80_columns(points):
    found, _ = runs.samples_report(runs.load(points), range(1, 9), names=["iwae"], replicates=3, batch=2)
    text = runs.samples_table(found)
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"K = [1-8]\b", text)) == 8 * 4, "each K in each of four tables"


@pytest.mark.parametrize("samples", [[], [0], [2, 2], [1.5]])
def test_wrong_numbers_of_samples_are_refused(points, samples):
    with pytest.raises((BadValue, fv.errors.BadType)) as caught:
        runs.samples_report(runs.load(points), samples)
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_the_data_is_an_error(points):
    with pytest.raises(BadValue, match="batch is 20000: it must lie between 1 and 10,000"):
        runs.comparison_report(runs.load(points), batch=20_000)
