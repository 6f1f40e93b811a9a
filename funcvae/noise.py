"""Noise schemes: `(key, n, shape) -> eps [n, *shape]`, the standard normal base noise of the posterior."""

from collections.abc import Callable

import torch
from torch import Tensor

from funcvae import random
from funcvae.errors import BadValue

Noise = Callable[..., Tensor]


def iid(key: random.Key, n: int, shape: random.Shape, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """n independent standard normal samples [n, *shape], on the key's device."""
    if n < 1:
        raise BadValue(f"samples is {n}: at least one is needed")
    return random.normal(key, (n, *shape), dtype)
