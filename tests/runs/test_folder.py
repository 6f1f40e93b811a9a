"""Data sets with the items of a system's shape."""

import pytest
import torch

from funcvae.data import Dataset
from funcvae.errors import BadData
from funcvae.models import SYSTEMS
from funcvae.runs.folder import fitted


def dataset(*shape, dtype=torch.uint8):
    x = torch.arange(4 * torch.Size(shape).numel()).reshape(4, *shape).to(dtype)
    return Dataset("x.npy", x, x[:2], None, None)


@pytest.mark.parametrize("axes", [(28, 28), (28, 28, 1), (1, 28, 28)])
def test_grey_images_get_their_channel(axes):
    given = dataset(*axes)
    found = fitted(SYSTEMS["mnist_vae"], given)
    assert torch.equal(found.train, given.train.reshape(4, 1, 28, 28))
    assert torch.equal(found.test, found.train[:2])


def test_channels_may_be_last():
    given = dataset(5, 6, 3)
    found = fitted(SYSTEMS["cifar_resnet_vae"], given)
    assert torch.equal(found.train, given.train.permute(0, 3, 1, 2))
    assert found.train.is_contiguous()
    channels_first = dataset(3, 5, 6)
    assert fitted(SYSTEMS["cifar_resnet_vae"], channels_first).train.equal(channels_first.train)


@pytest.mark.parametrize(
    ("system", "axes", "message"),
    [
        ("cifar_resnet_vae", (3, 5, 3), r"shape \[3, 5, 3\], which may be \[C, H, W\] or \[H, W, C\]"),
        ("cifar_resnet_vae", (5, 6), r"takes items of shape \[3, any, any\]: x.npy has \[5, 6\]"),
        ("mnist_vae", (784,), r"takes items of shape \[1, 28, 28\]: x.npy has \[784\]"),
        ("mnist_vae", (27, 28), r"x.npy has \[27, 28\]"),
        ("gaussian2d_vae", (2, 1), r"takes items of shape \[2\]: x.npy has \[2, 1\]"),
    ],
)
def test_items_of_another_shape_are_an_error(system, axes, message):
    with pytest.raises(BadData, match=message):
        fitted(SYSTEMS[system], dataset(*axes))


def test_floats_outside_the_range_of_pixels_are_an_error():
    with pytest.raises(BadData, match="pixels from 0 to 3135: they must lie in"):
        fitted(SYSTEMS["mnist_vae"], dataset(28, 28, dtype=torch.float32))
