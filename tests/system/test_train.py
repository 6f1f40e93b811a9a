"""`funcvae train`."""

import json
import platform
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file

import funcvae as fv
from funcvae import cli, data, runs
from funcvae.errors import BadData, Missing
from funcvae.figures import decoding
from funcvae.runs import prepare
from tests.support.commands import DIGITS, GAUSSIAN, refused, trained
from tests.support.figures import without_figures
from tests.support.specs import slow_but


def test_train_without_arguments_trains_gaussian2d_vae_in_a_new_folder(here, capsys):
    cli.main(GAUSSIAN)
    with without_figures():
        cli.main(GAUSSIAN)
    named = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "funcvae evaluate" in line]
    assert len(set(named)) == len(named) == 2
    run = Path(named[0])
    assert run.parts[0] == "runs"
    assert {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "params.safetensors",
        "result.json",
        "times.jsonl",
        ".lock",
        "checkpoints/step-000000000010.safetensors",
        "figures/training.png",
        "figures/latent_scatter.png",
        "figures/densities.png",
    }


@pytest.mark.usefixtures("no_figures")
def test_equal_commands_write_equal_bytes(here):
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        cli.main([*GAUSSIAN, "--out", out, "--seed", seed])
    a, b, c = (Path(out, "params.safetensors").read_bytes() for out in "abc")
    assert a == b
    assert a != c
    assert Path("a/metrics.jsonl").read_bytes() == Path("b/metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_the_result_has_the_numbers_of_the_last_epoch_and_the_time(here):
    cli.main([*GAUSSIAN, "--out", "run", "--epochs", "3", "--estimator", "iwae"])
    result, history = runs.read_result("run"), runs.load("run").history
    assert {name: result[name] for name in ("system", "estimator", "epochs", "steps", "host", "best_epoch")} == {
        "system": "gaussian2d_vae", "estimator": "iwae", "epochs": 3, "steps": 30, "host": platform.node(),
        "best_epoch": None,
    }  # fmt: skip
    assert result["test_bound"] == history.test_bound[-1]
    for name, mean in {"bound": "train_bound", "reconstruction": "reconstruction", "kl": "kl"}.items():
        assert result[mean] == pytest.approx(getattr(history, name)[-10:].mean(), rel=1e-12), "equal batches"
    rows = [json.loads(line) for line in Path("run/times.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(10, 0), (20, 1), (30, 2)]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert (result["seconds"], result["steps_per_second"]) == (seconds[-1], pytest.approx(30 / seconds[-1], abs=1e-3))


@pytest.mark.usefixtures("no_figures")
def test_the_result_names_the_best_epoch_if_its_parameters_are_kept(here):
    cli.main([*GAUSSIAN, "--out", "run", "--epochs", "4", "--lr", "0.3", "--keep-best"])
    result, bounds = runs.read_result("run"), runs.load("run").history.test_bound
    assert result["best_epoch"] == np.argmax(bounds) < 3
    assert result["best_test_bound"] == max(bounds) > result["test_bound"]


@pytest.mark.usefixtures("no_figures")
def test_a_run_ends_with_five_lines_of_the_numbers_in_its_result(here, capsys):
    cli.main([*GAUSSIAN, "--out", "run", "--epochs", "3", "--lr", "0.01"])
    lines, result = capsys.readouterr().out.splitlines()[-5:], runs.read_result("run")
    shown = [float(number) for number in re.findall(r"-?\d+\.\d{4}", lines[0])]
    assert shown == [round(result[name], 4) for name in ("test_bound", "train_bound", "reconstruction", "kl")]
    assert result["train_bound"] == pytest.approx(result["reconstruction"] - result["kl"])
    assert lines[0].startswith("test bound -")
    assert lines[0].endswith("); nats per example")
    speed = fv.tracking.speed(30, result["seconds"])
    assert lines[1] == f"trained 30 steps in {fv.tracking.duration(result['seconds'])}, {speed}"
    assert lines[2].startswith("figures: run/figures (")
    assert lines[3:] == ["next: funcvae evaluate run", "next: funcvae variance run"]


@pytest.mark.usefixtures("no_figures")
def test_progress_of_python_replaces_the_lines_of_epochs(here, capsys):
    calls = []
    runs.train("gaussian2d_vae", epochs=1, out="run", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(step, 10) for step in range(11)]
    assert capsys.readouterr().err.splitlines()[2:] == []  # after the two lines of the plan


@pytest.mark.usefixtures("no_figures")
def test_a_run_whose_latents_are_all_unused_ends_with_a_hint(here, capsys):
    x = fv.random.uniform(fv.random.key(0), (21, 1, 28, 28)).numpy()
    np.savez("same.npz", train=x[:20], test=x[[20] * 5])  # equal test items have equal codes
    trained("same.npz", "mnist_vae", "unused")
    assert capsys.readouterr().out.splitlines()[-1].startswith("hint: no latent is active")
    assert runs.read_result("unused")["active_units"] == 0
    trained("same.npz", "mnist_ae", "point")
    result = runs.read_result("point")
    assert (result["active_units"], result["kl"]) == (None, 0.0), "a point has no density, and its KL means nothing"
    cli.main([*GAUSSIAN, "--out", "used", "--epochs", "20", "--lr", "0.01"])
    assert runs.read_result("used")["active_units"] > 0
    assert "hint" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_run_with_a_single_test_item_has_no_number_of_active_units(here):
    x = fv.random.uniform(fv.random.key(0), (21, 1, 28, 28)).numpy()
    np.savez("one.npz", train=x[:20], test=x[20:])
    assert runs.read_result(trained("one.npz"))["active_units"] is None


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("system", "options", "constant", "divisor"),
    [
        ("mnist_sigma_vae", [], np.log(np.pi), 784),
        ("mnist_bn_vae", [], np.log(784 * np.pi), 1),
        ("mnist_bn_vae", ["--model.alpha", "784"], np.log(np.pi), 1),
    ],
)
def test_the_line_of_an_epoch_has_the_loss_that_the_post_prints(digits, capsys, system, options, constant, divisor):
    """The error times its weight plus the KL of the last batch: the log-normaliser of the likelihood is left out."""
    run = trained(digits, system, "run", *options)
    shown = re.search(r"last loss ([\d.]+), bound", capsys.readouterr().err)[1]
    last = [row for row in fv.tracking.MetricsReader(run / "metrics.jsonl") if row["kind"] == "step"][-1]
    loss = (-last["reconstruction"] - 392 * constant + last["kl"]) / divisor
    assert float(shown) == pytest.approx(loss, rel=6e-3), "three digits"


def test_without_a_result_the_run_is_not_finished(here):
    Path("run").mkdir()
    with pytest.raises(Missing, match=r"result\.json is missing"):
        runs.read_result("run")
    Path("run/result.json").write_text('{"system": 3}')
    with pytest.raises(BadData, match="is not the result of a run: "):
        runs.read_result("run")


@pytest.mark.usefixtures("no_figures")
def test_a_run_equals_the_same_calls_in_python(here):
    cli.main([*GAUSSIAN, "--out", "run", "--seed", "4", "--estimator", "iwae", "--lr", "0.01"])
    dataset, model, opt = data.load("gaussian2d"), fv.models.gaussian2d_vae(), fv.optim.adam(0.01)
    ts = fv.train.init(model, opt, fv.random.key(4))
    ts, history = fv.train.fit(
        ts,
        model,
        fv.estimators.iwae(),
        opt,
        dataset.train,
        test=dataset.test,
        epochs=1,
        batch=1000,
        samples=2,
        compile=False,
    )
    stored = load_file("run/params.safetensors")
    named = fv.tree.named_leaves({"params": ts.params, "state": ts.state})
    assert stored.keys() == named.keys()
    assert all(torch.equal(stored[name], named[name]) for name in named)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == history.loss.tolist()
    assert [row["test_bound"] for row in rows if "test_bound" in row] == history.test_bound.tolist()


@pytest.mark.usefixtures("no_figures")
def test_config_and_manifest(here):
    cli.main([*GAUSSIAN, "--out", "run", "--seed", "3"])
    config = json.loads(Path("run/config.json").read_text())
    assert config == {
        "system": "gaussian2d_vae",
        "data": "gaussian2d",
        "data_dir": "data",
        "epochs": 1,
        "batch": 1000,
        "samples": 2,
        "noise": "iid",
        "chunk": 0,
        "shards": 0,
        "split": "rows",
        "estimator": "elbo",
        "lr": None,
        "seed": 3,
        "device": "cpu" if not torch.cuda.is_available() else "cuda",
        "precision": "highest",
        "compile": False,
        "out": "run",
        "deterministic": False,
        "sample_each_step": False,
        "variance_every": 0,
        "variance_of": "",
        "variance_replicates": 100,
        "checkpoint_every": 1000,
        "keep": 2,
        "size": None,
        "optimizer": "adam",
        "clip": 0.0,
        "early_stopping": 0,
        "test_every": 1,
        "keep_best": False,
        "stream": False,
        "model": {"latent": 2, "hidden": 64},
    }
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["funcvae"] == fv.__version__
    assert manifest["data_sha256"] == data.load("gaussian2d").sha256()
    assert manifest["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("system", slow_but(("mnist_vae", "burda_vae", "burda2_vae"), DIGITS))
def test_a_system_of_images_draws_its_figures(digits, system):
    run = trained(digits, system)
    names = {"training", "latent_scatter", "samples", "reconstructions", "interpolation"}
    if system in ("mnist_ae", "mnist_vae"):
        names |= {"latent_grid"}
    elif "sbn" not in system and system != "burda2_vae":  # their latents are not normal
        names |= {"latent_traversal"}
    assert {p.stem for p in (run / "figures").iterdir()} == names
    assert json.loads((run / "config.json").read_text())["compile"] is False


def test_the_resnet_trains_on_a_folder_of_photographs_of_another_size(here):
    for part, n in {"train": 6, "test": 4}.items():
        for i, x in enumerate(fv.random.uniform(fv.random.key(n), (n, 24, 16, 3)).numpy()):
            folder = here / "photos" / part / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * x).astype(np.uint8)).save(folder / f"{i}.png")
    with without_figures():
        cli.main(["train", "cifar_resnet_vae", "--data", "photos", "--batch", "3", "--epochs", "1", "--out", "run"])
    assert json.loads(Path("run/manifest.json").read_text())["data"]["shape"] == [3, 24, 16]
    cli.main(["sample", "run", "--n", "5"])
    assert Path("run/figures/samples.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_a_folder_of_several_sizes_needs_a_size_which_the_run_keeps(here, capsys):
    (here / "photos").mkdir()
    for i, shape in enumerate([(40, 30), (28, 50), (9, 9), (28, 28)]):
        x = 255 * fv.random.uniform(fv.random.key(i), shape)
        Image.fromarray(x.to(torch.uint8).numpy()).save(f"photos/{i}.png")
    error = refused(capsys, "train", "mnist_vae", "--data", "photos")
    assert (
        "photos/1.png has 50×28 pixels, photos/0.png has 30×40: to resize all images, set size, as in --size" in error
    )
    run = trained("photos", "mnist_vae", "run", "--size", "28")
    assert json.loads(Path("run/config.json").read_text())["size"] == 28
    assert runs.load(run).dataset().train.shape == (3, 1, 28, 28)
    assert runs.initial_run("mnist_vae", data="photos", size=28).data_sha256 == runs.load(run).data_sha256
    assert runs.verify(run).first_difference is None
    capsys.readouterr()
    assert "size was 28 and is 8 now" in refused(capsys, "train", "--resume", "run", "--size", "8")
    assert "the images of a run keep the size of its training" in refused(capsys, "variance", "run", "--size", "28")
    cli.main(["train", "--resume", "run", "--epochs", "2"])


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("system", "options"),
    [
        ("mnist_vae", ["--variance-every", "1", "--variance-replicates", "3"]),
        pytest.param("mnist_bn_vae", ["--shards", "3"], marks=pytest.mark.slow),
        pytest.param("burda_vae", ["--split", "samples", "--shards", "2"], marks=pytest.mark.slow),
    ],
)
def test_bytes_and_their_floats_give_the_same_bits(here, system, options):
    x = (255 * fv.random.uniform(fv.random.key(0), (40, 1, 28, 28))).to(torch.uint8)
    np.savez("bytes.npz", train=x[:30], test=x[30:])
    np.savez("floats.npz", train=x[:30] / 255, test=x[30:] / 255)
    a, b = (trained(f"{kind}.npz", system, kind, "--samples", "2", *options) for kind in ("bytes", "floats"))
    for file in ("params.safetensors", "metrics.jsonl"):
        assert (a / file).read_bytes() == (b / file).read_bytes()
    assert runs.load(a).dataset().train.dtype == torch.uint8
    assert runs.load(a).data_sha256 == runs.load(b).data_sha256
    report, other = (runs.evaluation_report(runs.load(run), samples=5, chunk=5) for run in (a, b))
    assert {**report, "data": ""} == {**other, "data": ""}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("axes", "shape"), [("n h w", "[H, W]"), ("n h w 1", "[H, W, C]")])
