"""A data set that stays in its file, against the same data in memory."""

import numpy as np
import pytest
import torch

from funcvae import data
from funcvae.errors import BadData, BadType, FuncvaeError, Missing
from funcvae.train import streaming
from tests.support.datasets import npy_of
from tests.support.training import fit, same


def numbers(dtype, shape=(25, 3)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4", "float64", "int16", "bool"])
def test_a_stream_has_the_numbers_of_load(tmp_path, dtype):
    path = tmp_path / "x.npy"
    np.save(path, numbers(dtype))
    loaded, streamed = data.load(str(path)), data.stream(path)
    rows = torch.arange(22).flip(0)
    assert torch.equal(streaming.opened("train", streamed.train).gather(rows), loaded.train[rows])
    assert streamed.test[:2].dtype == loaded.test.dtype
    assert torch.equal(streamed.test[:2], loaded.test)
    assert torch.equal(streamed.train[-1], loaded.train[-1])
    assert streamed.train[[]].shape == (0, 3)
    assert (len(streamed.train), streamed.train.shape) == (23, loaded.train.shape)
    assert streamed.sha256() == loaded.sha256()


def test_a_run_on_a_stream_has_the_bits_of_one_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    loaded, streamed = data.load(str(tmp_path / "x.npy")), data.stream(str(tmp_path / "x.npy"))
    (one, history), (two, again) = (fit(x.train, test=x.test) for x in (loaded, streamed))
    assert same(one, two)
    np.testing.assert_array_equal(history.test_bound, again.test_bound)


def test_only_the_header_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "read_rows", lambda *_: pytest.fail("read"))
    np.save(tmp_path / "x.npy", numbers("float32"))
    data.stream(tmp_path / "x.npy")


def test_the_hash_is_read_once_in_blocks(tmp_path, monkeypatch):
    reads, read = [], streaming.read_rows

    def counted(x, rows):
        reads.extend([len(rows)] if isinstance(x, np.memmap) else [])
        return read(x, rows)

    monkeypatch.setattr(streaming, "read_rows", counted)
    np.save(tmp_path / "x.npy", numbers("uint8", (2500, 4)))
    streamed = data.stream(tmp_path / "x.npy")
    assert streamed.sha256() == streamed.sha256() == streamed._replace(name="y").sha256()
    assert sorted(reads) == [32, 32, 250, 250, 1000, 1000]  # with the first items of each part
    other = data.stream(tmp_path / "x.npy")
    assert streamed._replace(test=other.train).sha256() != streamed.sha256()


def test_a_file_that_changes_its_length_while_it_is_hashed(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, numbers("float32", (9000, 3)))
    streamed = data.stream(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadData, match=r"x.npy has become shorter"):
        streamed.sha256()


def saved(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(npy_of("(1000000000, 4)")), "header claims 4,000,000,000 items of 4 bytes"),
        (lambda path: path.write_bytes(b"junk"), "must be a complete file of numbers"),
        (lambda path: path.mkdir(), "is not a file"),
        (saved(np.zeros((3, 2), complex)), "is complex128: it must hold real numbers"),
        (saved(np.array([None, 1])), "must be a complete file of numbers"),
        (saved(np.array(["a", "b"])), "it must hold real numbers"),
        (saved(np.array(1.0)), r"has shape \[\]"),
        (saved(np.zeros((0, 2))), r"has shape \[0, 2\]"),
        (saved(np.zeros((1, 2))), "has one item"),
        (saved(np.asfortranarray(np.zeros((3, 2)))), "is in Fortran order"),
    ],
)
def test_files_that_cannot_be_streamed(tmp_path, write, message):
    write(tmp_path / "x.npy")
    with pytest.raises(BadData, match=message) as raised:
        data.stream(tmp_path / "x.npy")
    assert "\n" not in str(raised.value)


def test_sources_that_are_not_npy_files(tmp_path):
    np.savez(tmp_path / "x.npz", train=numbers("uint8"))
    with pytest.raises(
        BadData, match=r'only an .npy file can: write np.save\("x.npy", np.load\("x.npz"\)\["train"\]\)'
    ):
        data.stream(tmp_path / "x.npz")
    for source, error in {"mnist": Missing, "": FuncvaeError, 3: BadType, tmp_path: BadData}.items():
        with pytest.raises(error):
            data.stream(source)


def test_a_value_that_is_not_finite_is_found_when_it_is_read(tmp_path):
    x = np.zeros((50, 2))
    x[:, 1] = 1e39  # beyond float32
    np.save(tmp_path / "x.npy", x)
    streamed = data.stream(tmp_path / "x.npy")
    with pytest.raises(BadData, match="train: item 0 is NaN or infinite"):
        fit(streamed.train)
