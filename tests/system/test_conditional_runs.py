"""A conditional own system: every command on its run, and the class of each sample."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import cli, figures, runs
from funcvae.errors import BadData, Stopped
from funcvae.figures import decoding
from tests.support import commands
from tests.support.sweeps import after

SOURCE = '''"""Small pictures by class."""
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import funcvae as fv


class Encoder(nn.Sequential):
    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return super().forward(torch.cat([data["x"].flatten(1), one_hot(data["y"], 3)], 1))


class Decoder(nn.Module):
    """The mean picture of a class, and what the latent adds."""

    def __init__(self, mean: Tensor, latent: int) -> None:
        super().__init__()
        self.of_class, self.of_z = nn.Embedding.from_pretrained(mean.logit(), freeze=False), nn.Linear(latent, 64)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.of_class(y) + 0.01 * self.of_z(z)).unflatten(-1, (1, 8, 8))


def squares_vae(train: dict[str, Tensor], latent: int = 2) -> fv.VAE:
    mean = torch.stack([train["x"][train["y"] == y].mean(0).flatten() for y in range(3)])
    return fv.vae(
        encoder=lambda: Encoder(nn.Linear(67, 2 * latent)), decoder=lambda: Decoder(mean, latent), latent=latent,
        modelled=lambda data: data["x"], condition=lambda data: data["y"],
    )


def observe(key: Tensor, data: dict[str, Tensor], rows: Tensor | None = None) -> dict[str, Tensor]:
    return {**data, "x": fv.models.recipe.binarize(key, data["x"], rows)}


squares = fv.System("squares_vae", "Pictures by class", squares_vae, fv.models.Recipe(
    shape=(1, 8, 8), epochs=2, batch=12, prepare=fv.data.Dataset.labelled, observe=observe))
'''
SPEC = "squares.py:squares_vae"
TRAIN = ["train", SPEC, "--data", "squares.npz", "--no-compile"]
LABELS = torch.arange(60) % 3


@pytest.fixture
def own(here, no_figures) -> None:
    """Sixty pictures, whose brightness shows the class, and the file of the system, in the current folder."""
    Path("squares.py").write_text(SOURCE)
    noise = fv.random.uniform(fv.random.key(0), (60, 1, 8, 8), minval=-0.1, maxval=0.1)
    x = (LABELS.reshape(60, 1, 1, 1) * 0.3 + 0.2 + noise).numpy()
    y = LABELS.numpy()
    np.savez("squares.npz", train=x[:48], test=x[48:], train_labels=y[:48], test_labels=y[48:])


@pytest.fixture
def run(own, capsys) -> str:
    """A finished run."""
    cli.main([*TRAIN, "--out", "run"])
    capsys.readouterr()
    return "run"


COMMANDS = {
    "evaluate": ["--samples", "100", "--n", "5"],
    "variance": ["--replicates", "4", "--estimators", "iwae"],
    "sample": ["--n", "30"],
    "reconstruct": ["--n", "4"],
    "interpolate": ["0", "1", "--steps", "2", "--frames", "2"],
    "latent": [],
    "verify": [],
    "replay": ["2"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore::funcvae.evaluate.Untrusted")
def test_every_command_works_on_a_conditional_run(run, capsys, command):
    cli.main([command, run, *COMMANDS[command], "--system", SPEC])
    assert capsys.readouterr().out


def test_python_makes_the_same_folder_as_the_command(run):
    Path("run").rename("by_command")
    runs.train(SPEC, data="squares.npz", out="run", compile=False)
    for name in ("config.json", "params.safetensors"):
        assert Path("run", name).read_bytes() == Path("by_command", name).read_bytes()


def test_a_stopped_conditional_run_resumes_with_the_same_bits(run):
    with pytest.raises(Stopped):
        runs.train(SPEC, data="squares.npz", out="stopped", compile=False, stop_context=after(3))
    cli.main(["train", SPEC, "--resume", "stopped"])
    assert Path("stopped/params.safetensors").read_bytes() == Path("run/params.safetensors").read_bytes()


def brightness(images) -> torch.Tensor:
    return torch.as_tensor(images).flatten(1).mean(1)


def test_each_sample_has_the_class_of_its_condition(run, monkeypatch):
    seen = {}

    def image_samples(*args, condition, **options):
        x = decoding.samples(*args, condition=condition, drawn=options["drawn"])
        return seen.update(x=x, condition=condition)

    monkeypatch.setattr(figures.of_model, "image_samples", image_samples)
    cli.main(["sample", run, "--n", "30", "--system", SPEC])
    assert torch.equal(seen["condition"], torch.arange(3).repeat_interleave(10)), "a row of ten images for each class"
    torch.testing.assert_close(brightness(seen["x"]), 0.2 + 0.3 * seen["condition"], atol=0.05, rtol=0)

    loaded = runs.load(run, system=SPEC)
    for y in range(3):
        x = decoding.samples(*loaded.trained, fv.random.key(0), 500, condition=torch.full((500,), y))
        error = 0.5 / (500 * 64) ** 0.5  # of the mean of Bernoulli pixels, at most
        assert float(x.mean()) == pytest.approx(0.2 + 0.3 * y, abs=0.03 + 4 * error)


def test_reconstructions_and_interpolations_keep_the_class(run):
    loaded = runs.load(run, system=SPEC)
    data = loaded.dataset().test
    x_hat = decoding.reconstructed(*loaded.trained, data, fv.random.key(0))
    torch.testing.assert_close(brightness(x_hat), 0.2 + 0.3 * data["y"], atol=0.05, rtol=0)
    ends = [{name: part[i] for name, part in data.items()} for i in (0, 2)]  # of the classes 0 and 2
    strip = decoding.interpolated(*loaded.trained, *ends, 5)
    torch.testing.assert_close(brightness(strip), torch.full((5,), 0.2), atol=0.05, rtol=0)


def test_the_recorded_test_bound_is_that_of_the_loaded_model(run):
    loaded = runs.load(run, system=SPEC)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    recorded = [row["test_bound"] for row in rows if "test_bound" in row]
    assert len(recorded) == 2
    bounds = []
    for key in fv.random.split(fv.random.key(3), 50):  # each binarization gives another number
        observe_key, noise_key = fv.random.split(key)
        test = loaded.observed(observe_key, loaded.dataset().test, torch.arange(12))
        bounds.append(fv.estimators.elbo().bound(*loaded.trained, test, fv.noise.iid(noise_key, 1, (12, 2))).mean())
    bounds = torch.stack(bounds)
    assert abs(recorded[-1] - bounds.mean()) < 4 * bounds.std()


def test_data_without_labels_are_refused_in_one_line(own, capsys):
    with np.load("squares.npz") as files:
        np.savez("bare.npz", train=files["train"], test=files["test"])
    message = "bare.npz has no labels for train and test: give class folders, or train_labels"
    assert message in commands.refused(capsys, "train", SPEC, "--data", "bare.npz", "--no-compile")
    with pytest.raises(BadData, match=message):
        runs.train(SPEC, data="bare.npz", out="run", compile=False)
    assert not Path("run").exists()


def test_pictures_of_another_size_are_refused_in_one_line(own, capsys):
    x = np.zeros((6, 1, 4, 4), np.float32)
    np.savez("small.npz", train=x, test=x, train_labels=np.arange(6) % 3, test_labels=np.arange(6) % 3)
    assert "takes items of shape [1, 8, 8]" in commands.refused(
        capsys, "train", SPEC, "--data", "small.npz", "--no-compile"
    )


def test_changed_labels_are_named(run, capsys):
    with np.load("squares.npz") as files:
        arrays = {name: files[name] for name in files}
    np.savez("squares.npz", **arrays | {"train_labels": arrays["train_labels"][::-1]})
    assert "squares.npz" in commands.refused(capsys, "verify", run, "--system", SPEC)


def test_the_variance_of_an_untrained_conditional_system(own, capsys):
    cli.main(["variance", SPEC, "--data", "squares.npz", "--replicates", "4"])
    assert "squares_vae, untrained" in capsys.readouterr().out
