"""Replicates of a gradient: the same estimators on independent noise, some at a time.

Replicate r's noise is `scheme(fold_in(key, r), samples, (B, Z))` and depends on nothing else: the same bits however
many replicates are taken at a time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.estimators.compose import together
from funcvae.estimators.engine import Estimate, Estimator, check_estimator
from funcvae.model import VAE, Observe, as_is, check_data, check_trained
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid, numbered
from funcvae.variance import online_moments

AnyEstimator = Callable[..., Estimate]
Progress = Callable[[int, int], None]
Gradients = Callable[..., Any]


class Problem(NamedTuple):
    """Where a gradient is taken."""

    model: VAE
    params: Params
    state: State
    x: Tensor
    samples: int
    train: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the noise."""
        return self.x.dtype if self.x.is_floating_point() else tree.leaves(self.params)[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of their leaves."""
        return tuple(tree.named_leaves(self.params))

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(leaf.numel() for leaf in tree.leaves(self.params))

    def draw(self, scheme: Noise, key: random.Key) -> Tensor:
        """Noise [N, B, Z] from a key."""
        shape = (len(self.x), self.model.latent)
        eps = checks.tensor("what the noise scheme returned", scheme(key, self.samples, shape, dtype=self.dtype))
        if eps.shape != (self.samples, *shape):
            raise BadValue(f"the noise scheme gave {list(eps.shape)}: it was asked for {[self.samples, *shape]}")
        return eps


class Chunk(NamedTuple):
    """What some replicates in succession gave, for the estimators of one noise scheme."""

    first: int
    grads: list[online_moments.Leaves]
    """Of each estimator and leaf [c, P], in the order of the parameters' leaves."""
    log_w: Tensor
    """[c, N, B]."""
    bounds: list[Tensor]
    """Of each estimator [c]: the batch's mean bound."""


def check(
    model: VAE, params: Params, state: State, data: Tensor, observe: Observe = as_is,
    *, samples: int, replicates: int, chunk: int | None = None, batch: int | None = None,
) -> None:  # fmt: skip
    """Raises what the lab's functions say they raise; `batch` is how many of the data are taken at once, if not all."""
    check_trained(model, params, state)
    checks.tensor("data", data, "B ...")
    checks.fits("samples", (checks.whole("samples", samples, 1), min(len(data), batch or len(data)), model.latent))
    checks.fits("replicates", (checks.whole("replicates", replicates, 1), len(tree.leaves(params))), 8)
    if chunk is not None:
        checks.whole("chunk", chunk, 1)
    dtypes = {leaf.dtype for leaf in tree.leaves(params)}
    if data.is_floating_point() and dtypes and data.dtype not in dtypes:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        got = str(data.dtype).removeprefix("torch.")
        raise BadData(f"the data are {got} and the parameters {kinds}: make them one, as with data.to(torch.{kinds})")
    check_data(model, params, state, data, observe)


def at_once(problem: Problem) -> int:
    """How many replicates to take at a time, unless it is said.

    As many as make some eight million numbers, of their gradients or of what is decoded, but at most 16; a power of
    two, so that blocks of noise and of replicates begin together.
    """
    decoded = problem.samples * problem.x.numel()
    return _power_of_two(min(_MOST_AT_ONCE, _NUMBERS_AT_ONCE // max(problem.size, decoded)))


def gradients(estimators: tuple[AnyEstimator, ...], model: VAE, names: tuple[str, ...], train: bool) -> Gradients:
    """The function (params, state, x, eps [c, N, B, Z]) -> what a `Chunk` holds; one forward pass for all estimators.

    Args:
        estimators: which.
        model: whose.
        names: of the parameters, in the order of their leaves.
        train: whether networks are in training mode.
    """

    def some(params: Params, state: State, x: Tensor, eps: Tensor) -> Any:
        def one(eps: Tensor) -> Any:
            found = together(estimators, model, params, state, x, eps, train=train)
            grads = [tree.named_leaves(out.grads) for out in found]
            leaves = [[g[name].flatten() for name in names] for g in grads]
            return leaves, found[0].log_w, [out.bound.mean() for out in found]

        return torch.vmap(one)(eps)

    return some


@lru_cache(maxsize=8)  # what is compiled once serves every call on the same model
def compiled_gradients(
    estimators: tuple[AnyEstimator, ...], model: VAE, names: tuple[str, ...], train: bool, device: torch.device
) -> Gradients:
    """`gradients` under `torch.compile`."""
    return compilation.compiled(gradients(estimators, model, names, train), device=device)


def chunks(
    gradient: Gradients,
    problem: Problem,
    scheme: Noise,
    key: random.Key,
    first: int,
    last: int,
    chunk: int,
    whole: Gradients | None = None,
) -> Iterator[Chunk]:
    """Replicates first … last-1, `chunk` at a time; `whole` does for whole chunks what `gradient` does for all."""
    for start, eps in noise(problem, scheme, key, first, last, chunk, compile=whole is not None):
        how = whole if whole and len(eps) == chunk else gradient
        yield Chunk(start, *how(problem.params, problem.state, problem.x, eps))


def called(estimator: AnyEstimator, otherwise: str) -> str:
    """What an estimator is called."""
    return getattr(estimator, "name", getattr(estimator, "__name__", otherwise))


def target_of(estimator: AnyEstimator, scheme: Noise, otherwise: str) -> str:
    """What its gradient is meant to be one of; a function of one's own may say so by an attribute `claims`.

    Raises:
        BadValue: the estimator leans on independent samples, and the scheme's are not.
    """
    check_estimator(otherwise or "estimator", estimator)
    checks.function("noise", scheme, "a scheme, such as noise.iid")
    if isinstance(estimator, Estimator):
        return estimator.claims_under(scheme).target
    return estimator.claims.target if hasattr(estimator, "claims") else otherwise


def check_finite(name: str, key: random.Key, first: int, *series: Tensor) -> None:
    """Raises NonFinite unless all numbers [c, ...] of the replicates first, first+1, … are finite."""
    for values in series:
        fine = values.isfinite().flatten(1).all(1)
        if not fine.all():
            r = first + int(fine.int().argmin())
            words = random.fold_in(key, r).tolist()
            raise NonFinite(
                f"{name}: the gradient or bound of replicate {r} is not finite; its noise comes from the key "
                f"torch.tensor({words}, dtype=torch.int32), which is random.fold_in(key, {r})"
            )


def seconds_per_gradient(
    estimators: Sequence[AnyEstimator], problem: Problem, scheme: Noise, key: random.Key, timings: int
) -> list[float]:
    """The time of one gradient with each estimator by itself, eager, in seconds: the least of several.

    (Other programs disturb the least the least.)
    """
    eps = problem.draw(scheme, random.fold_in(key, 0))
    model, params, state, x, _, train = problem
    spent: list[list[float]] = [[] for _ in estimators]
    for turn in range(timings + 1):
        pairs = list(zip(estimators, spent, strict=True))
        at = turn % len(pairs)  # each comes first in its turn: what else runs may keep a beat
        for estimator, times in pairs[at:] + pairs[:at]:
            begin = _now(x)
            with torch.no_grad():
                estimator(model, params, state, x, eps, train=train)
            if turn:  # the first warms up
                times.append(_now(x) - begin)
    return [min(times) for times in spent]


_MOST_AT_ONCE, _NUMBERS_AT_ONCE = 16, 2**23
_MOST_DRAWN, _NOISE_DRAWN = 64, 2**17  # replicates and numbers in a block of noise


def noise(
    problem: Problem, scheme: Noise, key: random.Key, first: int, last: int, chunk: int, compile: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """The noise [c, N, B, Z] of replicates first … last-1, `chunk` at a time.

    It is drawn in blocks that do not depend on `chunk`: how an elementwise function rounds may depend on where in a
    vector register a number lies. Where it is compiled, i.i.d. noise is.
    """
    compilation.keep_freed()
    size = _power_of_two(min(_MOST_DRAWN, _NOISE_DRAWN // (problem.samples * len(problem.x) * problem.model.latent)))
    drawn: dict[int, Tensor] = {}
    shape = problem.samples, len(problem.x), problem.model.latent
    compiled = _compiled_noise(shape, problem.dtype, key.device) if compile and scheme is iid else None

    def block(number: int) -> Tensor:
        if size == 1:
            return problem.draw(scheme, random.fold_in(key, number)).unsqueeze(0)
        replicates = torch.arange(number * size, (number + 1) * size, device=key.device)
        if compiled:
            return compiled(key, replicates)
        return torch.vmap(lambda r: problem.draw(scheme, random.fold_in(key, r)))(replicates)

    for start in range(first, last, chunk):
        stop = min(start + chunk, last)
        numbers = range(start // size, -(-stop // size))
        drawn = {number: drawn[number] if number in drawn else block(number) for number in numbers}
        offset = numbers[0] * size
        yield start, torch.cat(list(drawn.values()))[start - offset : stop - offset].clone()


@lru_cache(maxsize=8)
def _compiled_noise(
    shape: random.Shape, dtype: torch.dtype, device: torch.device
) -> Callable[[random.Key, Tensor], Tensor]:
    """(key, replicates' numbers [r]) -> their noise [r, N, B, Z]."""
    return compilation.compiled(partial(numbered, shape=shape, dtype=dtype), device=device)


def _power_of_two(most: int) -> int:
    """The greatest that is not above `most`, but 1 at least."""
    return 1 << max(0, most.bit_length() - 1)


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
