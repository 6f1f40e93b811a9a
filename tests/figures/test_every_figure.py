import copy
import io
import itertools
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from funcvae import figures
from funcvae.errors import BadValue

RNG = np.random.default_rng(0)
classes = np.repeat(np.arange(10), 50)
Z = 4 * RNG.normal(size=(10, 2))[classes] + RNG.normal(size=(500, 2))
GRID = RNG.uniform(size=(3, 4, 1, 5, 6))
IMAGES = RNG.uniform(-0.2, 1.2, size=(7, 1, 5, 6))
MEAN, COV = np.array([1.0, -0.5]), np.array([[1.0, 0.8], [0.8, 1.5]])
SAMPLES = RNG.multivariate_normal(MEAN, COV, 5000)
STEP = np.arange(1, 1001)
BOUND = -480 - 1020 * np.exp(-STEP / 20) + 5 * RNG.normal(size=1000)
TEST_STEP, TEST_BOUND = np.arange(200, 1001, 200), np.array([-495.0, -488, -485, -484, -483])

FIGURES = {
    "scatter": lambda: figures.latent_scatter(Z, classes),
    "scatter, one colour": lambda: figures.latent_scatter(Z),
    "scatter, quantity": lambda: figures.latent_scatter(Z, Z[:, 0]),
    "scatter, one point": lambda: figures.latent_scatter([[0, 0]], ["a"]),
    "scatter, all at one point": lambda: figures.latent_scatter(0 * Z, classes),
    "scatter, all on one line": lambda: figures.latent_scatter(Z * [1, 0] + [0, 3], classes),
    "scatter, one axis collapsed": lambda: figures.latent_scatter(Z * [1e-6, 1], Z[:, 0]),
    "scatter, tensors": lambda: figures.latent_scatter(torch.tensor(Z), torch.tensor(classes)),
    "grid": lambda: figures.image_grid(GRID, extent=(-3, 3, -2, 2)),
    "grid, RGB tensor": lambda: figures.image_grid(torch.zeros(2, 9, 3, 4, 4)),
    "grid, tall": lambda: figures.image_grid(GRID.transpose(1, 0, 2, 3, 4)[:, :1]),
    "reconstructions": lambda: figures.reconstructions(GRID[0], GRID[1]),
    "reconstructions, blocks": lambda: figures.reconstructions(np.ones((25, 3, 4, 4)), np.zeros((25, 3, 4, 4))),
    "samples": lambda: figures.sample_grid(IMAGES),
    "samples, one RGB tensor": lambda: figures.sample_grid(torch.zeros(1, 3, 9, 4)),
    "interpolation": lambda: figures.interpolation(IMAGES, ends=(IMAGES[0], IMAGES[1])),
    "interpolation, two": lambda: figures.interpolation(IMAGES[:2]),
    "interpolation, many": lambda: figures.interpolation(np.ones((20, 3, 8, 8)), ends=torch.zeros(2, 3, 8, 8)),
    "interpolation, long title": lambda: figures.interpolation(IMAGES[:2], title="From one to the other, slowly" * 3),
    "curves": lambda: figures.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND, grad_norm=-BOUND),
    "curves, no test": lambda: figures.training_curves(STEP, BOUND, [], []),
    "curves, one step": lambda: figures.training_curves([1], [-500], [1], [-500], grad_norm=[0]),
    "densities": lambda: figures.densities(SAMPLES, SAMPLES + 1, MEAN, COV),
    "densities, astray": lambda: figures.densities(SAMPLES, 1e4 * SAMPLES, MEAN, COV),
    "densities, on a line": lambda: figures.densities(SAMPLES, SAMPLES[:, [0, 0]], MEAN, COV, names=("true", "mean")),
    "densities, at a point": lambda: figures.densities(SAMPLES, 0 * SAMPLES, MEAN, COV),
    "curves, terms": lambda: figures.training_curves(
        STEP, BOUND, TEST_STEP, TEST_BOUND, terms={"KL": STEP, "rest": BOUND}, steps_per_epoch=200
    ),
    "curves, one epoch": lambda: figures.training_curves([1], [-500], [1], [-500], steps_per_epoch=1),
    "curves of runs": lambda: figures.run_curves([("a", STEP, BOUND), ("b" * 40, STEP, BOUND)], steps_per_epoch=[5, 9]),
    "traversal": lambda: figures.traversal(GRID, ["z1 (2.3 nats)", "z17 (1.1 nats)", "z3"], [-3, -1, 1, 3]),
    "scatter, prior": lambda: figures.latent_scatter(Z, classes, prior=[0, 0]),
    "scatter, collapsed in the prior": lambda: figures.latent_scatter(0.001 * Z, classes, prior=[0, 0]),
    "evolution, contours": lambda: figures.evolution([1, 2], SAMPLES.reshape(2, 2500, 2), SAMPLES, MEAN, COV),
    "evolution": lambda: figures.evolution(range(0, 40, 2), SAMPLES.reshape(20, 250, 2), SAMPLES),
    "evolution, one step": lambda: figures.evolution([1], [[[9e9, 9e9]]], torch.zeros(1, 2), title="Samples" * 9),
}
ARRAYS = Z, GRID, IMAGES, SAMPLES, STEP, BOUND, TEST_STEP, TEST_BOUND


@pytest.mark.parametrize("name", FIGURES)
def test_draws_without_a_warning_with_a_title_and_clips_no_text(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    figure.savefig(file := io.BytesIO())
    assert file.getvalue().startswith(b"\x89PNG")
    assert figure.get_suptitle() or figure.axes[0].get_title()
    assert dict(matplotlib.rcParams) == before
    tight, inches = figure.get_tightbbox(), figure.get_size_inches()
    assert (tight.min >= -0.01).all()
    assert (tight.max <= inches + 0.01).all()


@pytest.mark.parametrize("name", FIGURES)
def test_arguments_and_global_generators_are_unchanged(name):
    before = copy.deepcopy(ARRAYS)
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    FIGURES[name]()
    assert all(np.array_equal(now, then) for now, then in zip(ARRAYS, before, strict=True))
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torchs)


