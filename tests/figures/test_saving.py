import io
import os
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

from funcvae import figures
from funcvae._support import files
from funcvae.errors import BadValue
from tests.support.specs import slow_but

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(200, 2))
IMAGES = RNG.uniform(-0.2, 1.2, size=(5, 1, 7, 14))
FIGURES = {
    "scatter": lambda: figures.latent_scatter(Z, np.arange(200) % 3),
    "grid": lambda: figures.image_grid(IMAGES[None]),
    "samples": lambda: figures.sample_grid(IMAGES),
    "reconstructions": lambda: figures.reconstructions(IMAGES, IMAGES),
    "interpolation": lambda: figures.interpolation(IMAGES, ends=IMAGES[:2]),
    "curves": lambda: figures.training_curves(range(200), Z[:, 0], [100], [0], grad_norm=Z[:, 1]),
    "densities": lambda: figures.densities(Z, Z, [0, 0], np.eye(2)),
    "evolution": lambda: figures.evolution([1, 2], [Z, -Z], Z),
}
LEVELS = np.array([0, 51, 102, 255])


@pytest.mark.parametrize("name", FIGURES)
def test_saving_twice_gives_equal_bytes(tmp_path, name):
    figure = FIGURES[name]()
    paths = [figures.save(f, tmp_path / "new" / f"{k}.png") for k, f in enumerate((figure, figure, FIGURES[name]()))]
    first, *others = (path.read_bytes() for path in paths)
    assert others == [first, first]
    assert b"Software" not in first
    assert sorted(os.listdir(tmp_path / "new")) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("name", slow_but(("scatter", "grid", "densities"), FIGURES))
def test_saving_draws_what_savefig_does(tmp_path, name):
    figure = FIGURES[name]()
    canvas = figure.canvas
    path = figures.save(figure, tmp_path / "saved.png")
    assert (figure.dpi, figure.canvas) == (100, canvas)
    figure.savefig(tmp_path / "usual.png", dpi=150)
    assert np.array_equal(read(path), read(tmp_path / "usual.png"))


def test_saving_needs_no_layout(tmp_path):
    figure = Figure()
    figure.add_subplot()
    assert read(figures.save(figure, tmp_path / "plain.png")).shape == (720, 960, 4)


