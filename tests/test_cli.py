"""The command line, as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import funcvae as fv
from funcvae import cli, data, runs, tracking

GAUSSIAN = ["train", "--epochs", "1", "--batch", "1000", "--samples", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def digits(here) -> Path:
    """Forty images of the digits' shape, as a file."""
    x = fv.random.uniform(fv.random.key(0), (40, 1, 28, 28)).numpy()
    np.savez(here / "digits.npz", train=x[:30], test=x[30:], train_labels=np.arange(30) % 10, test_labels=np.arange(10))
    return here / "digits.npz"


def refused(capsys, *args: str) -> str:
    """The one line that a mistake gets; status 2, no traceback, nothing written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("funcvae: error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


def test_train_alone_runs_the_two_dimensional_example_into_a_fresh_folder(here, capsys):
    cli.main(GAUSSIAN)
    cli.main(GAUSSIAN)
    outs = capsys.readouterr().out.split()
    assert len(set(outs)) == 2
    run = Path(outs[0])
    assert run.parts[0] == "runs"
    assert {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "params.safetensors",
        "figures/training.png",
        "figures/latent_scatter.png",
        "figures/densities.png",
    }


def test_equal_commands_write_equal_bytes_and_another_seed_does_not(here):
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        cli.main([*GAUSSIAN, "--out", out, "--seed", seed])
    a, b, c = (Path(out, "params.safetensors").read_bytes() for out in "abc")
    assert a == b
    assert a != c
    assert Path("a/metrics.jsonl").read_bytes() == Path("b/metrics.jsonl").read_bytes()


def test_a_run_equals_the_same_calls_in_python(here):
    cli.main([*GAUSSIAN, "--out", "run", "--seed", "4", "--estimator", "iwae", "--lr", "0.01"])
    dataset, model, opt = data.load("gaussian2d"), fv.models.gaussian2d_vae(), fv.optim.adam(0.01)
    ts = fv.train.init(model, opt, fv.random.key(4))
    ts, history = fv.train.fit(
        ts, model, fv.estimators.iwae(), opt, dataset.train, test=dataset.test, epochs=1, batch=1000, samples=2
    )
    stored = load_file("run/params.safetensors")
    named = fv.tree.named_leaves({"params": ts.params, "state": ts.state})
    assert stored.keys() == named.keys()
    assert all(torch.equal(stored[name], named[name]) for name in named)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == history.loss.tolist()
    assert [row["test_bound"] for row in rows if "test_bound" in row] == history.test_bound.tolist()


def test_config_and_manifest_say_what_was_run_and_on_what(here):
    cli.main([*GAUSSIAN, "--out", "run", "--seed", "3"])
    config = json.loads(Path("run/config.json").read_text())
    assert config == {
        "system": "gaussian2d_vae",
        "data": "gaussian2d",
        "data_dir": "data",
        "epochs": 1,
        "batch": 1000,
        "samples": 2,
        "estimator": "elbo",
        "lr": None,
        "seed": 3,
        "device": "cpu" if not torch.cuda.is_available() else "cuda",
        "precision": "highest",
        "compile": False,
        "out": "run",
    }
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["funcvae"] == fv.__version__
    assert manifest["data_sha256"] == data.load("gaussian2d").sha256()
    assert manifest["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("system", ["mnist_vae", "burda_vae"])
def test_a_system_of_images_draws_its_four_figures(digits, system):
    options = ["--estimator", "iwae", "--samples", "3", "--batch", "20", "--epochs", "1", "--no-compile"]
    cli.main(["train", system, "--data", str(digits), *options, "--out", "run"])
    names = {"training", "latent_scatter", "latent_grid", "reconstructions"}
    assert {p.stem for p in Path("run/figures").iterdir()} == names
    assert json.loads(Path("run/config.json").read_text())["compile"] is False


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


def test_without_a_compiler_it_says_so_once_and_trains_on(digits, monkeypatch, capsys):
    monkeypatch.setattr(runs, "can_compile", lambda: False)
    cli.main(["train", "mnist_vae", "--data", str(digits), "--epochs", "1", "--out", "run"])
    assert capsys.readouterr().err.count("no C++ compiler found") == 1
    assert json.loads(Path("run/config.json").read_text())["compile"] is False


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not runs.can_compile()


def test_precision_is_set_for_the_run(here, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    cli.main([*GAUSSIAN, "--out", "run", "--precision", "high"])
    assert seen == ["high"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "mnist_vea"], "unknown system 'mnist_vea': did you mean 'mnist_vae'?"),
        (["train", "--estimator", "iwea"], "unknown estimator 'iwea': did you mean 'iwae'?"),
        (["train", "--estimator", "beta_elbo"], "write beta_elbo:BETA"),
        (["train", "--data", "mnits"], "unknown data 'mnits': did you mean 'mnist'?"),
        (["train", "mnist_vae", "--data-dir", "nowhere"], "--download"),
        (["train", "--data", "no/such.npy"], "no/such.npy"),
        (["train", "--samples", "0"], "--samples is 0: it must be at least 1"),
        (["train", "--batch", "-1"], "--batch is -1: it must be at least 1"),
        (["train", "--epochs", "0"], "--epochs is 0: it must be at least 1"),
        (["train", "--seed", "-1"], "seed is -1: it must lie between 0 and 2**64 - 1"),
        (["train", "--lr", "-0.1"], "lr is -0.1: a learning rate is not negative"),
        (
            ["train", "mnist_vae", "--data", "gaussian2d"],
            "mnist_vae takes items of shape [1, 28, 28]: gaussian2d has [2]",
        ),
        (
            ["train", "burda_vae", "--data", "gaussian2d"],
            "burda_vae takes items of shape [1, 28, 28]: gaussian2d has [2]",
        ),
        (["train", "--out", "/dev/null/run"], "--out /dev/null/run cannot be made: Not a directory"),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_would_be_right(here, capsys, args, message):
    assert message in refused(capsys, *args)


def test_a_folder_that_holds_something_is_never_written_into(here, capsys):
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    assert "full exists and is not an empty folder: choose another --out" in refused(capsys, *GAUSSIAN, "--out", "full")
    Path("empty").mkdir()
    cli.main([*GAUSSIAN, "--out", "empty"])


def test_cuda_where_there_is_none_is_an_error(here, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is available: use --device cpu" in refused(capsys, "train", "--device", "cuda")


def test_pixels_outside_the_likelihoods_range_are_an_error(here, capsys):
    bright, dark = np.full((20, 1, 28, 28), 255.0), np.zeros((20, 1, 28, 28))
    np.save("bright.npy", bright)
    np.savez("test_only.npz", train=dark, test=bright)
    for system in ("mnist_vae", "burda_vae"):
        for file in ("bright.npy", "test_only.npz"):
            error = refused(capsys, "train", system, "--data", file)
            assert f"{file} has pixels from 255 to 255: they must lie in [0, 1], or be uint8" in error


def test_a_run_that_becomes_nan_stops_and_leaves_what_it_wrote_readable(here, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--lr", "1e20", "--out", "run"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "funcvae: error: " in error
    step = int(error.split("at step ")[1].split()[0])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(step))
    assert json.loads(Path("run/config.json").read_text())["lr"] == 1e20
    assert not Path("run/params.safetensors").exists()


def test_list_names_everything(capsys):
    for what, names in {"systems": fv.models.RECIPES, "estimators": fv.estimators.TABLE, "data": data.NAMED}.items():
        cli.main(["list", what])
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(names)


def test_an_unknown_option_is_refused_without_a_traceback(here, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--epoch", "3"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "--epochs" in error
    assert "Traceback" not in error


def test_the_module_runs_as_the_command_does(here):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "funcvae", "train", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("funcvae: error: unknown system 'nothing'")


def test_trackers_do_not_change_a_result(here, monkeypatch):
    cli.main([*GAUSSIAN, "--out", "a"])
    monkeypatch.setattr(tracking, "progress_bar", lambda steps: tracking.jsonl(Path("other.jsonl")))
    cli.main([*GAUSSIAN, "--out", "b"])
    assert Path("a/params.safetensors").read_bytes() == Path("b/params.safetensors").read_bytes()