def test_images_with_other_axes_are_read_with_a_notice(here, capsys, axes, shape):
    x = (255 * fv.random.uniform(fv.random.key(0), (20, 28, 28))).to(torch.uint8)
    np.save("standard.npy", x.unsqueeze(1))
    np.save("other.npy", rearrange(x, f"n h w -> {axes}"))
    a, b = (trained(f"{name}.npy", "mnist_vae", name) for name in ("standard", "other"))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    got = list(np.load("other.npy").shape[1:])
    notice = f"other.npy has items of shape {got}: they are read as {shape}, so as images [1, 28, 28]"
    assert capsys.readouterr().err.count(notice) == 1
    assert runs.verify(b).first_difference is None


@pytest.mark.usefixtures("no_figures")
def test_the_recipe_scales_the_loss(digits):
    run = trained(digits, "mnist_sigma_vae")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx((-row["bound"] - 392 * np.log(np.pi)) / 784, rel=1e-5)


def test_sample_each_step(here):
    cli.main([*GAUSSIAN, "--out", "run", "--sample-each-step"])
    kept = np.load("run/samples.npy")
    assert kept.shape == (10, 1000, 2)
    assert kept.dtype == np.float32
    assert len(np.unique(kept[:, 0, 0])) == 10
    assert Path("run/figures/evolution.png").is_file()
    with without_figures():
        cli.main([*GAUSSIAN, "--out", "plain"])
    assert not Path("plain/samples.npy").exists()
    assert Path("run/params.safetensors").read_bytes() == Path("plain/params.safetensors").read_bytes()
    last = runs.load("run")
    _, run_key = fv.random.split(fv.random.key(0))
    _, _, step_key = fv.random.split(fv.train.run_keys(run_key).pictures, 3)
    again = decoding.samples(*last.trained, fv.random.fold_in(step_key, 10), 1000)
    np.testing.assert_array_equal(kept[-1], again.numpy())