@pytest.mark.parametrize(
    ("name", "save"),
    [("z.png", lambda p: figures.save(FIGURES["scatter"](), p)), ("x.gif", lambda p: figures.save_gif(IMAGES, p))],
)
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, name, save):
    path = save(tmp_path / name)
    old = path.read_bytes()

    def fail(descriptor):
        os.ftruncate(descriptor, 100)
        raise OSError("disk full")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_plays_forward_and_backward_in_a_loop(tmp_path, channels):
    images = np.tile(LEVELS[:, None, None, None] / 255, (1, channels, 7, 14))
    path = figures.save_gif(images, tmp_path / "new" / "film.gif", size=28, seconds=2)
    assert path == tmp_path / "new" / "film.gif"
    frames, durations, loop = film(path)
    assert loop == 0  # endlessly
    assert {frame.shape for frame in frames} == {(14, 28, 3)}
    assert all((frame == frame[0, 0, 0]).all() for frame in frames)
    # Each of the four lasts half a second. Readers merge the two equal frames at a turn into one that lasts longer.
    played = np.repeat([frame[0, 0, 0] for frame in frames], np.array(durations) // 500)
    assert played.tolist() == [*LEVELS, *LEVELS[::-1]]
    assert played.tolist() != [*LEVELS, *LEVELS]


def test_a_grey_animation_is_exact_and_upright(tmp_path):
    before = IMAGES.copy()
    frames, durations, _ = film(figures.save_gif(IMAGES, tmp_path / "film.gif", size=14))
    expected = np.rint(255 * IMAGES.clip(0, 1))[:, 0]  # already 14 pixels wide, so nothing is enlarged
    for frame, image in zip(frames, [*expected, *expected[-2::-1]], strict=True):
        assert np.array_equal(frame, np.stack([image] * 3, axis=-1))
    assert sum(durations) == 2 * 4000
    assert np.array_equal(IMAGES, before)


def test_a_colour_animation_is_nearly_exact_and_upright(tmp_path):
    images = np.zeros((2, 3, 8, 6))
    images[0, 0, :4] = images[1, 1, :, :3] = images[:, 2, 4:, 3:] = 1  # red above, then green at left; blue in a corner
    frames, _, _ = film(figures.save_gif(images, tmp_path / "film.gif", size=8))
    for frame, image in zip(frames, images[[0, 1, 0]], strict=True):
        assert np.abs(frame - 255 * image.transpose(1, 2, 0)).max() < 8


@pytest.mark.parametrize(("height", "width", "shape"), [(28, 28, (256, 256)), (8, 32, (64, 256)), (32, 1, (256, 8))])
def test_the_longer_side_of_an_animation_has_the_given_size(tmp_path, height, width, shape):
    frames, _, _ = film(figures.save_gif(np.zeros((2, 1, height, width)), tmp_path / "film.gif"))
    assert frames[0].shape[:2] == shape


def test_an_animation_is_enlarged_smoothly(tmp_path):
    step = np.zeros((1, 1, 8, 8))
    step[..., 4:] = 1
    (frame, *_), _, _ = film(figures.save_gif(step, tmp_path / "film.gif", size=64))
    row = frame[32, :, 0]
    assert (row[:24] == 0).all()
    assert (row[40:] == 255).all()
    assert len(np.unique(row[24:40])) > 4  # nearest neighbours would have two values
    assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize(("n", "seconds", "each"), [(4, 1, 250), (3, 1, 330), (100, 0.1, 20), (1, 300, 600_000)])
def test_an_animation_has_the_given_duration(tmp_path, n, seconds, each):
    images = np.linspace(0, 1, n)[:, None, None, None] * np.ones((1, 4, 4))
    _, durations, _ = film(figures.save_gif(images, tmp_path / "film.gif", size=4, seconds=seconds))
    assert sum(durations) == 2 * n * each if n > 1 else durations == [each]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_images_give_the_same_bytes(tmp_path, channels):
    images = RNG.uniform(size=(6, channels, 8, 8))
    one, two = (figures.save_gif(images, tmp_path / f"{k}.gif").read_bytes() for k in (1, 2))
    assert one == two


@pytest.mark.parametrize("ending", [".pdf", ".svg"])
@pytest.mark.parametrize("name", slow_but(("scatter", "curves"), ("scatter", "samples", "curves", "evolution")))
def test_vector_files_of_equal_figures_have_equal_bytes(tmp_path, name, ending):
    figure, path = FIGURES[name](), tmp_path / f"figure{ending}"
    before = dict(matplotlib.rcParams)
    first = figures.save(figure, path).read_bytes()
    assert figures.save(figure, path).read_bytes() == first
    assert figures.save(FIGURES[name](), path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before
    assert b"Date" not in first
    assert first.startswith({".pdf": b"%PDF", ".svg": b"<?xml"}[ending])


def test_references_in_an_svg_file_are_whole(tmp_path):
    text = figures.save(FIGURES["scatter"](), tmp_path / "z.svg").read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used
    assert used <= set(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".gif"])
def test_a_file_with_other_content_is_kept_on_request(tmp_path, ending):
    def save(scale, **options):
        if ending == ".gif":
            return figures.save_gif(scale * IMAGES, tmp_path / f"a{ending}", size=14, **options)
        return figures.save(figures.sample_grid(scale * IMAGES), tmp_path / f"a{ending}", **options)

    first = save(1.0, over=False)
    assert save(1.0, over=False) == first
    assert save(0.5, over=False) == tmp_path / f"a-2{ending}"
    assert save(0.5) == first
    assert first.read_bytes() == (tmp_path / f"a-2{ending}").read_bytes()


def test_another_ending_is_an_error_that_names_the_three():
    with pytest.raises(BadValue, match=r"path is 'a.jpg': it must end in .png or .pdf or .svg"):
        figures.save(Figure(), "a.jpg")


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_shows_a_figure(name):
    figure = FIGURES[name]()
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.size == tuple((figure.get_size_inches() * figure.dpi).astype(int))


def test_an_animation_may_play_only_forward(tmp_path):
    images = np.tile(LEVELS[:, None, None, None] / 255, (1, 1, 7, 14))
    frames, durations, _ = film(figures.save_gif(images, tmp_path / "a.gif", seconds=2, back=False))
    assert [frame[0, 0, 0] for frame in frames] == LEVELS.tolist()
    assert durations == [500, 500, 500, 1500]


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def film(path):
    """The frames of a GIF as RGB, their durations in milliseconds, and the loop count."""
    with Image.open(path) as gif:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(gif):
            frames.append(np.asarray(frame.convert("RGB")).astype(int))
            durations.append(frame.info["duration"])
        return frames, durations, gif.info["loop"]
