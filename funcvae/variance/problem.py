"""Replicates of a gradient: the same estimators on independent noise, a chunk of replicates at a time.

Replicate r's noise is `scheme(fold_in(key, r), samples, (B, Z))` and depends on nothing else: it has the same bits for
every size of the chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks
from funcvae.errors import BadData, BadType, BadValue, NonFinite
from funcvae.estimators.compose import together
from funcvae.estimators.types import Estimator, GradientEstimator, check_estimator
from funcvae.model import VAE, Observe, as_is, check_data, check_trained
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid, numbered
from funcvae.variance import snr
from funcvae.variance.online_moments import Leaves

__all__ = [
    "Gradients", "Problem", "ReplicateSettings", "check_finite", "check_problem", "compiled_gradients",
    "estimator_name", "gradients", "make_problem", "noise_chunks", "target_of",
]  # fmt: skip


@dataclass(frozen=True)
class ReplicateSettings:
    """How a gradient is replicated.

    Raises:
        BadValue: samples, replicates or chunk are below one.
        BadType: a field has another type.
    """

    samples: int
    """K."""
    replicates: int = 1000
    """R."""
    chunk: int | None = None
    """Replicates at a time; by the sizes of model and batch, at most 16, if None."""
    noise: Noise = iid
    """The noise scheme; it is `vmap`ped over keys."""
    groups: Sequence[str] = ()
    """Further groups of parameters, as patterns such as "encoder/*.bias"."""
    train: bool = False
    """Whether networks are in training mode."""
    compile: bool = False
    """Whether chunks run under `torch.compile`."""

    def __post_init__(self) -> None:
        numbers = {
            "samples": checks.integer("samples", self.samples, 1),
            "replicates": checks.integer("replicates", self.replicates, 1),
            "chunk": None if self.chunk is None else checks.integer("chunk", self.chunk, 1),
        }
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # Python's own type, also where numpy's was given
        checks.function("noise", self.noise, "a scheme, such as noise.iid")
        groups = (self.groups,) if isinstance(self.groups, str) else self.groups
        if not isinstance(groups, Sequence):
            raise BadType(
                f"groups is {checks.describe(groups)}: give patterns such as 'encoder/*.bias', in a list or tuple"
            )
        object.__setattr__(self, "groups", tuple(checks.text("a group", pattern) for pattern in groups))
        checks.flag("train", self.train)
        checks.flag("compile", self.compile)


class Problem(NamedTuple):
    """Where a gradient is replicated, and how: a model, a batch, the key of the noise, and the settings."""

    model: VAE
    params: Params
    state: State
    x: Tensor
    key: random.Key
    settings: ReplicateSettings

    @property
    def samples(self) -> int:
        """K."""
        return self.settings.samples

    @property
    def dtype(self) -> torch.dtype:
        """Of the noise."""
        return self.x.dtype if self.x.is_floating_point() else tree.leaves(self.params)[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of their leaves."""
        return tuple(tree.named_leaves(self.params))

    @property
    def sizes(self) -> list[int]:
        """Of the parameters' leaves."""
        return [leaf.numel() for leaf in tree.leaves(self.params)]

    @property
    def chunk(self) -> int:
        """How many replicates are taken at a time.

        Unless the settings give it: as many as make about eight million numbers, of their gradients or of what is
        decoded, but at most 16; a power of two, so that blocks of noise and of replicates begin together.
        """
        if self.settings.chunk is not None:
            return self.settings.chunk
        largest = max(sum(self.sizes), self.samples * self.x.numel())
        return _power_of_two(min(_MAX_CHUNK, _CHUNK_NUMBERS // largest))

    def parameter_groups(self) -> dict[str, list[int]]:
        """The groups of parameters, as numbers of leaves; raises BadValue where a pattern matches no parameter."""
        return snr.parameter_groups(self.names, self.sizes, self.settings.groups)

    def draw(self, scheme: Noise, key: random.Key) -> Tensor:
        """Noise [N, B, Z] from a key."""
        shape = (len(self.x), self.model.latent)
        eps = checks.tensor("what the noise scheme returned", scheme(key, self.samples, shape, dtype=self.dtype))
        if eps.shape != (self.samples, *shape):
            raise BadValue(f"the noise scheme gave {list(eps.shape)}: it was asked for {[self.samples, *shape]}")
        return eps


def make_problem(
    model: VAE, params: Params, state: State, x: Tensor, key: random.Key, settings: ReplicateSettings
) -> Problem:
    """A checked `Problem`; raises what the lab's functions say they raise."""
    check_problem(model, params, state, x, settings)
    return Problem(model, params, state, x, checks.concrete("key", random.checked(key)).to(x.device), settings)


def check_problem(
    model: VAE, params: Params, state: State, data: Tensor, settings: ReplicateSettings,
    observe: Observe = as_is, batch: int | None = None,
) -> None:  # fmt: skip
    """Raises what the lab's functions say they raise; `batch` is how many of the data are taken at once, if not all."""
    check_trained(model, params, state)
    checks.tensor("data", data, "B ...")
    checks.fits("samples", (settings.samples, min(len(data), batch or len(data)), model.latent))
    checks.fits("replicates", (settings.replicates, len(tree.leaves(params))), 8)
    dtypes = {leaf.dtype for leaf in tree.leaves(params)}
    if data.is_floating_point() and dtypes and data.dtype not in dtypes:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        got = str(data.dtype).removeprefix("torch.")
        raise BadData(f"the data are {got} and the parameters {kinds}: make them one, as with data.to(torch.{kinds})")
    check_data(model, params, state, data, observe)


class Gradients(Protocol):
    """The gradients of several estimators under one noise scheme, for a chunk of c replicates."""

    def __call__(
        self, params: Params, state: State, x: Tensor, eps: Tensor
    ) -> tuple[list[Leaves], Tensor, list[Tensor]]:
        """From eps [c, N, B, Z]: each estimator's gradient, a leaf of which is [c, P], in the order of the parameters'
        leaves; the log-weights [c, N, B]; and each estimator's mean bound of the batch [c]."""
        ...


def gradients(estimators: tuple[GradientEstimator, ...], model: VAE, names: tuple[str, ...], train: bool) -> Gradients:
    """The `Gradients` of several estimators, with one forward pass for all that can share one.

    Args:
        estimators: the estimators.
        model: their model.
        names: of the parameters, in the order of their leaves.
        train: whether networks are in training mode.
    """

    def chunk_gradients(params: Params, state: State, x: Tensor, eps: Tensor) -> Any:
        def replicate(eps: Tensor) -> Any:
            estimates = together(estimators, model, params, state, x, eps, train=train)
            grads = [tree.named_leaves(estimate.grads) for estimate in estimates]
            leaves = [[g[name].flatten() for name in names] for g in grads]
            return leaves, estimates[0].log_w, [estimate.bound.mean() for estimate in estimates]

        return torch.vmap(replicate)(eps)

    return chunk_gradients


@lru_cache(maxsize=8)  # what is compiled once serves every call on the same model
def compiled_gradients(
    estimators: tuple[GradientEstimator, ...], model: VAE, names: tuple[str, ...], train: bool, device: torch.device
) -> Gradients:
    """`gradients` under `torch.compile`."""
    return compilation.compiled(gradients(estimators, model, names, train), device=device)


def noise_chunks(problem: Problem, scheme: Noise, replicates: range, compile: bool) -> Iterator[tuple[int, Tensor]]:
    """The noise of some replicates in succession, a chunk at a time: (first replicate, noise [c, N, B, Z]).

    It is drawn in blocks that do not depend on the chunk: how an elementwise function rounds may depend on where in a
    vector register a number lies. With `compile`, i.i.d. noise is drawn by a compiled function.
    """
    compilation.keep_freed()
    key, chunk, shape = problem.key, problem.chunk, (problem.samples, len(problem.x), problem.model.latent)
    size = _power_of_two(min(_MAX_NOISE_BLOCK, _NOISE_BLOCK_NUMBERS // (shape[0] * shape[1] * shape[2])))
    compiled = _compiled_noise(shape, problem.dtype, key.device) if compile and scheme is iid else None
    drawn: dict[int, Tensor] = {}

    def draw_block(number: int) -> Tensor:
        if size == 1:
            return problem.draw(scheme, random.fold_in(key, number)).unsqueeze(0)
        numbers = torch.arange(number * size, (number + 1) * size, device=key.device)
        if compiled:
            return compiled(key, numbers)
        return torch.vmap(lambda r: problem.draw(scheme, random.fold_in(key, r)))(numbers)

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


def estimator_name(estimator: GradientEstimator, default: str) -> str:
    """The name of an estimator or function; the default where it has none."""
    return getattr(estimator, "name", getattr(estimator, "__name__", default))


def target_of(estimator: GradientEstimator, scheme: Noise, default: str) -> str:
    """The target of its gradient; a function may state it by an attribute `claims`, else it is the default.

    Raises:
        BadValue: the estimator requires independent samples, and the scheme's are not.
    """
    check_estimator(default or "estimator", estimator)
    checks.function("noise", scheme, "a scheme, such as noise.iid")
    if isinstance(estimator, Estimator):
        return estimator.claims_under(scheme).target
    return estimator.claims.target if hasattr(estimator, "claims") else default


def check_finite(name: str, key: random.Key, first: int, *series: Tensor) -> None:
    """Raises NonFinite unless all numbers [c, ...] of the replicates first, first+1, … are finite."""
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
    """The greatest that is not above `most`, but 1 at least."""
    return 1 << max(0, most.bit_length() - 1)
