"""Estimators and noise schemes side by side, on common random numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.distributed.processes import SINGLE, Processes
from funcvae.errors import BadType, BadValue, unknown
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid, name_of
from funcvae.variance import blocks, intervals, online_moments, weight_diagnostics
from funcvae.variance.blocks import Block
from funcvae.variance.intervals import Floats, Group, Measured, Series
from funcvae.variance.replicates import (
    AnyEstimator,
    Chunk,
    Problem,
    Progress,
    at_once,
    called,
    check,
    check_finite,
    chunks,
    compiled_gradients,
    gradients,
    seconds_per_gradient,
    target_of,
)
from funcvae.variance.results import Bias, Compared, Comparison

Arm = AnyEstimator | tuple[AnyEstimator, Noise]


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

    Intervals for a variance T come from u_1 … u_{R-1} (`streaming`), skewness taken off; those for ratios from the
    pairs (u, u_ref), by the delta method on the logarithm. A flag says where kurtosis, the tail of the gradient or that
    of the importance weights speaks against them; the weights' tail counts for estimators that look at the log-weights.

    Args:
        arms: estimators by name, each by itself or with a noise scheme of its own, as (estimator, scheme). They are
            Estimators, or any functions of the same arguments that return an Estimate, whose target nobody knows unless
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
        processes: who does it, from `process_group()`: each takes some of the replicates, all have the result, and
            its bits are the same for every number of them (times apart, which the first takes).
        progress: called with the number of replicates done, and of all as far as planned.

    Raises:
        BadValue: no arms; samples, replicates or chunk below one; a reference or group that is none; target_se not
            positive; or an estimator leans on independent samples, and its scheme's are not.
        BadType: an arm or a key that is none.
        BadData: data the model cannot take, or that are not finite.
        NonFinite: a gradient or bound that is not finite; the message names estimator, replicate and the key that
            replays it.
        ProcessLost, ReportedElsewhere: another process has ended, or has said what is wrong.
    """
    problem = Problem(model, params, state, x, samples, train)
    check(model, params, state, x, samples=samples, replicates=replicates, chunk=chunk)
    checks.flag("train", train)
    checks.function("progress", progress)
    chunk = at_once(problem) if chunk is None else chunk
    if not isinstance(arms, Mapping):
        raise BadType(f"arms is {checks.shown(arms)}: give estimators by name, in a dict")
    if not arms:
        raise BadValue("there is nothing to compare: give estimators by name")
    reference = next(iter(arms)) if reference is None else reference
    for name in arms:
        checks.text("the name of an arm", name)
    checks.whole("timings", timings, 0, _MOST_TIMINGS)
    if checks.text("reference", reference) not in arms:
        raise unknown("reference", reference, arms)
    if target_se is not None and not checks.number("target_se", target_se) > 0:
        raise BadValue(f"target_se is {target_se}: a relative standard error is positive, as 0.01")
    schemes: list[Noise] = []
    lanes = [_lane(name, arm, noise, schemes) for name, arm in arms.items()]
    lanes.sort(key=lambda lane: lane.name != reference)  # it comes first: the others are held against it
    named = tree.named_leaves(params)
    sizes = [leaf.numel() for leaf in named.values()]
    members_of = intervals.groups_of(list(named), sizes, groups)

    key = checks.valued("key", random.checked(key)).to(x.device)
    run, done, stage = _Run(lanes, schemes, problem, key, chunk, compile, processes), 0, replicates
    while True:
        run.advance(done, stage, lambda at, to=stage: progress(at, to))  # type: ignore[misc]
        done = stage
        found = run.result(members_of, sizes)
        ratios = [row.ratio[name] for row in found.values() for name in members_of if "/" not in name]
        reached = target_se is None or all(ratio.se <= target_se * ratio.value for ratio in ratios)
        if reached or done >= replicates << _DOUBLINGS:
            break
        stage = 2 * done

    for scheme in schemes if timings and processes.is_main else ():
        here = [lane for lane in lanes if lane.scheme is scheme]
        times = seconds_per_gradient([lane.estimator for lane in here], problem, scheme, key, timings)
        for lane, seconds in zip(here, times, strict=True):
            found[lane.name] = found[lane.name]._replace(seconds=seconds)
    words = key.cpu().view(torch.uint32).tolist()
    rows = {name: found[name] for name in arms}
    return Comparison(rows, reference, samples, done, len(x), (words[0], words[1]), target_se, reached)


_DOUBLINGS = 7
_MOST_TIMINGS = 10**6


class _Lane(NamedTuple):
    """An estimator under a noise scheme."""

    name: str
    estimator: AnyEstimator
    scheme: Noise
    target: str


