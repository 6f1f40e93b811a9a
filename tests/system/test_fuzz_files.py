"""A few cases of tests/fuzz/files.py, and tests that it finds errors."""

import gzip
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import files as fuzz
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from funcvae import data
from funcvae.data import readers
from funcvae.errors import BadData


@pytest.mark.parametrize("cases", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_files_are_errors_of_one_line(cases):
    """Runs in its own process, to measure its memory."""
    command = [sys.executable, fuzz.__file__, "--cases", str(cases), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{cases} cases, 0 failures" in done.stdout
    assert len(done.stdout.splitlines()) == len(fuzz.KINDS) + 1


def test_a_reader_with_another_error_is_reported(capsys):
    def careless(folder):
        return (folder / "x.npy").read_bytes()[10_000]

    kinds = {"careless": fuzz.KINDS["npy"]._replace(read=careless)}
    assert fuzz.main(["--cases", "3"], kinds) == 1
    assert "--seed 0 --case 1 (careless): IndexError" in capsys.readouterr().err


def test_a_reader_that_writes_elsewhere_or_warns_is_reported(capsys):
    kinds = {
        "writes": fuzz.KINDS["npy"]._replace(read=lambda folder: (folder.parent / "x").touch()),
        "warns": fuzz.KINDS["npy"]._replace(read=lambda folder: warnings.warn("careful", stacklevel=1)),
    }
    assert fuzz.main(["--cases", "8"], kinds) == 1
    error = capsys.readouterr().err
    assert "wrote outside its folder" in error
    assert "warned: careful" in error


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda folder: time.sleep(5), "Hung: after 0.2 seconds"),
        (lambda folder: (folder.parent / "npy" / "x.npy").write_bytes(b""), "wrote outside its folder"),  # there before
        (lambda folder: (folder / "y").touch(), "wrote outside its folder"),  # only `resume` may
        (lambda folder: Path("y").touch(), "wrote outside its folder"),
        (lambda folder: tempfile.mkstemp(), "wrote outside its folder"),
    ],
)
def test_a_reader_that_hangs_or_leaves_a_file_is_reported(capsys, monkeypatch, read, message):
    monkeypatch.setattr(fuzz, "PATIENCE", 0.2)
    assert fuzz.main(["--cases", "1"], {"npy": fuzz.KINDS["npy"]._replace(read=read)}) == 1
    assert message in capsys.readouterr().err


def test_a_reader_that_uses_too_much_memory_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(fuzz.limits, "MEMORY", 100)
    kinds = {"npy": fuzz.KINDS["npy"]._replace(read=lambda folder: np.ones(2**25))}
    assert fuzz.main(["--cases", "1"], kinds) == 1
    assert "took" in capsys.readouterr().err


SAVE = {"x.npy": np.save, "x.npz": np.savez, "c.npz": np.savez_compressed}
SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=5)
ARRAYS = arrays(np.float32, SHAPES, elements=st.floats(-9, 9, width=32))


@given(ARRAYS, st.sampled_from(list(SAVE)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
def test_a_numpy_file_is_read_and_a_part_of_it_is_an_error(tmp_path_factory, x, name, part):
    path = tmp_path_factory.mktemp("x") / name
    SAVE[name](path, **{"arr" if name == "x.npy" else "train": x})
    loaded = data.load(str(path))
    got = np.concatenate([loaded.train, loaded.test]).reshape(len(x), -1)
    assert sorted(map(tuple, got)) == sorted(map(tuple, x.reshape(len(x), -1)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(BadData):
        data.load(str(path))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1, exclude_max=True), st.booleans())
@settings(max_examples=40)
def test_an_idx_file_is_read_and_a_part_of_it_is_an_error(tmp_path_factory, n, height, width, part, zipped):
    path = tmp_path_factory.mktemp("x") / ("images.gz" if zipped else "images")
    x = np.random.default_rng(n).integers(0, 256, (n, 1, height, width), dtype=np.uint8)
    whole = struct.pack(">iiii", 2051, n, height, width) + x.tobytes()
    whole = gzip.compress(whole) if zipped else whole
    path.write_bytes(whole)
    assert np.array_equal(readers.read_idx(path), x)
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(BadData):
        readers.read_idx(path)


def test_cases_are_reproducible(tmp_path):
    assert [fuzz.case(5, 3, tmp_path, {"npz": fuzz.KINDS["npz"]})[:2] for _ in range(2)] == 2 * [
        fuzz.case(5, 3, tmp_path, {"npz": fuzz.KINDS["npz"]})[:2]
    ]
