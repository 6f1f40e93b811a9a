"""Comparison of estimators and noise schemes on common random numbers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from funcvae import random
from funcvae._support import checks, examples
from funcvae._support.checks import Positive
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadType, BadValue
from funcvae.estimators.compose import together
from funcvae.estimators.types import GradientEstimator
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid, name_of
from funcvae.variance import intervals, online_moments, snr
from funcvae.variance.intervals import Floats, Measured
from funcvae.variance.online_moments import Leaves
from funcvae.variance.problem import (
    Lane,
    Problem,
    ReplicateSettings,
    compiled_gradients,
    estimator_name,
    gradients,
    make_lane,
    make_problem,
    noise_chunks,
)
from funcvae.variance.replicate_loop import Accumulator, LaneRows, LaneStatistics, schemes_of
from funcvae.variance.results import Bias, Compared, Comparison
from funcvae.variance.snr import Group, Series

__all__ = ["Arm", "compare"]

Arm = GradientEstimator | tuple[GradientEstimator, Noise]
"""What `compare` compares: an estimator, or one with its noise scheme."""


@checks.arguments
@torch.no_grad()
def compare(
    arms: Mapping[str, Arm],
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    key: random.Key,
    *,
    samples: int,
    replicates: int = 1000,
    chunk: int | None = None,
    noise: Noise = iid,
    reference: str | None = None,
    groups: str | Sequence[str] = (),
    target_se: Positive | None = None,
    train: bool = False,
    compile: bool = False,
    fresh_layers: bool = False,
    timings: Annotated[int, checks.within(0, 10**6)] = 7,
    processes: Processes = SINGLE,
    progress: Progress = silent,
) -> Comparison:
    """Variance, bias and cost of the gradients of several estimators, on the same replicates of the noise.

    Replicate r of every estimator uses the key `fold_in(key, r)`. Estimators with the same noise scheme use the same
    noise and share one forward pass, so ratios and differences are much more precise than single variances. For P
    parameters, memory is O(P·chunk) for each estimator, plus a few numbers for each replicate and leaf.

    Each replicate r >= 1 gives an unbiased estimate u_r of a variance (`online_moments`). Intervals for variances are
    computed from u_1 … u_{R-1}, and those for ratios from the pairs (u, u_ref). Both are corrected for skewness and
    widened for what the tail of u may hide (`intervals`). An interval is flagged if there are fewer than 30 replicates,
    or if the tail is so heavy that the variance may be infinite.

    Args:
        arms: estimators by name, each alone or with its noise scheme as (estimator, scheme). An estimator is an
            Estimator, or any function of the same arguments that returns an Estimate. The target of a function is
            unknown unless it has an attribute `claims`.
        x: data [B, ...]: the batch whose gradients are computed.
        samples: K.
        replicates: R.
        chunk: number of replicates computed at a time; by default it depends on model and batch and is at most 16.
        noise: the noise scheme of arms without one.
        reference: the arm that ratios and biases refer to; by default the first.
        groups: further groups of parameters, as patterns such as "encoder/*.bias".
        target_se: R is doubled, at most seven times, until the relative standard error of every ratio is at most this;
            ratios of single parameters are ignored. Intervals after such a stop cover slightly less than 95%.
        train: whether networks are in training mode.
        compile: run under `torch.compile`. Compilation takes about half a minute, so it pays for tens of thousands of
            replicates.
        fresh_layers: whether random layers, such as dropout, draw anew in each replicate, which then counts what they
            draw as noise; needs `train`. Otherwise all replicates share what they draw, from the keys in `state`.
        timings: number of times each estimator's eager gradient is timed, after one warm-up; 0 to skip timing. The
            result has the minimum, because other programs disturb it least, and the median.
        processes: from `process_group()`. Each process computes some of the replicates, and all return the result. Its
            bits do not depend on the number of processes. Only the main process measures times; in others they are NaN.
        progress: called with the number of replicates done and the total number planned so far.

    Raises:
        BadValue: arms is empty, a number is out of range, the reference is not an arm, a group matches no parameter, or
            an estimator requires independent samples and those of its scheme are not.
        BadType: an arm is not an estimator or (estimator, scheme), or the key is not a key.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient or bound is not finite; the message names the arm, the replicate and the key of its noise.
        ProcessLost, ReportedElsewhere: another process has ended, or has reported an error.
    """
    settings = ReplicateSettings(samples, replicates, chunk, noise, groups, train, compile, fresh_layers)
    problem = make_problem(model, params, state, x, key, settings)
    if not arms:
        raise BadValue("arms is empty: give estimators by name")
    lanes = [_lane(name, arm, problem) for name, arm in arms.items()]
    reference = next(iter(arms)) if reference is None else reference
    checks.known("reference", reference, arms)
    lanes.sort(key=lambda lane: lane.name != reference)  # the reference comes first
    members_of = problem.parameter_groups()

    done, last = 0, replicates
    problem = replace(problem, decodes=max(lane.decodes for lane in lanes))
    step = _Step(lanes, problem)
    accumulator = Accumulator(lanes, problem, step, step.centers(), order=1, processes=processes)
    while True:
        accumulator.add(range(done, last), progress)
        done = last
        statistics = accumulator.statistics(members_of)
        found = {each.lane.name: _compared(each, statistics[0], members_of) for each in statistics}
        # A ratio to a variance of 0 is NaN, however many the replicates.
        defined = [name for name in members_of if statistics[0].groups[name].variance.value != 0]
        ratios = [row.ratio[name] for row in found.values() for name in defined if "/" not in name]
        reached = target_se is None or all(ratio.se <= target_se * ratio.value for ratio in ratios)
        if reached or done >= replicates << _DOUBLINGS:
            break
        last = 2 * done

    for scheme in schemes_of(lanes) if timings and processes.is_main else ():
        here = [lane for lane in lanes if lane.scheme == scheme]
        times = _seconds_per_gradient([lane.estimator for lane in here], problem, scheme, timings)
        for lane, each in zip(here, times, strict=True):
            found[lane.name] = found[lane.name]._replace(seconds=min(each), median_seconds=median(each))
    words = problem.key.cpu().view(torch.uint32).tolist()
    rows = {name: found[name] for name in arms}
    return Comparison(rows, reference, samples, done, examples.count(x), (words[0], words[1]), target_se, reached)


_DOUBLINGS = 7


def _lane(name: str, arm: Arm, problem: Problem) -> Lane:
    checks.text("the name of an arm", name)
    pair = isinstance(arm, tuple | list) and len(arm) == 2 and not callable(arm)
    estimator, scheme = arm if pair else (arm, problem.settings.noise)  # type: ignore[misc]
    if not callable(estimator) or not callable(scheme):
        got = f"{checks.one_line(repr(name), 60)} is {checks.describe(arm)}"
        raise BadType(f"{got}: give an estimator, such as estimators.iwae(), or (estimator, noise scheme)")
    return make_lane(problem, name, estimator, scheme)


class _Step:
    """Computes the gradients of a chunk of replicates, compiled if requested, and adds them to the sums."""

    def __init__(self, lanes: Sequence[Lane], problem: Problem) -> None:
        self.lanes, self.problem, self.chunk = lanes, problem, problem.chunk
        self.schemes = schemes_of(lanes)
        self.members = [[i for i, lane in enumerate(lanes) if lane.scheme == scheme] for scheme in self.schemes]
        """The indices of each scheme's lanes, which share noise and forward pass."""
        model, names, train, compile = problem.model, problem.names, problem.settings.train, problem.settings.compile
        estimators = [tuple(lanes[i].estimator for i in members) for members in self.members]
        self.eager = self.whole = [gradients(each, model, names, train) for each in estimators]
        if compile:
            self.whole = [compiled_gradients(each, model, names, train, problem.device) for each in estimators]

    def centers(self) -> list[Leaves]:
        """The gradient of replicate 0 of each lane."""
        drawn = [noise_chunks(self.problem, scheme, range(1), self.problem.settings.compile) for scheme in self.schemes]
        grads, _, _ = self.gradients(0, [next(chunks)[1] for chunks in drawn])
        return [[leaf[0] for leaf in each] for each in grads]

    def gradients(self, first: int, eps: list[Tensor]) -> tuple[list[Leaves], list[Tensor], list[Tensor]]:
        """The gradients and bounds [c] of each lane, and the log-weights of each scheme."""
        state = self.problem.state_of(range(first, first + len(eps[0])))
        chunk_gradients = self.whole if len(eps[0]) == self.chunk else self.eager
        grads, bounds, log_w = dict[int, Leaves](), dict[int, Tensor](), list[Tensor]()
        for members, gradient, noise in zip(self.members, chunk_gradients, eps, strict=True):
            found = gradient(self.problem.params, state, self.problem.x, noise)
            grads |= zip(members, found[0], strict=True)
            log_w.append(found[1])
            bounds |= zip(members, found[2], strict=True)
        lanes = range(len(self.lanes))
        return [grads[i] for i in lanes], [bounds[i] for i in lanes], log_w

    def __call__(
        self, first: int, eps: list[Tensor], centers: list[Leaves], powers: list[list[Leaves]]
    ) -> tuple[list[LaneRows], list[Tensor]]:
        grads, bounds, log_w = self.gradients(first, eps)
        rows = []
        for lane, g, center, power, bound in zip(self.lanes, grads, centers, powers, bounds, strict=True):
            square, along = (rows.cpu() for rows in online_moments.sum_powers_(center, power, g))
            difference = square.new_zeros(len(square), 0)
            if lane.is_compared_with(self.lanes[0]):
                pairs = zip(g, grads[0], center, centers[0], strict=True)
                difference = torch.stack([((a - b) @ (c - c_ref)).double() for a, b, c, c_ref in pairs], 1).cpu()
            rows.append(LaneRows(square, along, rearrange(bound.double().cpu(), "c -> c 1"), difference))
        return rows, log_w