@pytest.mark.parametrize("system", [pytest.param("mnist_ae", marks=pytest.mark.slow), "mnist_vae"])
def test_a_run_on_the_smallest_data_has_its_figures(here, system):
    x = fv.random.uniform(fv.random.key(0), (3, 1, 28, 28)).numpy()
    np.savez("few.npz", train=x[:2], test=x[2:])
    run = trained("few.npz", system)
    assert (run / "figures" / "latent_grid.png").is_file()


def test_points_on_a_line_are_drawn_too(here):
    x = fv.random.normal(fv.random.key(0), (40, 1)).numpy()
    np.save("line.npy", np.concatenate([x, x], axis=1))
    cli.main([*GAUSSIAN, "--data", "line.npy", "--out", "run"])
    assert Path("run/figures/densities.png").is_file()


def test_a_wrong_estimator_is_an_error_before_the_folder_exists(digits, capsys):
    command = ["train", "mnist_ae", "--data", str(digits), "--estimator", "iwae", "--out", "run"]
    assert "a Delta posterior has no density" in refused(capsys, *command)


def test_an_interrupt_is_one_line(here, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("funcvae.train.loop.fit_task", interrupted)
    with pytest.raises(SystemExit) as exit_:
        cli.main([*GAUSSIAN, "--out", "run"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("funcvae: stopped")


def test_images_cannot_be_sampled_at_each_step(digits, capsys):
    command = ["train", "mnist_vae", "--data", str(digits), "--sample-each-step", "--out", "run"]
    assert "--sample-each-step needs data in the plane: mnist_vae has images" in refused(capsys, *command)


def test_a_last_batch_of_one_is_an_error_before_the_folder_exists(digits, capsys):
    command = ["train", "mnist_bn_vae", "--data", str(digits), "--batch", "29", "--out", "run"]
    assert "leave a batch of a single item" in refused(capsys, *command)


def test_the_error_of_a_missing_tracker_has_the_command_to_install_it(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for name in ("visdom", "tensorboard"):
        assert "pip install" in refused(capsys, *GAUSSIAN, "--out", "run", "--track", name)


def test_a_missing_visdom_server_is_an_error(here, capsys):
    pytest.importorskip("visdom", reason="visdom is not installed")
    options = ["--track", "visdom", "--visdom-server", "http://localhost:9"]
    error = refused(capsys, *GAUSSIAN, "--out", "run", *options)
    assert "no visdom server answers at http://localhost:9" in error


@pytest.mark.usefixtures("no_figures")
def test_a_tracker_changes_no_bit_of_a_run(digits):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    plain, tracked = trained(digits, "mnist_vae", "plain"), trained(digits, "mnist_vae", "b", "--track", "tensorboard")
    for file in ("params.safetensors", "metrics.jsonl"):
        assert (plain / file).read_bytes() == (tracked / file).read_bytes()
    assert len(list(tracked.glob("events.out.tfevents.*"))) == 1
    assert {p.name for p in tracked.iterdir()} - {p.name for p in plain.iterdir()} == {
        p.name for p in tracked.glob("events*")
    }


@pytest.mark.usefixtures("no_figures")
def test_a_run_survives_its_tracker(digits, capsys, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import RecordWriter

    rows = []

    def full(self, data):
        rows.append(data)
        if len(rows) > 3:
            raise OSError("no space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    run = trained(digits, "mnist_vae", "run", "--track", "tensorboard")
    assert capsys.readouterr().err.count("tensorboard stopped; the run continues without it") == 1
    assert (run / "params.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least"),
    [
        (["mnist_vae"], -495),
        (["burda_vae", "--estimator", "iwae", "--samples", "5", "--batch", "100"], -145),
    ],
)
def test_real_digits_train_compiled(here, mnist_root, options, least):
    for out in ("a", "b"):
        cli.main(["train", *options, "--data-dir", str(mnist_root), "--epochs", "1", "--out", out])
    rows = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_bound"] > least
    assert Path("a/params.safetensors").read_bytes() == Path("b/params.safetensors").read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_a_run_compiles_if_that_pays_and_keeps_what_it_decided(digits, monkeypatch):
    asked = []
    monkeypatch.setattr(fv.compilation, "pays", lambda *args: bool(asked.append(args)))
    cli.main(["train", "mnist_vae", "--data", str(digits), "--epochs", "2", "--batch", "20", "--out", "run"])
    items = len(np.load(digits)["train"])
    ((steps, params, decoded),) = asked
    assert (steps, decoded) == (2 * -(-items // 20), 20 * 784)
    assert fv.tree.paths(params) == fv.tree.paths(runs.load("run").trained.params)
    assert json.loads(Path("run/config.json").read_text())["compile"] is False
    monkeypatch.setattr(fv.compilation, "pays", lambda *args: True)
    cli.main(["train", "--resume", "run", "--epochs", "3"])
    assert json.loads(Path("run/config.json").read_text())["compile"] is False


@pytest.mark.usefixtures("no_figures")
def test_without_a_compiler_train_prints_a_notice(digits, monkeypatch, capsys):
    prepare._print_once.cache_clear()
    monkeypatch.setattr(fv.compilation, "pays", lambda *args: True)
    monkeypatch.setattr(fv.compilation, "available", lambda: False)
    cli.main(["train", "mnist_vae", "--data", str(digits), "--epochs", "1", "--out", "run"])
    assert capsys.readouterr().err.count("no C++ compiler was found") == 1
    assert json.loads(Path("run/config.json").read_text())["compile"] is False


@pytest.mark.usefixtures("no_figures")
def test_a_step_that_cannot_be_compiled_is_an_error(digits, monkeypatch, capsys):
    def fails(*args):
        raise torch._dynamo.exc.Unsupported("Encountered something new\n  Hint: none")

    monkeypatch.setattr(torch, "compile", lambda f, **options: fails)
    train = ["train", "mnist_vae", "--data", str(digits), "--epochs", "1"]
    with pytest.raises(SystemExit):
        cli.main([*train, "--out", "run", "--compile"])
    assert capsys.readouterr().err.endswith(
        "\nfuncvae: error: the compiler cannot compile this: Encountered something new; "
        "train with --no-compile (compile=False)\n"
    )
    cli.main([*train, "--out", "run", "--no-compile"])


def test_the_compiler_is_found(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not fv.compilation.available()


@pytest.mark.usefixtures("no_figures")
def test_precision_is_set_for_the_run(here, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    cli.main([*GAUSSIAN, "--out", "run", "--precision", "high"])
    assert seen[0] == "high"
    assert "medium" not in seen
    assert seen[-1] == "highest", "set back"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "mnist_vea"], "unknown system 'mnist_vea': did you mean 'mnist_vae'?"),
        (["train", "--estimator", "iwea"], "unknown estimator 'iwea': did you mean 'iwae'?"),
        (["train", "--estimator", "beta_elbo"], "write beta_elbo:BETA"),
        (["train", "--data", "mnits"], "unknown data 'mnits': did you mean 'mnist'?"),
        (["train", "mnist_vae", "--data-dir", "nowhere"], "set download (--download)"),
        (["train", "--data", "no/such.npy"], "no/such.npy"),
        (["train", "--samples", "0"], "samples is 0: it must be at least 1"),
        (["train", "--batch", "-1"], "batch is -1: it must be at least 1"),
        (["train", "--epochs", "0"], "epochs is 0: it must be at least 1"),
        (["train", "--seed", "-1"], "seed is -1: it must be between 0 and 2**64 - 1"),
        (["train", "--lr", "-0.1"], "lr is -0.1: it must be at least 0"),
        (
            ["train", "mnist_vae", "--data", "gaussian2d"],
            "mnist_vae takes items of shape [1, 28, 28]: gaussian2d has [2]",
        ),
        (
            ["train", "burda_vae", "--data", "gaussian2d"],
            "burda_vae takes items of shape [1, 28, 28]: gaussian2d has [2]",
        ),
        (["train", "--out", "/dev/null/run"], "/dev/null/run cannot be created or written in: Not a directory"),
    ],
)
def test_an_error_is_one_line(here, capsys, args, message):
    assert message in refused(capsys, *args)


@pytest.mark.usefixtures("no_figures")
def test_a_folder_with_files_is_an_error(here, capsys):
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    assert "full exists and is not an empty folder: choose another folder" in refused(
        capsys, *GAUSSIAN, "--out", "full"
    )
    Path("empty").mkdir()
    cli.main([*GAUSSIAN, "--out", "empty"])
    capsys.readouterr()
    with_run = refused(capsys, *GAUSSIAN, "--out", "empty")
    assert "choose another folder, or resume its run: funcvae train --resume empty" in with_run


def test_cuda_that_is_not_available_is_an_error(here, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is available: set device to cpu" in refused(capsys, "train", "--device", "cuda")


def test_pixels_outside_the_likelihoods_range_are_an_error(here, capsys):
    bright, dark = np.full((20, 1, 28, 28), 255.0), np.zeros((20, 1, 28, 28))
    np.save("bright.npy", bright)
    np.savez("test_only.npz", train=dark, test=bright)
    for system in ("mnist_vae", "burda_vae"):
        for file in ("bright.npy", "test_only.npz"):
            error = refused(capsys, "train", system, "--data", file)
            assert f"{file} has pixels from 255 to 255: they must lie in [0, 1], or be uint8" in error


def test_a_run_that_becomes_nan_stops_and_can_be_read(here, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--lr", "1e20", "--out", "run"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "funcvae: error: " in error
    step = int(error.split("at step ")[1].split()[0])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(step))
    assert json.loads(Path("run/config.json").read_text())["lr"] == "1e20"
    assert not Path("run/params.safetensors").exists()


@pytest.mark.usefixtures("no_figures")
def test_noise_is_an_option_and_part_of_the_configuration(here):
    for scheme in ("iid", "mirrored", "moment_matched", "sobol"):
        cli.main([*GAUSSIAN, "--out", scheme, "--noise", scheme, "--estimator", "iwae"])
        assert runs.load(scheme).config.noise == scheme
    assert len({Path(scheme, "params.safetensors").read_bytes() for scheme in fv.noise.TABLE}) == 3
    assert Path("mirrored/params.safetensors").read_bytes() == Path("moment_matched/params.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--estimator", "rloo", "--samples", "1"],
            "samples is 1: rloo compares the samples of a datum, so it must be at least 2",
        ),
        (["--estimator", "miwae:3", "--samples", "4"], "4 samples cannot be divided into 3 equal groups"),
        (
            ["--estimator", "dreg", "--noise", "mirrored"],
            "dreg requires independent samples; mirrored noise is not independent",
        ),
        (["--noise", "mirrored", "--samples", "3"], "samples is 3: antithetic noise comes in pairs"),
        (["--noise", "sobl"], "unknown noise 'sobl': did you mean 'sobol'"),
        (["--estimator", "renyi"], "write renyi:ALPHA, as in renyi:0.5"),
        (["--estimator", "tvo:0:2:1"], "it must rise from 0 to 1"),
    ],
)
def test_an_estimator_that_does_not_suit_the_noise_is_an_error_before_anything_is_written(
    here, capsys, options, message
):
    assert message in refused(capsys, "train", *options, "--out", "run")


@pytest.mark.usefixtures("no_figures")
def test_trackers_do_not_change_a_result(here):
    class Meddler:
        def log(self, row):
            row.clear()

        def show(self, step, images):
            images.clear()

    options = {"epochs": 1, "batch": 1000, "samples": 2}
    fv.runs.train("gaussian2d_vae", out="a", **options)
    fv.runs.train("gaussian2d_vae", out="b", **options, trackers=[lambda run, config, past: nullcontext(Meddler())])
    assert Path("a/params.safetensors").read_bytes() == Path("b/params.safetensors").read_bytes()
