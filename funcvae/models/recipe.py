"""Recipes: the default training settings of systems."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from funcvae import optim, random
from funcvae._support import checks
from funcvae._support.checks import Count, Floats, FloatsOrBytes
from funcvae._support.reprs import short_repr
from funcvae.model import Observe, as_floats, from_bytes
from funcvae.optim import Optimizer, Schedule
from funcvae.train.settings import Scale, per_example

__all__ = ["Recipe", "binarize", "from_tanh_range", "to_tanh_range"]


def _unchanged(x: Any) -> Any:
    return x


def _no_offset(**options: Any) -> float:
    return 0.0


def _thousandth(steps_per_epoch: int) -> float:
    return 1e-3


@short_repr
@dataclass(frozen=True)
class Recipe:
    """The default settings for the training of a system."""

    shape: tuple[int | None, ...] | dict[str, tuple[int | None, ...]]
    """Shape of one datum as it is loaded, before `prepare`; None for a size that may vary; images have pixels in
    [0, 1]. Of data that are loaded as a dict of tensors, the shape of each."""
    epochs: Count
    data: str | None = None
    """A name or path; None if each run must name its data."""
    batch: Count = 128
    samples: Count = 1
    estimator: str = "elbo"
    prepare: Callable[[Any], Any] = _unchanged
    """Maps the loaded data set to the one to train on. `Dataset.labelled` makes {"x": items, "y": labels} the data, for
    a conditional model."""
    observe: Observe = as_floats
    """Takes floats or bytes."""
    pixels: Callable[[Tensor], Tensor] = _unchanged
    """Maps what the model sees or decodes back to pixels in [0, 1], if `observe` maps to another range."""
    scale: Scale = per_example
    offset: Callable[..., float] = _no_offset
    """Maps the options of the model to the number that, with `scale`, makes the reported loss,
    scale(B) · (-bound - offset), equal to the one that the source prints."""
    lr: Callable[[int], float | Schedule] = _thousandth
    eps: float = 1e-8

    def __post_init__(self) -> None:
        checks.fields(self)

    @checks.arguments
    def optimizer(
        self, steps_per_epoch: Count, lr: float | Schedule | None = None, *, name: str = "adam", clip: float = 0.0
    ) -> Optimizer:
        """The optimizer, with the recipe's learning rate or schedule unless `lr` is given.

        Args:
            name: see `funcvae.optim.parse`.
            clip: the largest norm of the gradient, to which it is scaled; 0 for no limit.
        """
        opt = optim.parse(name, self.lr(steps_per_epoch) if lr is None else lr, self.eps)
        return optim.chain(optim.clip_by_global_norm(clip), opt) if clip else opt


@checks.arguments
def binarize(key: random.Key, x: FloatsOrBytes, rows: Tensor | None = None) -> Tensor:
    """Dynamic binarization: each pixel is 1 with a probability equal to its grey value, drawn again at each call.

    Args:
        key: do not use it again.
        x: pixels [B, ...] in [0, 1], or bytes.
        rows: indices [B] of x in the whole batch, if x is only a part of it.
    """
    x = from_bytes(x)
    at = None if rows is None else random.flat_indices(tuple(x.shape), rows, device=x.device)
    return random.bernoulli(key, x, at=at).to(x.dtype)


@checks.arguments
def to_tanh_range(key: random.Key, x: FloatsOrBytes, rows: Tensor | None = None) -> Tensor:
    """Scales pixels in [0, 1], or bytes, to [-1, 1], the range of Tanh."""
    return 2 * from_bytes(x) - 1


@checks.arguments
def from_tanh_range(x: Floats) -> Tensor:
    """The inverse of `to_tanh_range`."""
    return (x + 1) / 2