def _compared(found: LaneStatistics, reference: LaneStatistics, members_of: dict[str, list[int]]) -> Compared:
    """The results of a lane, without times; `members_of` has the leaves of each group."""
    lane = found.lane
    groups, base = found.groups, reference.groups
    signal, bias = {}, {}
    if lane.target == reference.lane.target:
        signal = {
            name: snr.signal_to_noise(reference.series, found.series, members, groups[name].variance.flag)
            for name, members in members_of.items()
        }
    if lane.is_compared_with(reference.lane):
        difference, rounding = found.difference.numpy(), found.series.rounding
        bias = {
            name: _bias(difference[:, members], base[name].norm.value, float(rounding[members].max()))
            for name, members in members_of.items()
        }
    return Compared(
        name=lane.name,
        estimator=estimator_name(lane.estimator, lane.name),
        noise=name_of(lane.scheme),
        target=lane.target,
        decodes=lane.decodes,
        groups=groups,
        ratio=_ratios(found, reference, members_of),
        signal=signal,
        bias=bias,
        bound=found.bound,
        importance=found.importance,
        seconds=math.nan,
        median_seconds=math.nan,
        unbiased=lane.unbiased,
    )


def _seconds_per_gradient(
    estimators: Sequence[GradientEstimator], problem: Problem, scheme: Noise, timings: int
) -> list[list[float]]:
    """Timings of one eager gradient of each estimator in seconds, without a shared forward pass."""
    model, params, state, x, train = problem.model, problem.params, problem.state, problem.x, problem.settings.train
    eps = problem.draw(scheme, random.fold_in(problem.key, 0))
    seconds: list[list[float]] = [[] for _ in estimators]
    for turn in range(timings + 1):
        pairs = list(zip(estimators, seconds, strict=True))
        start = turn % len(pairs)  # the order rotates: other programs may run at regular intervals
        for estimator, times in pairs[start:] + pairs[:start]:
            begin = _now(problem.device)
            with torch.no_grad():
                _together((estimator,), model, params, state, x, eps, train=train)
            if turn:  # turn 0 is the warm-up
                times.append(_now(problem.device) - begin)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _ratios(found: LaneStatistics, base: LaneStatistics, members_of: dict[str, list[int]]) -> dict[str, Measured]:
    """The ratio of a lane's total variance to another's in each group."""
    return {
        name: _ratio(found.series, base.series, members, found.groups[name], base.groups[name])
        for name, members in members_of.items()
    }


