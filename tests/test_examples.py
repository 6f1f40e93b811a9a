"""Every example runs, small, and says what it promises."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import funcvae as fv

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = ("mnist_ae", "mnist_vae", "mnist_bn_vae", "mnist_sigma_vae", "burda_vae")


def main(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def is_a_picture(path):
    with Image.open(path) as image:
        image.verify()
    return path.stat().st_size > 1000


def test_quickstart_orders_the_estimators_as_the_papers_do():
    variance = main("quickstart")(steps=100)
    assert variance["stl"] < variance["elbo_mc"]
    assert variance["my_dreg"] < variance["iwae"]


@pytest.mark.parametrize("name", DIGITS)
def test_the_digit_systems_draw_their_pictures(tmp_path, name):
    x = fv.random.uniform(fv.random.key(0), (240, 1, 28, 28)).numpy()
    labels = {"train_labels": np.arange(200) % 10, "test_labels": np.arange(40) % 10}
    np.savez(tmp_path / "digits.npz", train=x[:200], test=x[200:], **labels)
    written = main(name)(steps=2, source=str(tmp_path / "digits.npz"), out=str(tmp_path / "figures"))
    assert written
    assert all(is_a_picture(path) for path in written)


def test_the_points_draw_their_pictures(tmp_path):
    densities, evolution = main("gaussian2d_vae")(steps=20, out=str(tmp_path))
    assert is_a_picture(densities)
    assert is_a_picture(evolution)


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


def test_the_readmes_python_runs_as_written():
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_no_example_is_left_out():
    tested = {"quickstart", "own_model", *fv.models.RECIPES}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    assert set(DIGITS) | {"gaussian2d_vae", "cifar_resnet_vae"} == set(fv.models.RECIPES)


def test_the_readmes_pictures_are_there():
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (EXAMPLES.parent / "README.md").read_text())
    assert shown
    assert [path for path in shown if not (EXAMPLES.parent / path).is_file()] == []
