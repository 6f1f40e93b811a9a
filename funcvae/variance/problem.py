"""Replicates of a gradient: the same estimators on independent noise, a chunk of replicates at a time.

The noise of replicate r is `scheme(fold_in(key, r), samples, (B, Z))`. It depends on nothing else, so it has the same
bits for every chunk size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.batching import vmap_or_loop
from funcvae.distributions import is_reparameterised
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.estimators.compose import together
from funcvae.estimators.types import (
    SAMPLES,
    Estimator,
    GradientEstimator,
    check_estimator,
    check_noise,
    check_posterior,
)
from funcvae.model import VAE, Observe, as_is, check_data, noise_dtype
from funcvae.modules import KEY, Params, State, for_part
from funcvae.noise import Noise, iid, numbered
from funcvae.variance import snr
from funcvae.variance.online_moments import Leaves

__all__ = [
    "Gradients", "Lane", "Problem", "ReplicateSettings", "check_finite", "compiled_gradients", "estimator_name",
    "gradients", "make_lane", "make_problem", "noise_chunks",
]  # fmt: skip


@dataclass(frozen=True)
class ReplicateSettings:
    """How a gradient is replicated.

    Raises:
        BadValue: samples, replicates or chunk is below one, or `fresh_layers` comes without `train`.
        BadType: a field has another type.
    """

    samples: Count
    """The number K of samples."""
    replicates: Count = 1000
    """R."""
    chunk: Count | None = None
    """Number of replicates computed at a time; None to choose it by model and batch, at most 16."""
    noise: Noise = iid
    """The noise scheme; it is `vmap`ped over keys."""
    groups: Sequence[str] = ()
    """Further groups of parameters, as patterns such as "encoder/*.bias"."""
    train: bool = False
    """Whether networks are in training mode."""
    compile: bool = False
    """Whether chunks run under `torch.compile`."""
    fresh_layers: bool = False
    """Whether random layers draw anew in each replicate. Otherwise all replicates share what they draw."""

    def __post_init__(self) -> None:
        if isinstance(self.groups, str):
            object.__setattr__(self, "groups", (self.groups,))
        checks.fields(self)
        if self.fresh_layers and not self.train:
            raise BadValue("fresh_layers is True and train is False: random layers draw in training mode only")
        object.__setattr__(self, "groups", tuple(checks.text("a pattern in groups", each) for each in self.groups))


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a batch, the key of the noise and the settings: everything that determines the replicates."""

    model: VAE
    params: Params
    state: State
    x: Data
    key: random.Key
    settings: ReplicateSettings
    decodes: int = 0
    """The largest number M of decodes of a datum in one gradient, if that is more than K."""

    @property
    def device(self) -> torch.device:
        """The device of the data."""
        return examples.device(self.x)

    @property
    def samples(self) -> int:
        """The number K of samples."""
        return self.settings.samples

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in the order of their leaves."""
        return tuple(tree.named_leaves(self.params))

    @cached_property
    def sizes(self) -> list[int]:
        """The sizes of the parameters' leaves."""
        return [leaf.numel() for leaf in tree.leaves(self.params)]

    @cached_property
    def chunk(self) -> int:
        """The number of replicates computed at a time.

        Unless the settings give it, it is the largest power of two, from 1 to 16, for which neither gradients nor
        decoded data exceed eight million elements. So blocks of noise and of replicates start together.
        """
        if self.settings.chunk is not None:
            return self.settings.chunk
        largest = max(sum(self.sizes), max(self.decodes, self.samples) * examples.numel(self.x))
        return _power_of_two(min(_MAX_CHUNK, _CHUNK_NUMBERS // largest))

    def parameter_groups(self) -> dict[str, list[int]]:
        """The groups of parameters, as indices of leaves; raises BadValue if a pattern matches no parameter."""
        return snr.parameter_groups(self.names, self.sizes, self.settings.groups)

    def state_of(self, replicates: range) -> State:
        """The state for some replicates: with fresh layers, it has a key for each of them [c, 2]."""
        if not self.settings.fresh_layers:
            return self.state
        return for_part(self.state, torch.arange(replicates.start, replicates.stop, device=self.device))

    def draw(self, scheme: Noise, key: random.Key) -> Tensor:
        """Noise [N, B, Z] from a key."""
        shape, dtype = (examples.count(self.x), self.model.latent), noise_dtype(self.params)
        return checks.unchecked(scheme)(key, self.samples, shape, dtype=dtype)


def make_problem(
    model: VAE, params: Params, state: State, data: Data, key: random.Key, settings: ReplicateSettings,
    observe: Observe = as_is, batch: int | None = None,
) -> Problem:  # fmt: skip
    """A checked `Problem`; `batch` is the number of data [n, ...] in a gradient, all unless given.

    Raises:
        BadValue: the replicates do not fit in memory, params is empty, or model, params and state do not match.
        BadData: the model cannot take the data.
    """
    n = examples.count(data)
    checks.fits("samples", (settings.samples, min(n, batch or n), model.latent))
    checks.fits("replicates", (settings.replicates, len(tree.leaves(params))), 8)
    dtypes = {leaf.dtype for leaf in tree.leaves(params) if isinstance(leaf, Tensor)}
    if not dtypes:
        raise BadValue("params has no leaves: there is no gradient")
    wrong = [x.dtype for x in examples.tensors(data).values() if x.is_floating_point() and x.dtype not in dtypes]
    if wrong:
        like = " or ".join(sorted(map(str, dtypes)))
        raise BadData(f"the data are {wrong[0]} and the parameters {like}: convert the data, as with data.to({like})")
    check_data(model, params, state, data, observe)
    key = checks.concrete("key", key).to(examples.device(data))
    return Problem(model.unchecked(), params, state, data, key, settings)


class Lane(NamedTuple):
    """An estimator under a noise scheme."""

    name: str
    estimator: GradientEstimator
    scheme: Noise
    target: str
    decodes: int
    """The number M of points at which the model is evaluated, for each datum and gradient."""

    @property
    def unbiased(self) -> bool | None:
        """Whether the estimator claims to be unbiased for its target; None without claims."""
        claims = getattr(self.estimator, "claims", None)
        return claims and claims.unbiased_encoder and claims.unbiased_decoder

    def is_compared_with(self, reference: "Lane") -> bool:
        """Whether its mean gradient is compared with that of another lane: they have the same target."""
        return self is not reference and self.target == reference.target


def estimator_name(estimator: GradientEstimator, default: str) -> str:
    """The name of an estimator or function, or the default."""
    return getattr(estimator, "name", getattr(estimator, "__name__", default))


def make_lane(problem: Problem, name: str, estimator: GradientEstimator, scheme: Noise) -> Lane:
    """A checked `Lane`. The target of a function is that of its attribute `claims`, or otherwise the lane's name.

    Raises:
        BadType: the estimator is a factory that was not called, or the scheme does not return floats.
        BadValue: the estimator requires independent samples, and those of the scheme are not; it requires
            reparameterised samples, and those of the posterior are not; or the scheme returns noise of another shape
            than [N, B, Z], or of another dtype than the parameters.
    """
    check_estimator(name, estimator)
    if isinstance(estimator, Estimator):
        target = estimator.claims_under(scheme).target
    else:
        target = estimator.claims.target if hasattr(estimator, "claims") else name
    q, _ = problem.model.encode(problem.params, problem.state, examples.head(problem.x, 2))
    check_posterior(estimator, q, is_reparameterised)
    eps = problem.draw(scheme, _fold_in(problem.key, 0))
    check_noise(problem.model, problem.params, problem.x, eps, problem.samples)
    points = getattr(estimator, "points", SAMPLES).at(q, eps[:1, : len(q.loc)])
    return Lane(name, estimator, scheme, target, len(points) * problem.samples)


class Gradients(Protocol):
    """The gradients of several estimators under one noise scheme, for a chunk of c replicates."""

    def __call__(self, params: Params, state: State, x: Data, eps: Tensor) -> tuple[list[Leaves], Tensor, list[Tensor]]:
        """Maps eps [c, N, B, Z] to the gradient of each estimator, as leaves [c, P] in the order of the parameters; the
        log-weights [c, N, B]; and the mean bound of the batch for each estimator [c]. The state may be that of
        `Problem.state_of`."""
        ...


def gradients(estimators: tuple[GradientEstimator, ...], model: VAE, names: tuple[str, ...], train: bool) -> Gradients:
    """The `Gradients` of several estimators; those that can share a forward pass do.

    Args:
        names: the names of the parameters, in the order of their leaves.
        train: whether networks are in training mode.
    """

    def replicate(params: Params, state: State, x: Data, own: tuple[Tensor, dict[str, Tensor]]) -> Any:
        eps, keys = own
        state = {name: {**part, KEY: keys[name]} if name in keys else part for name, part in state.items()}
        estimates = _together(estimators, model, params, state, x, eps, train=train)
        grads = [tree.named_leaves(estimate.grads) for estimate in estimates]
        leaves = [[g[name].flatten() for name in names] for g in grads]
        return leaves, estimates[0].log_w, [estimate.bound.mean() for estimate in estimates]

    mapped = vmap_or_loop(replicate, "this gradient: its replicates are computed one after another")

    def of_chunk(params: Params, state: State, x: Data, eps: Tensor) -> Any:
        keys = {name: part[KEY] for name, part in state.items() if isinstance(part, dict) and KEY in part}
        batched = {name: key for name, key in keys.items() if key.ndim == 2}
        return mapped(params, state, x, (eps, batched))

    return of_chunk


@lru_cache(maxsize=8)  # further calls on the same model do not compile again
def compiled_gradients(
    estimators: tuple[GradientEstimator, ...], model: VAE, names: tuple[str, ...], train: bool, device: torch.device
) -> Gradients:
    """`gradients` under `torch.compile`."""
    return compilation.compiled(gradients(estimators, model, names, train), device=device)


def noise_chunks(problem: Problem, scheme: Noise, replicates: range, compile: bool) -> Iterator[tuple[int, Tensor]]:
    """The noise of successive replicates, a chunk at a time: (first replicate, noise [c, N, B, Z]).

    It is drawn in blocks that do not depend on the chunk, because the rounding of an elementwise function may depend on
    the position of a number in a vector register. With `compile`, i.i.d. noise is drawn by a compiled function.
    """
    compilation.keep_freed()
    key, chunk, shape = problem.key, problem.chunk, (problem.samples, examples.count(problem.x), problem.model.latent)
    size = _power_of_two(min(_MAX_NOISE_BLOCK, _NOISE_BLOCK_NUMBERS // (shape[0] * shape[1] * shape[2])))
    compiled = _compiled_noise(shape, noise_dtype(problem.params), key.device) if compile and scheme is iid else None
    drawn: dict[int, Tensor] = {}

    def draw_block(number: int) -> Tensor:
        if size == 1:
            return rearrange(problem.draw(scheme, _fold_in(key, number)), "n b z -> 1 n b z")
        numbers = torch.arange(number * size, (number + 1) * size, device=key.device)
        if compiled:
            return compiled(key, numbers)
        return torch.vmap(lambda r: problem.draw(scheme, _fold_in(key, r)))(numbers)

    for first in range(replicates.start, replicates.stop, chunk):
        last = min(first + chunk, replicates.stop)
        numbers = range(first // size, -(-last // size))
        drawn = {number: drawn[number] if number in drawn else draw_block(number) for number in numbers}
        offset = numbers[0] * size
        yield first, torch.cat(list(drawn.values()))[first - offset : last - offset].clone()


@lru_cache(maxsize=8)
def _compiled_noise(
    shape: random.Shape, dtype: torch.dtype, device: torch.device
) -> Callable[[random.Key, Tensor], Tensor]:
    """(key, replicates' numbers [r]) -> their noise [r, N, B, Z]."""
    return compilation.compiled(partial(numbered, shape=shape, dtype=dtype), device=device)


def check_finite(name: str, key: random.Key, first: int, *series: Tensor) -> None:
    """Raises NonFinite unless all numbers [c, ...] of replicates first, first+1, … are finite."""
    for values in series:
        finite = values.isfinite().flatten(1).all(1)
        if not finite.all():
            r = first + int(finite.int().argmin())
            words = random.fold_in(key, r).tolist()
            raise NonFinite(
                f"{name}: the gradient or bound of replicate {r} is not finite; its noise comes from the key "
                f"torch.tensor({words}, dtype=torch.int32), which is random.fold_in(key, {r})"
            )


_MAX_CHUNK, _CHUNK_NUMBERS = 16, 2**23
_MAX_NOISE_BLOCK, _NOISE_BLOCK_NUMBERS = 64, 2**17  # replicates and numbers in a block of noise


def _power_of_two(most: int) -> int:
    """The greatest power of two that is at most `most`; 1 if `most` is less."""
    return 1 << max(0, most.bit_length() - 1)


_together, _fold_in = checks.unchecked(together), checks.unchecked(random.fold_in)
