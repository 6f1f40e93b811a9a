"""Every example runs with small settings, and gives the stated results."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import funcvae as fv
from funcvae import cli
from tests.support.datasets import write_idx
from tests.support.pages import commands, run_python

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = ("mnist_ae", "mnist_vae", "mnist_bn_vae", "mnist_sigma_vae", "burda_vae")


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Disables torch.compile, which would take longer than the few steps."""
    monkeypatch.setattr(fv.compilation, "compiled", lambda f, device="cpu": f)


def main(name, function="main"):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))[function]


def is_a_picture(path):
    with Image.open(path) as image:
        image.verify()
    return path.stat().st_size > 1000


def test_quickstart_ranks_the_estimators_like_the_papers():
    variance = main("quickstart")(steps=100)
    assert variance["stl"] < variance["elbo_mc"]
    assert variance["my_dreg"] < variance["iwae"]


def test_own_estimator_is_exact_to_ten_digits():
    found = main("own_estimator")()
    for name in ("0% baseline", "50% baseline", "100% baseline", "vimco", "iwae"):
        assert found[name][0] < 1e-10
    assert found["with its own sample"][0] > 0.1
    assert found["100% baseline"][1] < found["50% baseline"][1] < found["0% baseline"][1]
    assert found["100% baseline"] == pytest.approx(found["vimco"])  # at K = 2 the geometric mean is the mean


def test_a_pytorch_vae_is_measured_trained_and_handed_back():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found, net = main("from_pytorch")(steps=100)
    assert found.row("dreg").ratio["encoder"].high < found.row("iwae").ratio["encoder"].low
    assert net.training


@pytest.fixture
def labelled(tmp_path):
    """A file of 60 images of noise with labels."""
    images = (fv.random.uniform(fv.random.key(0), (60, 1, 28, 28)) * 256).to(torch.uint8)
    np.savez(tmp_path / "digits.npz", train=images.numpy(), train_labels=np.arange(60) % 10)
    return str(tmp_path / "digits.npz")


def test_a_conditional_vae_draws_a_row_for_each_class(labelled, tmp_path):
    assert is_a_picture(Path(main("conditional_vae")(data=labelled, epochs=1, out=str(tmp_path / "a.png"))))


def test_missing_pixels_do_not_count(labelled):
    half, none = (main("missing_pixels")(data=labelled, epochs=1, missing=missing)[0] for missing in (0.5, 0.99))
    assert half < 10 * none < 0


def test_random_layers_repeat_their_bits_and_their_share_of_the_variance_is_measured():
    hashes, values, share = main("random_layers")(epochs=5, replicates=200)
    assert len(hashes) == len(values) == 1
    assert 0.05 < share < 0.4


@pytest.mark.parametrize("steps", [30, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_vae_uses_as_many_latents_as_maximum_likelihood(tmp_path, steps):
    found, picture = main("posterior_collapse")(steps=steps, out=str(tmp_path))
    assert [wanted for wanted, _, _ in found.values()] == [8, 7, 6, 4, 3, 1, 0]
    assert is_a_picture(picture)
    if steps == 4000:
        assert [used for _, used, _ in found.values()] == [8, 7, 6, 4, 3, 1, 0]
        assert all(0 <= short < 0.02 for _, _, short in found.values())


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        ({"ks": (30, 100, 300), "replicates": 128, "batch": 8}, 0.1),
        pytest.param({}, 0.05, marks=pytest.mark.slow),
    ],
)
def test_signal_to_noise_scales_with_k_as_rainforth_and_tucker_found(tmp_path, size, tolerance):
    found, written = main("rainforth")(**size, out=str(tmp_path))
    theory = {"iwae, encoder": -0.5, "dreg, encoder": 0.5, "both, prior": -0.5}
    assert found.slopes.keys() == theory.keys()
    for name, slope in theory.items():
        assert abs(found.slopes[name].slope - slope) + 2 * found.slopes[name].se < tolerance
    assert len(written) == 2
    assert all(is_a_picture(path) for path in written)


