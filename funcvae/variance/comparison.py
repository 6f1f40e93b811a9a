"""Estimators and noise schemes side by side, on common random numbers."""

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadType, BadValue, unknown
from funcvae.estimators.types import GradientEstimator
from funcvae.evaluate.importance_sampling import Progress
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid, name_of
from funcvae.variance import intervals, online_moments, snr
from funcvae.variance.intervals import Floats, Measured
from funcvae.variance.online_moments import Leaves
from funcvae.variance.problem import (
    Problem,
    ReplicateSettings,
    compiled_gradients,
    estimator_name,
    gradients,
    make_problem,
    noise_chunks,
    target_of,
)
from funcvae.variance.replicate_loop import Accumulator, Lane, LaneRows, LaneStatistics, schemes_of
from funcvae.variance.results import Bias, Compared, Comparison
from funcvae.variance.snr import Group, Series

__all__ = ["Arm", "compare"]

Arm = GradientEstimator | tuple[GradientEstimator, Noise]


@torch.no_grad()
def compare(
    arms: Mapping[str, Arm],
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    key: random.Key,
    *,
    samples: int,
    replicates: int = 1000,
    chunk: int | None = None,
    noise: Noise = iid,
    reference: str | None = None,
    groups: Sequence[str] = (),
    target_se: float | None = None,
    train: bool = False,
    compile: bool = False,
    timings: int = 7,
    processes: Processes = SINGLE,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """The variance, bias and cost of several estimators' gradients, over the same replicates of the noise.

    Replicate r of every estimator uses the key `fold_in(key, r)`; those of one noise scheme see the same noise and
    share one forward pass, so that ratios and differences are known far better than what they are made of. Memory is
    O(P·chunk) for each estimator, and a few numbers for each replicate and leaf.

    Intervals for a variance T come from u_1 … u_{R-1} (`online_moments`), skewness taken off; those for ratios from the
    pairs (u, u_ref), by the delta method on the logarithm. A flag says where kurtosis, the tail of the gradient or that
    of the importance weights speaks against them; the weights' tail counts for estimators that look at the log-weights.

    Args:
        arms: estimators by name, each by itself or with a noise scheme of its own, as (estimator, scheme). They are
            Estimators, or any functions of the same arguments that return an Estimate, whose target is unknown unless
            they have an attribute `claims`.
        x: data [B, ...]: the gradients are those of this batch.
        samples: K.
        replicates: R.
        chunk: replicates at a time; by the sizes of model and batch, at most 16, unless given.
        noise: the scheme of those that name none.
        reference: whom ratios and bias are against: the first unless given.
        groups: further groups of parameters, as patterns such as "encoder/*.bias".
        target_se: go on, doubling R up to seven times, until every ratio, but for those of single parameters, has a
            relative standard error below this. Intervals at such a stop cover a little less than 95%.
        train: whether networks are in training mode.
        compile: run under `torch.compile`: worth its half minute for tens of thousands of replicates.
        timings: how often each estimator's gradient is timed, eager, after once to warm up; 0 for not at all.
        processes: from `process_group()`: each computes some of the replicates, all have the result, and
            its bits are the same for every number of them (except times, which the main process takes).
        progress: called with the number of replicates done, and of all as far as planned.

    Raises:
        BadValue: no arms; samples, replicates or chunk below one; a reference or group that is none; target_se not
            positive; or an estimator requires independent samples, and its scheme's are not.
        BadType: an arm or a key that is none.
        BadData: data the model cannot take, or that are not finite.
        NonFinite: a gradient or bound that is not finite; the message names estimator, replicate and the key that
            replays it.
        ProcessLost, ReportedElsewhere: another process has ended, or has said what is wrong.
    """
    settings = ReplicateSettings(samples, replicates, chunk, noise, groups, train, compile)
    problem = make_problem(model, params, state, x, key, settings)
    checks.function("progress", progress)
    if not isinstance(arms, Mapping):
        raise BadType(f"arms is {checks.describe(arms)}: give estimators by name, in a dict")
    if not arms:
        raise BadValue("there is nothing to compare: give estimators by name")
    reference = next(iter(arms)) if reference is None else reference
    for name in arms:
        checks.text("the name of an arm", name)
    checks.integer("timings", timings, 0, _MOST_TIMINGS)
    if checks.text("reference", reference) not in arms:
        raise unknown("reference", reference, arms)
    if target_se is not None and not checks.number("target_se", target_se) > 0:
        raise BadValue(f"target_se is {target_se}: a relative standard error is positive, as 0.01")
    lanes = [_lane(name, arm, settings.noise) for name, arm in arms.items()]
    lanes.sort(key=lambda lane: lane.name != reference)  # the reference comes first
    members_of = problem.parameter_groups()

    done, last = 0, settings.replicates
    step = _Step(lanes, problem)
    accumulator = Accumulator(lanes, problem, step, step.centers(), order=1, processes=processes)
    while True:
        accumulator.add(range(done, last), progress)
        done = last
        statistics = accumulator.statistics(members_of)
        found = {each.lane.name: _compared(each, statistics[0], members_of) for each in statistics}
        ratios = [row.ratio[name] for row in found.values() for name in members_of if "/" not in name]
        reached = target_se is None or all(ratio.se <= target_se * ratio.value for ratio in ratios)
        if reached or done >= settings.replicates << _DOUBLINGS:
            break
        last = 2 * done

    for scheme in schemes_of(lanes) if timings and processes.is_main else ():
        here = [lane for lane in lanes if lane.scheme == scheme]
        times = _seconds_per_gradient([lane.estimator for lane in here], problem, scheme, timings)
        for lane, seconds in zip(here, times, strict=True):
            found[lane.name] = found[lane.name]._replace(seconds=seconds)
    words = problem.key.cpu().view(torch.uint32).tolist()
    rows = {name: found[name] for name in arms}
    return Comparison(rows, reference, settings.samples, done, len(x), (words[0], words[1]), target_se, reached)


_DOUBLINGS = 7
_MOST_TIMINGS = 10**6


def _lane(name: str, arm: Arm, noise: Noise) -> Lane:
    pair = isinstance(arm, tuple | list) and len(arm) == 2 and not callable(arm)
    estimator, scheme = arm if pair else (arm, noise)  # type: ignore[misc]
    if not callable(estimator) or not callable(scheme):
        got = f"{checks.one_line(repr(name), 60)} is {checks.describe(arm)}"
        raise BadType(f"{got}: give an estimator, as estimators.iwae(), or (estimator, noise scheme)")
    return Lane(name, estimator, scheme, target_of(estimator, scheme, name))


class _Step:
    """The accumulator's step: gradients, which may be compiled; then their sums, of first powers."""

    def __init__(self, lanes: Sequence[Lane], problem: Problem) -> None:
        self.lanes, self.problem, self.chunk = lanes, problem, problem.chunk
        self.schemes = schemes_of(lanes)
        self.members = [[i for i, lane in enumerate(lanes) if lane.scheme == scheme] for scheme in self.schemes]
        """The numbers of each scheme's lanes, which share their noise and forward pass."""
        model, names, train, compile = problem.model, problem.names, problem.settings.train, problem.settings.compile
        estimators = [tuple(lanes[i].estimator for i in members) for members in self.members]
        self.eager = self.whole = [gradients(each, model, names, train) for each in estimators]
        if compile:
            self.whole = [compiled_gradients(each, model, names, train, problem.x.device) for each in estimators]

    def centers(self) -> list[Leaves]:
        """Each lane's gradient of replicate 0."""
        drawn = [noise_chunks(self.problem, scheme, range(1), self.problem.settings.compile) for scheme in self.schemes]
        grads, _, _ = self.gradients([next(chunks)[1] for chunks in drawn])
        return [[leaf[0] for leaf in each] for each in grads]

    def gradients(self, eps: list[Tensor]) -> tuple[list[Leaves], list[Tensor], list[Tensor]]:
        """The gradients and bounds [c] of each lane, and the log-weights of each scheme."""
        chunk_gradients = self.whole if len(eps[0]) == self.chunk else self.eager
        grads, bounds, log_w = dict[int, Leaves](), dict[int, Tensor](), list[Tensor]()
        for members, gradient, noise in zip(self.members, chunk_gradients, eps, strict=True):
            found = gradient(self.problem.params, self.problem.state, self.problem.x, noise)
            grads |= zip(members, found[0], strict=True)
            log_w.append(found[1])
            bounds |= zip(members, found[2], strict=True)
        lanes = range(len(self.lanes))
        return [grads[i] for i in lanes], [bounds[i] for i in lanes], log_w

    def __call__(
        self, eps: list[Tensor], centers: list[Leaves], powers: list[list[Leaves]]
    ) -> tuple[list[LaneRows], list[Tensor]]:
        grads, bounds, log_w = self.gradients(eps)
        rows = []
        for lane, g, center, power, bound in zip(self.lanes, grads, centers, powers, bounds, strict=True):
            square, along = online_moments.sum_powers_(center, power, g)
            difference = square.new_zeros(len(square), 0)
            if lane.is_compared_with(self.lanes[0]):
                pairs = zip(g, grads[0], center, centers[0], strict=True)
                difference = torch.stack([((a - b) @ (c - c_ref)).double().cpu() for a, b, c, c_ref in pairs], 1)
            rows.append(LaneRows(square, along, bound.double().cpu().unsqueeze(1), difference))
        return rows, log_w


def _compared(found: LaneStatistics, reference: LaneStatistics, members_of: dict[str, list[int]]) -> Compared:
    """The results of a lane, without the time of a gradient; `members_of` are the leaves of each group."""
    lane = found.lane
    groups, base = found.groups, reference.groups
    signal, bias = {}, {}
    if lane.target == reference.lane.target:
        signal = {
            name: snr.signal_to_noise(reference.series, found.series, members, groups[name].variance.flag)
            for name, members in members_of.items()
        }
    if lane.is_compared_with(reference.lane):
        difference = found.difference.numpy()
        bias = {name: _bias(difference, members, base[name].norm.value) for name, members in members_of.items()}
    return Compared(
        name=lane.name,
        estimator=estimator_name(lane.estimator, lane.name),
        noise=name_of(lane.scheme),
        target=lane.target,
        groups=groups,
        ratio={
            name: _ratio(found.series, reference.series, members, groups[name], base[name])
            for name, members in members_of.items()
        },
        signal=signal,
        bias=bias,
        bound=found.bound,
        importance=found.importance,
        seconds=math.nan,
    )


def _seconds_per_gradient(
    estimators: Sequence[GradientEstimator], problem: Problem, scheme: Noise, timings: int
) -> list[float]:
    """The time of one gradient with each estimator by itself, eager, in seconds: the least of several.

    (Other programs disturb the least the least.)
    """
    model, params, state, x, key, settings = problem
    eps = problem.draw(scheme, random.fold_in(key, 0))
    seconds: list[list[float]] = [[] for _ in estimators]
    for turn in range(timings + 1):
        pairs = list(zip(estimators, seconds, strict=True))
        start = turn % len(pairs)  # each comes first in its turn: other programs may run at regular intervals
        for estimator, times in pairs[start:] + pairs[:start]:
            begin = _now(x)
            with torch.no_grad():
                estimator(model, params, state, x, eps, train=settings.train)
            if turn:  # the first warms up
                times.append(_now(x) - begin)
    return [min(times) for times in seconds]


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def _ratio(mine: Series, base: Series, members: list[int], group: Group, base_group: Group) -> Measured:
    """The ratio of two total variances."""
    a, b = group.variance, base_group.variance
    if mine is base:
        return Measured(1.0, 0.0, 1.0, 1.0, a.flag)
    flag = "; ".join(dict.fromkeys(filter(None, [a.flag, b.flag])))
    value = a.value / b.value if b.value > 0 else math.nan
    u, u_base = (snr.scaled_squares(series, members) for series in (mine, base))
    return intervals.ratio_interval(u, u_base, value, flag)


def _bias(difference: Floats, members: list[int], reference_norm: float) -> Bias:
    """Of one group, from (g_r - g_ref,r)·(c - c_ref) of each replicate and leaf [R, L]."""
    if len(difference) < 2:
        return Bias(*[math.nan] * 5)
    later = intervals.later_replicates(len(difference))
    values = difference[later, members].sum(1)
    square, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    null = spread / math.sqrt(len(values))
    norm = math.sqrt(max(square, 0.0))
    z = square / null if null > 0 else (0.0 if square == 0 else math.inf)
    z = z if len(values) >= intervals.MIN_EFFECTIVE_REPLICATES or spread == 0 else math.nan
    se = spread * math.sqrt(1 / len(values) + 1 / later.start)
    return Bias(norm, norm / reference_norm if reference_norm > 0 else math.nan, square, se, z)
