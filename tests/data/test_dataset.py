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


# Dicts


def parts(n):
    return {"x": np.arange(3.0 * n).reshape(n, 3), "y": np.arange(n, dtype=np.int8), "b": np.arange(n, dtype=np.uint8)}


def named(**dicts):
    return {f"{part}/{name}": x for part, arrays in dicts.items() for name, x in arrays.items()}


def test_an_npz_with_parts_is_a_dict(tmp_path):
    np.savez(tmp_path / "x.npz", **named(train=parts(6), test=parts(4)))
    dataset = data.load(str(tmp_path / "x.npz"))
    assert {name: x.dtype for name, x in dataset.train.items()} == {
        "x": torch.float32, "y": torch.int64, "b": torch.uint8,
    }  # fmt: skip
    assert dataset.test["y"].tolist() == [0, 1, 2, 3]
    decoded = dataset.decode(dataset.train)
    assert torch.equal(decoded["b"], torch.arange(6) / 255)
    assert decoded["y"].dtype == torch.int64


def test_parts_are_held_out_together(tmp_path):
    np.savez(tmp_path / "x.npz", **named(train=parts(25)), train_labels=np.arange(25))
    dataset = data.load(str(tmp_path / "x.npz"))
    order = random.permutation(random.key(2**63), 25)
    assert dataset.test["y"].tolist() == dataset.test_labels.tolist() == order[:2].tolist()
    assert torch.equal(dataset.train["x"][:, 0], 3.0 * order[2:])


def test_the_hash_of_a_dict(tmp_path):
    np.savez(tmp_path / "x.npz", **named(train=parts(6), test=parts(4)))
    dataset = data.load(str(tmp_path / "x.npz"))
    for name in ("x", "y", "b"):
        changed = {**dataset.train, name: dataset.train[name].flip(0)}
        assert dataset._replace(train=changed).sha256() != dataset.sha256()
    in_order = {name: dataset.train[name] for name in ("y", "b", "x")}
    assert dataset._replace(train=in_order).sha256() == dataset.sha256()
    assert dataset._replace(train={**in_order, "z": in_order["y"]}).sha256() != dataset.sha256()
    mapped = {name: x.numpy() for name, x in in_order.items()}  # sources
    assert dataset._replace(train=mapped).sha256() == dataset.sha256()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((3, 2)), "train/y": np.zeros(3)}, "has arrays 'train' and 'train/y'"),
        ({"train/x": np.zeros((3, 2)), "train/y": np.zeros(4)}, "differ in length: 'x' has 3, 'y' has 4"),
        ({"train/x": np.zeros((3, 2)), "test/z": np.zeros((3, 2))}, "train and test items have shapes"),
        ({"train/x": np.zeros((3, 2)), "test/x": np.zeros((3, 1))}, "train and test items have shapes"),
        ({"train/x": np.zeros((3, 2)), "test": np.zeros((3, 2))}, "train and test items have shapes"),
        ({"train/x": np.full((3, 2), np.nan)}, "train/x item 0 is NaN"),
        ({"train/x": np.array(1.0)}, "train/x has shape"),
        ({"test/x": np.zeros((3, 2))}, "no array 'train'"),
        ({"train/x": np.zeros((1, 2))}, "has one item"),
    ],
)
def test_dicts_that_do_not_match(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(BadData, tmp_path / "x.npz", message)


def test_labelled_data_are_dicts_of_items_and_labels():
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    dataset = data.Dataset("x", x, x[:2], y, y[:2])
    found = dataset.labelled()
    assert found.train == {"x": x, "y": y}
    assert list(found.test) == ["x", "y"]
    assert found.sha256() != dataset.sha256()
    with pytest.raises(BadData, match="gaussian2d has no labels"):
        data.load("gaussian2d").labelled()


# Names of classes


def test_classes_are_named_by_their_folders(tmp_path):
    for i, name in enumerate(("wren", "robin", "owl", "owl")):
        write_image(tmp_path / name / f"{i}.png", (2, 2), value=i)
    dataset = data.load(str(tmp_path))
    assert dataset.classes == ("owl", "robin", "wren")
    labels = torch.cat([dataset.train_labels, dataset.test_labels]).tolist()
    values = torch.cat([dataset.train, dataset.test])[:, 0, 0, 0].tolist()
    assert {v: dataset.classes[k] for v, k in zip(values, labels, strict=True)} == {
        0: "wren", 1: "robin", 2: "owl", 3: "owl",
    }  # fmt: skip


def test_classes_of_named_data_are_those_of_torchvision():
    from torchvision.datasets import FashionMNIST

    assert list(data.named_sets.CLASSES["fashion-mnist"]) == FashionMNIST.classes
    assert data.load("gaussian2d").classes == ()


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