@pytest.mark.parametrize("replicates", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_an_estimator_is_chosen_by_its_variance_and_bias(tmp_path, replicates):
    options = {"steps": 400, "replicates": replicates, "batches": 10, "out": str(tmp_path)}
    found, best, sources, written = main("compare_estimators")(**options)
    mine = found.row("98% dreg, 2% iwae")
    assert found.row("dreg").ratio["encoder"][:4] == (1, 0, 1, 1)
    assert found.row("iwae").ratio["encoder"].low > 10
    assert found.row("iwae").ratio["decoder"].value == pytest.approx(1)
    assert found.row("rws").bias["encoder"].z > 5
    assert mine.bias["encoder"].z < 3
    assert mine.ratio["encoder"].value < 1
    assert mine.ratio["encoder"].high < 1 or replicates == 512
    assert found.row("iwae, sobol").bias == {}
    assert best in {"dreg", mine.name}
    assert sources.groups["encoder"].noise.value > 0
    assert {path.stem.rpartition("_")[2] for path in written} == {"ratios", "layers", "cost"}
    assert all(is_a_picture(path) for path in written)


@pytest.mark.parametrize("epochs", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_kl_annealing_and_free_bits_keep_a_latent_that_the_elbo_loses(tmp_path, epochs):
    found, picture = main("kl_annealing")(epochs=epochs, out=str(tmp_path))
    assert is_a_picture(picture)
    assert all(0 < kl < -bound for bound, kl, _ in found.values())
    if epochs == 50:
        assert [active for _, _, active in found.values()] == [7, 8, 8, 8]
        assert found["ELBO"][0] < min(bound for name, (bound, _, _) in found.items() if name != "ELBO")


def test_estimators_that_claim_no_bias_have_none_and_the_others_have_one(tmp_path):
    found, picture = main("exact_bias")(nodes=60, out=str(tmp_path))
    assert is_a_picture(picture)
    assert {"dreg", "stl", "vimco", "rloo", "renyi:0.5"} <= {name for name, (*_, unbiased) in found.items() if unbiased}
    assert {"iwae_stl", "rws"} <= {name for name, (*_, unbiased) in found.items() if not unbiased}
    for encoder, decoder, unbiased in found.values():
        assert decoder < 1e-10
        assert encoder < 1e-10 if unbiased else encoder > 0.01


@pytest.mark.parametrize("steps", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_richer_posteriors_are_nearer_to_a_curved_one(tmp_path, steps):
    found, picture = main("posteriors")(steps=steps, out=str(tmp_path))
    assert is_a_picture(picture)
    for kl, gap in found.values():
        assert kl == pytest.approx(gap, rel=0.05, abs=0.01)  # the ELBO is a mean over 20,000 samples
    if steps == 4000:
        normal, full, flow, layers = (kl for kl, _ in found.values())
        assert max(flow, layers) < full < normal


def test_the_burda_table_trains_missing_runs_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("funcvae.compilation.available", lambda: False)
    x = fv.random.uniform(fv.random.key(0), (60, 1, 28, 28)).numpy()
    np.savez(tmp_path / "digits.npz", train=x[:40], test=x[40:])
    options = {"epochs": 1, "k": (1,), "source": str(tmp_path / "digits.npz"), "samples": 20, "n": 10}
    table = main("burda_table")
    first = table(out=str(tmp_path / "runs"), **options)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert table(out=str(tmp_path / "runs"), **options) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == written
    assert set(first) == {(name, k) for name in ("VAE", "IWAE", "DReG") for k in (1,)}
    assert "86.76 → 86.35" in capsys.readouterr().out
    with pytest.raises(fv.errors.BadValue, match="holds 1 epochs of"):
        table(out=str(tmp_path / "runs"), **{**options, "epochs": 2})
    (tmp_path / "runs" / "dreg-k1").rename(tmp_path / "runs" / "elbo_mc-k2")
    with pytest.raises(fv.errors.BadValue, match="holds dreg with k = 1: give another --out"):
        table(out=str(tmp_path / "runs"), **{**options, "k": (2,)})
    with pytest.raises(fv.errors.BadValue, match="holds the runs of 3,280 epochs"):
        table(out=str(tmp_path / "more"), record=EXAMPLES / "burda_full", **options)
    with pytest.raises(fv.errors.BadValue, match="--n must lie between 2 and 20"):
        table(out=str(tmp_path / "more"), **{**options, "n": 21})
    assert not (tmp_path / "more").exists()


def test_the_burda_table_records_runs_and_shows_those_with_all_epochs(tmp_path, capsys):
    x = fv.random.uniform(fv.random.key(0), (60, 1, 28, 28)).numpy()
    np.savez(tmp_path / "digits.npz", train=x[:40], test=x[40:])
    out, record = tmp_path / "runs", tmp_path / "record"
    options = {"epochs": 3, "k": (1,), "source": str(tmp_path / "digits.npz"), "samples": 20, "n": 10}
    first = fv.runs.train(
        "burda_vae", estimator="elbo_mc", samples=1, epochs=3, data=options["source"], out=str(out / "elbo_mc-k1"),
    )  # fmt: skip
    (first / "params.safetensors").unlink()  # as if it was stopped
    nll = main("burda_table")(out=str(out), record=record, **options)
    printed = capsys.readouterr().out
    assert (first / "params.safetensors").is_file()
    for (name, _), folder in {("VAE", 1): "elbo_mc-k1", ("DReG", 1): "dreg-k1"}.items():
        kept = json.loads((record / folder / "evaluation.json").read_text())
        assert kept["log_likelihood"]["mean"] == -nll[name, 1]
        assert "item_numbers" not in kept
        assert "per_item" not in kept["log_likelihood"]
        rows = [json.loads(line) for line in (record / folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert (record / folder / "manifest.json").read_bytes() == (out / folder / "manifest.json").read_bytes()
    assert is_a_picture(record / "learning_curves.png")
    full = main("burda_table", "all_epochs")()
    assert set(full) == {("VAE", 1), ("IWAE", 1), ("DReG", 1)}
    assert f"all 3,280 epochs{full['DReG', 1]!s:>26}" in printed


def test_bernoulli_latents_are_trained_with_three_estimators(tmp_path, capsys):
    x = fv.random.uniform(fv.random.key(0), (120, 1, 28, 28)).numpy()
    np.savez(tmp_path / "digits.npz", train=x[:100], test=x[100:])
    options = {"replicates": 4, "source": str(tmp_path / "digits.npz"), "out": str(tmp_path / "figures")}
    bound, variance, picture = main("discrete_latents")(steps=4, seeds=2, **options)
    assert bound.shape == variance.shape == (3, 2, 2)
    assert (variance[1] > variance[2]).all()  # disarm is the conditional expectation of arm
    assert is_a_picture(picture)
    printed = capsys.readouterr().out
    assert "4 steps: 0.00% of the paper's 1,000,000" in printed
    assert "0.000 [0.000, 0.000]      1.000 [1.000, 1.000]" in printed  # disarm against itself
    with pytest.raises(fv.errors.BadValue, match="--seeds is 1"):
        main("discrete_latents")(seeds=1)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in DIGITS), ("burda_vae", {"layers": 2})])
def test_the_digit_systems_draw_their_pictures(tmp_path, name, options):
    x = fv.random.uniform(fv.random.key(0), (240, 1, 28, 28)).numpy()
    labels = {"train_labels": np.arange(200) % 10, "test_labels": np.arange(40) % 10}
    np.savez(tmp_path / "digits.npz", train=x[:200], test=x[200:], **labels)
    written = main(name)(steps=2, source=str(tmp_path / "digits.npz"), out=str(tmp_path / "figures"), **options)
    assert written
    assert all(is_a_picture(path) for path in written)


def test_the_points_draw_their_pictures(tmp_path):
    written = main("gaussian2d_vae")(steps=20, out=str(tmp_path))
    assert [path.suffix for path in written] == [".png", ".png", ".gif"]
    assert all(is_a_picture(path) for path in written)


@pytest.mark.parametrize(("name", "size"), [("cifar_resnet_vae", (16, 16)), ("own_model", (24, 16))])
def test_folders_of_pictures_are_trained_on(tmp_path, name, size):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, x in enumerate(fv.random.uniform(fv.random.key(0), (20, *size, 3)).numpy()):
        Image.fromarray((255 * x).astype(np.uint8)).save(folder / f"{i}.png")
    source = {"folder" if name == "own_model" else "source": str(folder)}
    written = main(name)(steps=2, out=str(tmp_path / "figures"), **source)
    assert len(written) == 2
    assert all(is_a_picture(path) for path in written)


def test_an_own_system_has_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("funcvae.compilation.available", lambda: False)
    x = fv.random.uniform(fv.random.key(0), (30, 3, 8, 6)).numpy()
    np.savez(tmp_path / "birds.npz", train=x[:20], test=x[20:])
    run = main("own_system")(str(tmp_path / "birds.npz"), epochs=1, out=str(tmp_path / "run"))
    loaded = fv.runs.load(run, system=f"{EXAMPLES / 'own_system.py'}:bird_vae")
    assert loaded.config.model == {"latent": 10, "hidden": 128}
    assert is_a_picture(run / "figures" / "samples.png")


def test_a_file_of_pictures_is_trained_on_without_loading_it(tmp_path):
    x = fv.random.uniform(fv.random.key(0), (300, 1, 8, 8))
    np.save(tmp_path / "x.npy", (255 * x).to(torch.uint8).numpy())
    first, second = (main("big_data")(str(tmp_path / "x.npy"), epochs=epochs, batch=16) for epochs in (1, 8))
    assert second > first


def posts_commands():
    """Runs the Python of the guide to the posts, then yields its commands."""
    page = EXAMPLES / "guide" / "posts.md"
    run_python(page)
    yield from commands(page)


def figures_named_in(page):
    named = re.findall(r"`(\w+/figures/[\w.]+)`", page.read_text())
    assert named
    return [Path(name) for name in named]


def test_the_commands_of_the_guide_to_the_posts_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data" / "MNIST" / "raw", train=40, test=40)
    for name in ("save", "save_gif"):
        monkeypatch.setattr(fv.figures, name, lambda figure, path, **options: path)
    for command in posts_commands():
        if command[0] == "train":
            command[command.index("--epochs") + 1] = "1"
        cli.main(command)
        assert fv.runs.has_run(command[-1] if command[0] == "train" else command[1])


@pytest.mark.slow
def test_the_posts_give_the_numbers_and_figures_of_the_guide(tmp_path, monkeypatch, mnist_root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(mnist_root)
    for command in posts_commands():
        cli.main(command)
    assert all(is_a_picture(path) for path in figures_named_in(EXAMPLES / "guide" / "posts.md"))
    found = {path.parent.name: fv.runs.read_result(path.parent) for path in tmp_path.glob("*/result.json")}
    losses = {"ae": 34.6, "vae": 40.4, "alpha784": 88, "sigma": 784 * 0.058, "linear": 784 * 0.052}
    for name, loss in losses.items():
        assert -found[name]["test_bound"] - 392 * np.log(np.pi) == pytest.approx(loss, rel=0.05)
    kls = {"vae": 3.9, "alpha784": 19.2, "sigma": 3.5, "linear": 7.6}
    for name, kl in kls.items():
        assert found[name]["kl"] == pytest.approx(kl, rel=0.1)
    assert found["points"]["test_bound"] == pytest.approx(-2.72, abs=0.01)
    assert found["alpha1"]["kl"] < 1e-3
    assert [name for name, result in found.items() if result["active_units"] == 0] == ["alpha1"]


def test_every_example_is_tested():
    tested = {"quickstart", "own_model", "own_system", "own_estimator", "posterior_collapse", "burda_table"}
    tested |= {"conditional_vae", "missing_pixels", "rainforth", "compare_estimators", "discrete_latents"}
    tested |= {"from_pytorch", "random_layers", "big_data", "kl_annealing", "exact_bias", "posteriors"}
    tested |= set(fv.models.SYSTEMS)
    elsewhere = {"burda2_vae", "sbn_vae", "sbn_nonlinear_vae"}  # in burda_vae.py and discrete_latents.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested - elsewhere
    assert set(DIGITS) | {"gaussian2d_vae", "cifar_resnet_vae"} | elsewhere == set(fv.models.SYSTEMS)
