"""Parts of the models of binarized digits."""

from typing import Annotated

import torch
from torch import Tensor, nn

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.model import from_bytes

__all__ = ["Mean", "glorot", "mean_of", "pixels"]

Mean = Annotated[Tensor, checks.floating, checks.concrete]
"""The mean of the training images [1, 28, 28]."""


def pixels(mean: Tensor | None) -> Tensor:
    """The pixels [784] of a mean image, by default one half."""
    if mean is not None and mean.numel() != 784:
        raise BadValue(f"mean has shape {list(mean.shape)}: it must be [1, 28, 28]")
    return torch.full((784,), 0.5) if mean is None else mean.cpu().flatten()


def mean_of(train: Tensor | None) -> Tensor | None:
    """The mean of training images of floats or bytes."""
    if train is None:
        return None
    # Floats take four times the memory of bytes. Blocks of 64 columns keep the bits of a sum over all.
    blocks = train.flatten(1).split(64, dim=1)
    return torch.cat([from_bytes(block).mean(0) for block in blocks]).reshape(train.shape[1:])


def glorot(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and biases of zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