def _ratio(mine: Series, base: Series, members: list[int], group: Group, base_group: Group) -> Measured:
    """The ratio of the total variance of an estimator to that of another."""
    a, b = group.variance, base_group.variance
    flag = "; ".join(dict.fromkeys(filter(None, [*a.flag.split("; "), *b.flag.split("; ")])))
    value = 1.0 if mine is base else a.value / (b.value or math.nan)
    if mine is base or not value > 0:
        return Measured(value, 0 * value, value, value, flag)
    u, u_base = (snr.scaled_squares(series, members) for series in (mine, base))
    return intervals.ratio_interval(u, u_base, value, flag)


def _bias(difference: Floats, reference_norm: float, rounding: float) -> Bias:
    """The bias of one group, from (g_r - g_ref,r)·(c - c_ref) of each replicate and leaf [R, L].

    If heavy tails make n values count as n/κ, with κ their kurtosis, then their mean over its standard error is about
    Student's t with d = n/κ - 1 degrees of freedom. Wallace's approximation maps t to a standard normal z, and back:

        z = (8d + 1)/(8d + 3) (d ln(1 + t²/d))^½

    Reference: Wallace (1959), "Bounds on normal approximations to Student's and the chi-square distributions".
    """
    if len(difference) < 2:
        return Bias(*[math.nan] * 7)
    later = intervals.later_replicates(len(difference))
    values = difference[later].sum(1)
    n, square, spread = len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    se = spread * math.sqrt(1 / n + 1 / later.start)
    d = max(1.0, n / intervals.kurtosis_of((values - square) ** 2) - 1)  # 1 if the kurtosis is NaN
    factor = (8 * d + 1) / (8 * d + 3)
    t95 = math.sqrt(d * math.expm1((intervals.Z95 / factor) ** 2 / d))
    t = square / spread * math.sqrt(n) if spread > 0 else math.inf
    t = t if abs(square) > rounding else 0.0
    z = math.copysign(factor * math.sqrt(d * math.log1p(t * t / d)), t)
    z = z if n >= intervals.MIN_REPLICATES or spread == 0 else math.nan
    norm, limit = (math.sqrt(max(end, 0.0)) for end in (square, square + t95 * se))
    scale = reference_norm or math.nan
    return Bias(norm, norm / scale, square, se, z, limit, limit / scale)


_together = checks.unchecked(together)