def _lane(name: str, arm: Arm, noise: Noise, schemes: list[Noise]) -> _Lane:
    """One arm; of schemes that are equal, as methods of one object are, the first stands for all."""
    pair = isinstance(arm, tuple | list) and len(arm) == 2 and not callable(arm)
    estimator, scheme = arm if pair else (arm, noise)  # type: ignore[misc]
    if not callable(estimator) or not callable(scheme):
        got = f"{checks.line(repr(name), 60)} is {checks.shown(arm)}"
        raise BadType(f"{got}: give an estimator, as estimators.iwae(), or (estimator, noise scheme)")
    if scheme not in schemes:
        schemes.append(scheme)
    return _Lane(name, estimator, schemes[schemes.index(scheme)], target_of(estimator, scheme, name))


class _Kept(NamedTuple):
    """What is kept of one lane's replicates; of each segment of them one tensor."""

    sums: online_moments.Sums
    square: list[Tensor]
    along: list[Tensor]
    apart: list[Tensor]
    """(g_r - g_ref,r)·(c - c_ref), [r, L] each; 0 for those whose target is not the reference's."""
    bounds: list[Tensor]


class _Run:
    """The replicates of all lanes as they come. (What they leave is theirs to write in.)"""

    def __init__(
        self, lanes: list[_Lane], schemes: list[Noise], problem: Problem, key: random.Key, chunk: int, compile: bool,
        processes: Processes,
    ) -> None:  # fmt: skip
        self.lanes, self.schemes, self.problem, self.key, self.chunk = lanes, schemes, problem, key, chunk
        self.processes = processes
        of = [tuple(lane.estimator for lane in lanes if lane.scheme is scheme) for scheme in schemes]
        which = [(estimators, problem.model, problem.names, problem.train) for estimators in of]
        self.eager = [gradients(*those) for those in which]
        self.whole = [compiled_gradients(*those, key.device) if compile else None for those in which]
        self.seen = [weight_diagnostics.start(problem) for _ in schemes]
        centers = self._grads(next(self._chunks(0, 1)))
        self.kept = {
            lane.name: _Kept(online_moments.start([leaf[0] for leaf in centers[lane.name]], order=1), [], [], [], [])
            for lane in lanes
        }

    def advance(self, first: int, last: int, progress: Callable[[int], None]) -> None:
        """Adds the replicates first … last-1."""
        for begin, end in online_moments.segments(first, last):
            for name, kept in self.kept.items():
                self.kept[name] = kept._replace(sums=online_moments.renewed(kept.sums, begin))
            done = begin

            def compute(replicates: range) -> Block:
                nonlocal done
                block = self._computed(replicates)
                done += len(replicates) * self.processes.size
                if done < end:  # noqa: B023
                    progress(done)
                return block

            found = blocks.merged(blocks.blocks(begin, end, self.chunk), compute, self.processes, self._nothing)
            self._add(found)
            progress(end)

    def _chunks(self, first: int, last: int) -> Iterator[tuple[Chunk, ...]]:
        """The replicates first … last-1, of each scheme, some at a time."""
        streams = [
            chunks(gradient, self.problem, scheme, self.key, first, last, self.chunk, whole)
            for gradient, whole, scheme in zip(self.eager, self.whole, self.schemes, strict=True)
        ]
        return zip(*streams, strict=True)

    def _grads(self, found: Sequence[Chunk]) -> dict[str, online_moments.Leaves]:
        """Each lane's gradients."""
        grads: dict[str, online_moments.Leaves] = {}
        for scheme, part in zip(self.schemes, found, strict=True):
            grads |= dict(zip(self._under(scheme), part.grads, strict=True))
        return grads

    def _under(self, scheme: Noise) -> list[str]:
        return [lane.name for lane in self.lanes if lane.scheme is scheme]

    def _nothing(self) -> Block:
        """What no replicates give: a `Block` whose rows are those of each lane, and the effective sample sizes."""
        leaves, schemes, x = len(self.problem.names), len(self.schemes), self.problem.x
        width = len(self.lanes) * (3 * leaves + 1) + schemes * len(x)
        flat = torch.cat([online_moments.blank(kept.sums.center, 1) for kept in self.kept.values()])
        return Block(
            flat, torch.zeros(0, width, dtype=torch.float64), [weight_diagnostics.unseen(self.problem)] * schemes
        )

    def _computed(self, replicates: range) -> Block:
        block, rows, more = self._nothing(), [], []
        powers = dict(zip(self.kept, block.sums.chunk(len(self.lanes)), strict=True))
        for found in self._chunks(replicates.start, replicates.stop):
            grads = self._grads(found)
            bounds = {
                name: bound.double().cpu()
                for scheme, part in zip(self.schemes, found, strict=True)
                for name, bound in zip(self._under(scheme), part.bounds, strict=True)
            }
            columns = []
            for lane in self.lanes:
                columns += self._of_lane(lane, grads, powers[lane.name], bounds[lane.name], found[0].first)
            looks = [weight_diagnostics.look(part.log_w, part.first) for part in found]
            rows.append(torch.cat([*columns, *(ess for ess, _ in looks)], 1))
            more.append([some for _, some in looks])
        return Block(block.sums, torch.cat(rows), [torch.cat(column) for column in zip(*more, strict=True)])

    def _of_lane(
        self, lane: _Lane, grads: dict[str, online_moments.Leaves], flat: Tensor, bound: Tensor, first: int
    ) -> list[Tensor]:
        """Adds a lane's gradients to its sums, and gives what is kept of each: [c, L] three times, and [c, 1]."""
        against, g = self.lanes[0], grads[lane.name]
        center, center_ref = (self.kept[name].sums.center for name in (lane.name, against.name))
        square, along = online_moments.add_powers(center, online_moments.laid_out(flat, center, 1), g)
        check_finite(lane.name, self.key, first, bound.unsqueeze(1), square, along)
        apart = torch.zeros_like(square)
        if lane is not against and lane.target == against.target:
            pairs = zip(g, grads[against.name], center, center_ref, strict=True)
            apart = torch.stack([((a - b) @ (c - c_ref)).double().cpu() for a, b, c, c_ref in pairs], 1)
        return [square, along, apart, bound.unsqueeze(1)]

    def _add(self, found: Block) -> None:
        """Adds the segment of replicates that a block holds."""
        leaves, size = len(self.problem.names), len(self.problem.x)
        columns = iter(found.rows.split([leaves, leaves, leaves, 1] * len(self.lanes) + [size] * len(self.schemes), 1))
        for name, flat in zip(list(self.kept), found.sums.chunk(len(self.lanes)), strict=True):
            square, along, apart, bound = (next(columns).contiguous() for _ in range(4))
            kept = self.kept[name]
            self.kept[name] = _Kept(
                online_moments.merged(kept.sums, flat, square),
                [*kept.square, square],
                [*kept.along, along],
                [*kept.apart, apart],
                [*kept.bounds, bound.flatten()],
            )
        self.seen = [
            weight_diagnostics.add(seen, ess.contiguous(), some)
            for seen, ess, some in zip(self.seen, columns, found.more, strict=True)
        ]

    def result(self, members_of: dict[str, list[int]], sizes: Sequence[int]) -> dict[str, Compared]:
        """What all replicates so far say; the time of a gradient is yet to be taken."""
        judged = {id(s): weight_diagnostics.judge(seen) for s, seen in zip(self.schemes, self.seen, strict=True)}
        series = {lane.name: self._series(lane.name) for lane in self.lanes}
        against = self.lanes[0]
        found: dict[str, Compared] = {}
        for lane in self.lanes:
            kept, mine, weights = self.kept[lane.name], series[lane.name], judged[id(lane.scheme)]
            flags = weight_diagnostics.flags(weights, lane.estimator, self.problem.samples)
            groups = {
                name: intervals.group(
                    mine, members, sum(sizes[i] for i in members), flags.of(self.problem.names[i] for i in members)
                )
                for name, members in members_of.items()
            }
            base = found[against.name].groups if found else groups
            comparable = lane.target == against.target
            found[lane.name] = Compared(
                name=lane.name,
                estimator=called(lane.estimator, lane.name),
                noise=name_of(lane.scheme),
                target=lane.target,
                groups=groups,
                ratio={
                    name: _ratio(mine, series[against.name], members, groups[name], base[name])
                    for name, members in members_of.items()
                },
                signal={
                    name: intervals.signal_to_noise(series[against.name], mine, members, groups[name].variance.flag)
                    for name, members in members_of.items()
                    if comparable
                },
                bias={
                    name: _bias(torch.cat(kept.apart).numpy(), members, base[name].norm.value)
                    for name, members in members_of.items()
                    if comparable and lane is not against
                },
                bound=intervals.of_mean(torch.cat(kept.bounds).numpy()),
                importance=weights,
                seconds=math.nan,
            )
        return found

    def _series(self, name: str) -> Series:
        kept = self.kept[name]
        return intervals.series(kept.sums, kept.square, kept.along)