def test_pyplot_is_not_imported():
    code = "import io, sys, funcvae.figures as p; p.latent_scatter([[0, 0]], [1]).savefig(io.BytesIO());"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_palette_is_distinct_for_colour_blind_readers():
    # Red- and green-blindness as in Machado, Oliveira & Fernandes (2009); distances in CIELAB, in which a
    # difference of about 2 is just visible.
    eyes = {
        "usual": np.eye(3),
        "red-blind": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "green-blind": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
    }

    def nearest(colours, eye):
        rgb = np.array([to_rgb(c) for c in colours])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(eyes[eye])
        xyz = np.clip(linear, 0, 1) @ np.array(
            [[0.4339, 0.2126, 0.0177], [0.3762, 0.7152, 0.1094], [0.1899, 0.0722, 0.8729]]
        )
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        return min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))

    assert nearest(figures.PALETTE, "usual") > 30
    assert min(nearest(figures.PALETTE, eye) for eye in eyes) > 18
    # matplotlib's default colours fail this check.
    assert min(nearest(matplotlib.color_sequences["tab10"], eye) for eye in eyes) < 9


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.latent_scatter(np.zeros((5, 3))),
        lambda: figures.latent_scatter(np.zeros((0, 2))),
        lambda: figures.latent_scatter(np.zeros(5)),
        lambda: figures.latent_scatter(np.full((5, 2), np.nan)),
        lambda: figures.latent_scatter(np.zeros((5, 2)), np.zeros(4)),
        lambda: figures.latent_scatter(np.zeros((11, 2)), list("abcdefghijk")),
        lambda: figures.image_grid(GRID[0]),
        lambda: figures.image_grid(np.zeros((2, 2, 2, 5, 5))),
        lambda: figures.image_grid(GRID, extent=(3, -3, 0, 1)),
        lambda: figures.reconstructions(GRID, GRID),
        lambda: figures.reconstructions(GRID[0], GRID[0, :2]),
        lambda: figures.sample_grid(GRID),
        lambda: figures.sample_grid(IMAGES[:0]),
        lambda: figures.interpolation(IMAGES[:1]),
        lambda: figures.interpolation(IMAGES[0]),
        lambda: figures.interpolation(IMAGES, ends=IMAGES[:2, :, 1:]),
        lambda: figures.interpolation(IMAGES, ends=IMAGES[:2, 0]),
        lambda: figures.training_curves([1, 2], [1, 2, 3], [], []),
        lambda: figures.training_curves([1, 2], [1, 2], [1], []),
        lambda: figures.training_curves([1, 2], [1, 2], [[1]], [[1]]),
        lambda: figures.training_curves([1, 2], [1, 2], [], [], grad_norm=[1]),
        lambda: figures.training_curves([1, 2], [np.nan, np.nan], [], []),
        lambda: figures.training_curves([], [], [], []),
        lambda: figures.training_curves([1, 2], [1, 2], [], [], terms={"KL": [1]}),
        lambda: figures.training_curves([1, 2], [1, 2], [], [], terms={"KL": [np.nan] * 2}),
        lambda: figures.training_curves([1, 2], [1, 2], [], [], steps_per_epoch=0),
        lambda: figures.run_curves([]),
        lambda: figures.run_curves([("a", [1, 2], [1])]),
        lambda: figures.run_curves([("a", [1], [np.nan])]),
        lambda: figures.run_curves([("a", [1], [1])], steps_per_epoch=[0]),
        lambda: figures.traversal(GRID, ["a"], [1, 2, 3, 4]),
        lambda: figures.traversal(GRID, ["a", "b", "c"], [1]),
        lambda: figures.latent_scatter(Z, prior=[0]),
        lambda: figures.densities(SAMPLES[:, :1], SAMPLES, MEAN, COV),
        lambda: figures.densities(SAMPLES, SAMPLES, MEAN[:1], COV),
        lambda: figures.densities(SAMPLES, SAMPLES, MEAN, COV[0]),
        lambda: figures.densities(SAMPLES, SAMPLES, MEAN, [[1, 2], [2, 1]]),
        lambda: figures.densities(SAMPLES, SAMPLES, MEAN, [[1, 0.5], [0, 1]]),
        lambda: figures.evolution([1, 2], np.zeros((3, 5, 2)), SAMPLES),
        lambda: figures.evolution([], np.zeros((0, 5, 2)), SAMPLES),
        lambda: figures.evolution([1], np.zeros((1, 5, 3)), SAMPLES),
        lambda: figures.evolution([1], np.full((1, 5, 2), np.nan), SAMPLES),
        lambda: figures.evolution([1], np.zeros((1, 5, 2)), SAMPLES[0]),
        lambda: figures.save(Figure(), "figure.jpg"),
        lambda: figures.save_gif(IMAGES, "film.png"),
        lambda: figures.save_gif(IMAGES[:0], "film.gif"),
        lambda: figures.save_gif(IMAGES[0], "film.gif"),
        lambda: figures.save_gif(IMAGES, "film.gif", size=0),
        lambda: figures.save_gif(IMAGES, "film.gif", seconds=0),
        lambda: figures.save_gif(IMAGES, "film.gif", seconds=float("nan")),
    ],
)
def test_wrong_arguments_raise_one_line(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not os.listdir(tmp_path)
