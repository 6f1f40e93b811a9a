"""The sources that `load` accepts, the test set that it holds out, and the data set as a value."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from funcvae import data, random
from funcvae.errors import BadData, BadValue, Missing
from tests.support.datasets import refused, write_image


def test_hold_out_is_a_keyed_permutation(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.arange(25.0), train_labels=np.arange(25))
    dataset = data.load(str(tmp_path / "x.npz"))
    order = random.permutation(random.key(2**63), 25)
    assert dataset.test.tolist() == order[:2].tolist()
    assert dataset.train.tolist() == order[2:].tolist()
    assert torch.equal(dataset.train, dataset.train_labels.float())
    assert torch.equal(dataset.test, dataset.test_labels.float())


def test_file_of_an_unknown_type(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1, 2\n")
    refused(BadData, path, path, ".npy")


# Missing paths


def test_unknown_name():
    with pytest.raises(BadValue, match="unknown data 'mnsit': did you mean 'mnist'"):
        data.load("mnsit")
    refused(BadValue, "zzz", "gaussian2d", "mnist-5k")
    refused(BadValue, "", "choose from")


@pytest.mark.parametrize("source", ["mnist.npz", "./mnist", "mnist/", "a/b", "/nowhere/at/all"])
def test_missing_path(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    refused(Missing, source, source)


def test_a_name_has_priority_over_a_path(tmp_path, monkeypatch):
    write_image(tmp_path / "gaussian2d" / "0.png", (2, 2))
    write_image(tmp_path / "gaussian2d" / "1.png", (2, 2))
    monkeypatch.chdir(tmp_path)
    assert data.load("gaussian2d").train.shape == (10_000, 2)
    assert data.load("./gaussian2d").train.shape == (1, 1, 2, 2)


# The value itself


def test_sha256():
    x = torch.arange(6.0).reshape(3, 2)
    dataset = data.Dataset("x", x, x[:1], None, None)
    by_hand = b"torch.float32[3, 2]" + x.numpy().tobytes() + b"torch.float32[1, 2]" + x[:1].numpy().tobytes()
    assert dataset.sha256() == hashlib.sha256(by_hand).hexdigest()
    assert dataset._replace(name="y").sha256() == dataset.sha256()
    for other in (x + 1, x.reshape(2, 3), x.double(), x.flip(0)):
        assert dataset._replace(train=other).sha256() != dataset.sha256()
    assert dataset._replace(train=x.T.contiguous().T).sha256() == dataset.sha256()  # the layout in memory is not hashed


@pytest.mark.parametrize("shape", [(9, 2), (2500, 1, 3, 3)])  # several parts of the hash
def test_bytes_have_the_hash_of_their_floats(shape):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    dataset = data.Dataset("x", x, x[:4], None, None)
    floats = x.float() / 255
    assert torch.equal(dataset.decode(dataset.train), floats)
    assert dataset.sha256() == dataset._replace(train=floats, test=floats[:4]).sha256()
    assert dataset.sha256() != dataset._replace(train=x.float(), test=x[:4].float()).sha256()


def test_bytes_stay_bytes_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40_000, 3, 32, 32), np.uint8))  # 117 MiB
    code = """
import resource, sys
from funcvae import data
import numpy.lib.format, torch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
found = data.load(sys.argv[1])
found.sha256()
print(peak() - before, found.train.dtype)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.npy")]
    grown, dtype = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert dtype == "torch.uint8"
    assert float(grown) < 3 * 117  # the file, and its parts for training and test


def test_import_is_cheap():
    code = "import sys, funcvae.data; print({'torchvision', 'PIL', 'mlxtend'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