def _ratio(mine: Series, base: Series, members: list[int], group: Group, base_group: Group) -> Measured:
    """The ratio of two total variances."""
    a, b = group.variance, base_group.variance
    if mine is base:
        return Measured(1.0, 0.0, 1.0, 1.0, a.flag)
    flag = "; ".join(dict.fromkeys(filter(None, [a.flag, b.flag])))
    value = a.value / b.value if b.value > 0 else math.nan
    u, u_base = (intervals.scaled_squares(series, members) for series in (mine, base))
    return intervals.ratio(u, u_base, value, flag)


def _bias(apart: Floats, members: list[int], reference_norm: float) -> Bias:
    """Of one group, from (g_r - g_ref,r)·(c - c_ref) of each replicate and leaf [R, L]."""
    if len(apart) < 2:
        return Bias(*[math.nan] * 5)
    late = intervals.later(len(apart))
    values = apart[late, members].sum(1)
    square, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    null = spread / math.sqrt(len(values))
    norm = math.sqrt(max(square, 0.0))
    z = square / null if null > 0 else (0.0 if square == 0 else math.inf)
    z = z if len(values) >= intervals.WORTH or spread == 0 else math.nan
    se = spread * math.sqrt(1 / len(values) + 1 / late.start)
    return Bias(norm, norm / reference_norm if reference_norm > 0 else math.nan, square, se, z)
