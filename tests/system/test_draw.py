"""The commands that draw figures of a finished run, and `runs.load`."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import load_file

import funcvae as fv
from funcvae import cli, runs
from funcvae.runs import folder
from tests.support.commands import GAUSSIAN, refused, trained
from tests.support.figures import without_figures
from tests.support.specs import slow_but


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (["sample"], ["samples.png"]),
        (["sample", "--drawn", "--n", "7"], ["samples_drawn.png"]),
        (["reconstruct"], ["reconstructions.png"]),  # of a test set smaller than the default
        (["reconstruct", "--n", "3", "--mean"], ["reconstructions_mean.png"]),
        (
            ["interpolate", "0", "9", "--steps", "5", "--frames", "4"],
            ["interpolation_0_9.png", "interpolation_0_9.gif"],
        ),
        (["latent"], ["latent_scatter.png"]),
        (["latent", "grid"], ["latent_grid.png"]),
        (["latent", "grid", "--range", "-3", "3", "--n", "4", "--format", "svg"], ["latent_grid.svg"]),
        (
            ["interpolate", "--classes", "1", "0", "--frames", "4", "--format", "pdf"],
            ["interpolation_1_0.pdf", "interpolation_1_0.gif"],
        ),
    ],
)
def test_a_figure_is_written_and_its_path_printed(digits, finished, capsys, command, files):
    run = finished()
    capsys.readouterr()
    name, *options = command
    cli.main([name, str(run), *options])
    written = [str(run / "figures" / file) for file in files]
    assert capsys.readouterr().out.split() == written
    assert sorted(map(str, (run / "figures").iterdir())) == sorted(written)
    first = [Path(file).read_bytes() for file in written]
    Path("elsewhere").mkdir()
    named = [word for word in options if word not in ("--format", "svg", "pdf")]
    cli.main([name, str(run), *named, "--out", f"elsewhere/picture{Path(files[0]).suffix}"])
    assert [Path("elsewhere/picture").with_suffix(Path(f).suffix).read_bytes() for f in files] == first


LOOKS = {
    "sample": [], "latent": [], "evaluate": ["--samples", "20", "--n", "10"],
    "variance": ["--estimators", "iwae", "stl", "--samples", "2", "--replicates", "40"],
}  # fmt: skip
OF_IMAGES = {"reconstruct": [], "interpolate": ["0", "1", "--frames", "2"]}


def test_a_run_that_is_not_finished_shows_its_newest_checkpoint(digits, capsys):
    with without_figures():
        trained("digits.npz", "mnist_vae", "run", "--epochs", "2", "--checkpoint-every", "2")
    for name in ("params.safetensors", "checkpoints/step-000000000004.safetensors"):
        Path("run", name).unlink()
    for command, options in (LOOKS | OF_IMAGES).items():
        capsys.readouterr()
        folder._print_once.cache_clear()
        cli.main([command, "run", *options])
        shown = capsys.readouterr()
        assert "run is not finished: this is its checkpoint of step 2 of 4; to continue it: " in shown.err
        assert command not in ("evaluate", "variance") or "mnist_vae after 1 epoch" in shown.out
    assert "no checkpoint of step 3; it has: 2" in refused(capsys, "sample", "run", "--checkpoint", "3")


def test_a_run_of_version_06_is_looked_at(here, capsys):
    shutil.copytree(Path(__file__).parents[1] / "reference" / "run-0.6", "run")
    for command, options in (LOOKS | {"show": []}).items():
        cli.main([command, "run", *options])
    assert re.search(r"made with +funcvae 0\.6", capsys.readouterr().out)


def test_several_runs_are_set_side_by_side(digits, capsys, monkeypatch):
    with without_figures():
        for name, estimator, samples in (("one/a", "elbo", "1"), ("two/a", "iwae", "3")):
            trained("digits.npz", "mnist_vae", f"runs/{name}", "--estimator", estimator, "--samples", samples)
    capsys.readouterr()
    cli.main(["show", "runs/one/a"])
    assert "estimator" in capsys.readouterr().out
    drawn, several_runs = [], fv.figures.of_results.several_runs

    def kept(histories):
        drawn.extend(histories)
        return several_runs(histories)

    monkeypatch.setattr(fv.figures.of_results, "several_runs", kept)
    cli.main(["show", "runs/one/a", "runs/two/a", "--out", "both.svg"])
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "both.svg"
    assert "two/a" in shown
    assert [label for label, _ in drawn] == ["one/a (ELBO)", "two/a (L_3)"]
    with Path("runs/two/a/metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "st')  # a row that is not complete yet
    cli.main(["show", "runs/one/a", "runs/one/a", "runs/two/a", "--out", "same.png"])
    cli.main(["show", "runs/one/a", "runs/one/a", "--format", "pdf"])
    assert [label for label, _ in drawn[-2:]] == ["a", "a"]
    assert Path("runs/one/runs.pdf").is_file()
    with Image.open("same.png") as picture:
        picture.verify()
    cli.main(["show", "runs/one/a", "--out", "training.pdf"])
    assert Path("training.pdf").read_bytes().startswith(b"%PDF")
    Path("runs/two/a/metrics.jsonl").write_text("")
    capsys.readouterr()
    cli.main(["show", "runs/one/a", "runs/two/a"])
    assert capsys.readouterr().out.splitlines()[-1] == "no figure: runs/two/a has made no steps"


def test_a_gif_runs_back_and_forth(digits, finished):
    run = finished()
    cli.main(["interpolate", str(run), "1", "3", "--frames", "4"])
    with Image.open(run / "figures" / "interpolation_1_3.gif") as gif:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    assert np.array_equal(frames[0], frames[-1]) or np.array_equal(frames[1], frames[-1])


@pytest.mark.parametrize(
    "system",
    slow_but(("burda2_vae", "mnist_ae"), ("mnist_bn_vae", "burda_vae", "burda2_vae", "sbn_vae", "mnist_ae")),
)
def test_other_systems_are_drawn(digits, finished, system):
    run = finished(system)
    for command in (["sample"], ["reconstruct", "--n", "2"], ["latent"]):
        cli.main([command[0], str(run), *command[1:]])
    cli.main(["interpolate", str(run), "0", "1", "--frames", "2", "--steps", "2"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("system", ["mnist_vae", "burda_vae", "mnist_bn_vae"])
def test_a_run_on_cuda_is_drawn_on_cuda_and_cpu(digits, system):
    run = trained(digits, system, "run", "--device", "cuda")
    for device in ("cuda", "cpu"):
        for command, *options in (["sample", "--drawn"], ["reconstruct", "--n", "2"], ["latent"]):
            cli.main([command, str(run), *options, "--device", device])
        cli.main(["interpolate", str(run), "0", "1", "--device", device])


def test_points_are_sampled_with_and_without_the_decoders_noise(here):
    with without_figures():
        cli.main([*GAUSSIAN, "--out", "run"])
    cli.main(["sample", "run"])
    cli.main(["sample", "run", "--drawn"])
    assert Path("run/figures/samples.png").read_bytes() != Path("run/figures/samples_drawn.png").read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_load_returns_the_trained_model(digits):
    run = runs.load(trained(digits, "mnist_bn_vae", "run", "--seed", "3"))
    stored = load_file("run/params.safetensors")
    named = fv.tree.named_leaves({"params": run.params, "state": run.state})
    assert stored.keys() == named.keys()
    assert all(torch.equal(stored[name], named[name]) for name in named)
    assert run.config.seed == 3
    assert run.dataset().test.shape == (10, 1, 28, 28)


def spoiled(run, file, change):
    path = run / file
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda run: [(run / "params.safetensors").unlink(), shutil.rmtree(run / "checkpoints")],
            "run is not finished and has no checkpoint yet: wait for the first one, or resume the run",
        ),
        (lambda run: (run / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda run: (run / "config.json").unlink(), "run is not a run folder: it has no config.json"),
        (lambda run: shutil.rmtree(run), "run: no such run folder"),
        (lambda run: (run / "params.safetensors").write_bytes(b"x"), "not a complete safetensors file"),
        (lambda run: spoiled(run, "config.json", lambda text: text[:40]), "config.json is not JSON"),
        (lambda run: spoiled(run, "config.json", lambda text: "[]"), "config.json does not hold a JSON object"),
        (
            lambda run: spoiled(run, "config.json", lambda text: "{}"),
            "config.json is not the configuration of a run: system is missing",
        ),
        (
            lambda run: spoiled(run, "manifest.json", lambda text: "{}"),
            "manifest.json is not the manifest of a run: versions is missing",
        ),
        (
            lambda run: spoiled(run, "manifest.json", lambda text: text.replace(fv.__version__, "first")),
            "versions.funcvae is 'first'",
        ),
        (lambda run: spoiled(run, "config.json", lambda text: text.replace("mnist_vae", "mnist_vea")), "did you mean"),
        (lambda run: spoiled(run, "config.json", lambda text: text.replace('"digits.npz"', "5")), "data is 5"),
        (
            lambda run: spoiled(run, "manifest.json", lambda text: text.replace("      28", '      "28"')),
            "data.shape[1] is '28': it must be a whole number",
        ),
        (
            lambda run: spoiled(run, "manifest.json", lambda text: text.replace("      28", "      -1")),
            "shape[1] is -1",
        ),
        (lambda run: spoiled(run, "manifest.json", lambda text: text.replace("      28", "      3")), "shape is"),
        (
            lambda run: spoiled(run, "manifest.json", lambda text: text.replace(fv.__version__, "0.99.0")),
            f"run was made by funcvae 0.99.0, this is {fv.__version__}: install that version",
        ),
        (
            lambda run: spoiled(run, "config.json", lambda text: text.replace("mnist_vae", "burda_vae")),
            "was changed after the run started",
        ),
    ],
)
def test_a_damaged_run_is_an_error_of_one_line(digits, finished, capsys, spoil, message):
    run = finished()
    spoil(run)
    capsys.readouterr()
    for command in (["sample", "run"], ["reconstruct", "run"], ["interpolate", "run", "0", "1"], ["latent", "run"]):
        assert message in refused(capsys, *command)


def test_a_run_of_another_patch_version_is_read(digits, finished):
    run = finished()
    spoiled(run, "manifest.json", lambda text: text.replace(fv.__version__, fv.__version__.rpartition(".")[0] + ".99"))
    assert runs.load(run).config.system.name == "mnist_vae"


@pytest.mark.usefixtures("no_figures")
def test_data_may_move_but_not_change(digits, finished, capsys):
    run = finished()
    Path("digits.npz").rename("moved.npz")
    capsys.readouterr()
    looks = [["reconstruct", "run"], ["interpolate", "run", "0", "1"], ["latent", "run"]]
    for command in looks:
        assert "digits.npz does not exist" in refused(capsys, *command)
        cli.main([*command, "--data", "moved.npz"])
    cli.main(["sample", str(run)])  # images are sampled without the data
    np.savez("digits.npz", train=np.zeros((30, 1, 28, 28)), test=np.ones((10, 1, 28, 28)))
    capsys.readouterr()
    for command in looks:
        assert "digits.npz is not the data that run was trained on" in refused(capsys, *command)


@pytest.mark.parametrize(
    ("system", "command", "message"),
    [
        ("mnist_vae", ["interpolate", "run", "0", "10"], "no test item 10: it must lie between 0 and 9"),
        ("mnist_vae", ["interpolate", "run", "0", "1", "--frames", "0"], "--frames is 0: it must lie between 2"),
        ("mnist_vae", ["interpolate", "run", "0", "1", "--frames", "1001"], "and 1000"),
        ("mnist_vae", ["interpolate", "run", "0", "1", "--steps", "51"], "--steps is 51"),
        ("mnist_vae", ["interpolate", "run", "0", "1", "--steps", "1"], "--steps is 1"),
        ("mnist_vae", ["interpolate", "run", "0", "1", "--out", "a.jpg"], ".png"),
        (
            "mnist_vae",
            ["reconstruct", "run", "--n", "11"],
            "--n is 11: it must lie between 1 and 10, the number of test items",
        ),
        ("mnist_vae", ["reconstruct", "run", "--n", "0"], "--n is 0"),
        ("mnist_vae", ["sample", "run", "--n", "0"], "--n is 0: it must lie between 1 and 100,000"),
        ("mnist_vae", ["sample", "run", "--seed", "-1"], "seed is -1"),
        ("mnist_vae", ["sample", "run", "--out", "samples.gif"], ".png"),
        ("burda_vae", ["latent", "run", "grid"], "has Z = 50: a grid needs Z = 2"),
        ("gaussian2d_vae", ["latent", "run", "grid"], "needs images"),
        ("gaussian2d_vae", ["reconstruct", "run"], "needs images"),
        ("gaussian2d_vae", ["interpolate", "run", "0", "1"], "needs images"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_an_error_of_one_line(digits, finished, capsys, system, command, message):
    finished(system)
    capsys.readouterr()
    assert message in refused(capsys, *command)


def test_a_negative_index_is_an_error(digits, finished, capsys):
    finished()
    capsys.readouterr()
    assert "no test item -1" in refused(capsys, "interpolate", "run", "--", "-1", "0")
