"""Draws the inputs of steps: the observation of the data, and the noise."""

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks, examples
from funcvae._support.examples import Data
from funcvae.distributed.sharding import GradientSettings, draw_noise
from funcvae.errors import BadData, BadValue
from funcvae.model import as_is
from funcvae.modules import Params

__all__ = ["Batches", "drawn_ahead", "step_inputs"]

Batches = Iterator[tuple[Tensor, Tensor, Data]]
"""The rows [B], the keys [2, 2] and the data [B, ...] of each step."""


def step_inputs(params: Params, keys: Tensor, x: Data, gradient: GradientSettings) -> tuple[Data, Tensor]:
    """The observation of x [B, ...], and its noise [N, B, Z], from the two keys of a step."""
    if checks.tensor("keys", keys).shape != (2, 2) or keys.dtype != torch.int32:
        raise BadValue(f"keys is {checks.describe(keys)}: it must be int32 [2, 2], a noise key and an observe key")
    noise_key, observe_key = keys
    n = examples.count(x)
    x = examples.of_each("observe", gradient.observe(observe_key, x), n)
    return x, draw_noise(gradient.noise, noise_key, gradient.samples, n, gradient.model, params, x)


def drawn_ahead(
    gradient: GradientSettings, most: int, batches: Batches, params: Params
) -> Iterator[tuple[Data, Tensor]]:
    """The inputs of all steps: their observed data [B, ...] and noise [N, B, Z].

    Those of at most `most` successive steps are drawn together under `vmap`, because each draw takes 130 operations,
    which are small. The bits are those of `step_inputs`: integers are exact, and a trial on the first steps shows
    whether `vmap` keeps the bits of the other numbers. Otherwise each step draws its own.
    """
    draw, group = _Together(gradient, most, params), list[tuple[Tensor, Data]]()
    unreadable = None
    while True:
        try:
            _, keys, x = next(batches)
        except StopIteration:
            break
        except BadData as error:
            unreadable = error
            break
        if group and (examples.count(x) != examples.count(group[0][1]) or len(group) == draw.steps(x)):
            yield from draw(group)
            group = []
        group.append((keys, x))
    yield from draw(group)  # the steps before the unreadable data can be made
    if unreadable:
        raise unreadable


class _Together:
    """Draws the inputs of several steps."""

    def __init__(self, gradient: GradientSettings, most: int, params: Params) -> None:
        self.gradient, self.most, self.params = gradient, most, params
        self.observes = gradient.observe is not as_is
        self.has_same_bits: bool | None = None  # not tried yet

    def steps(self, x: Data) -> int:
        """The number of steps to draw together, for batches such as x."""
        size, noise = examples.numel(x), self.gradient.samples * examples.count(x) * self.gradient.model.latent
        drawn = noise + self.observes * size
        return max(1, min(self.most, _DRAWN_AT_ONCE // max(1, drawn), _HELD_AT_ONCE // max(1, size)))

    def __call__(self, group: list[tuple[Tensor, Data]]) -> Iterable[tuple[Data, Tensor]]:
        if len(group) < 2 or self.has_same_bits is False:
            return self.one_by_one(group)
        if self.has_same_bits:
            return self.at_once(group)
        expected = list(self.one_by_one(group))
        try:
            with warnings.catch_warnings(action="ignore"):
                found = self.at_once(group)
            pairs = zip(tree.leaves(expected), tree.leaves(found), strict=True)
            self.has_same_bits = all(torch.equal(a, b) for a, b in pairs)
        except Exception:  # vmap cannot batch the user's function
            self.has_same_bits = False
        return expected

    def one_by_one(self, group: list[tuple[Tensor, Data]]) -> Iterator[tuple[Data, Tensor]]:
        return (step_inputs(self.params, keys, x, self.gradient) for keys, x in group)

    def at_once(self, group: list[tuple[Tensor, Data]]) -> list[tuple[Data, Tensor]]:
        keys, xs = torch.stack([keys for keys, _ in group]), [x for _, x in group]
        if not self.observes:
            _, eps = torch.vmap(lambda keys: step_inputs(self.params, keys, xs[0], self.gradient))(keys)
            return list(zip(xs, eps.unbind(), strict=True))
        stacked = tree.map(lambda *parts: torch.stack(parts), *xs)
        x, eps = torch.vmap(lambda keys, x: step_inputs(self.params, keys, x, self.gradient))(keys, stacked)
        parts, kind = tree.flatten(x)
        columns = zip(*(part.unbind() for part in parts), strict=True)
        return [(kind.unflatten(column), each) for column, each in zip(columns, eps.unbind(), strict=True)]


_DRAWN_AT_ONCE, _HELD_AT_ONCE = 2**18, 2**20  # numbers that are drawn, which fit in a cache; numbers of the data
