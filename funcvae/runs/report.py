"""Reports on a finished run: dicts for JSON files, tables, and figures."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from funcvae import compilation, evaluate, figures, noise, random, tree, variance
from funcvae._support import checks, examples
from funcvae._support.checks import Count, Positive
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae._support.tables import WIDTH, Block, Table, as_text, in_parts, unbroken
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadData, BadType, BadValue
from funcvae.estimators.types import Estimator
from funcvae.evaluate import psis
from funcvae.evaluate.weights import Estimated
from funcvae.runs.folder import Run
from funcvae.train import streaming

__all__ = [
    "Report", "comparison_report", "evaluation_figures", "evaluation_report", "evaluation_table", "samples_report",
    "samples_table", "variance_report",
]  # fmt: skip

Report = dict[str, Any]
"""The numbers of a report by name, in the form of a JSON object: those of a bound are in nats per example."""

_MAX_ITEMS = 1000
_SLAB = 250  # items at a time
_WORTH_COMPILING = 500_000  # log-weights of a slab


def bound_samples(samples: int) -> list[int]:
    """The K of the bounds to report, up to `samples`."""
    return [*(k for k in (1, 10, 100, 1000, 5000) if k < samples), samples]


@checks.arguments
def evaluation_report(
    run: Run,
    *,
    samples: Count = 5000,
    n: int | None = None,
    chunk: Count = 100,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Evaluates a run on test data with all functions of `funcvae.evaluate` that its model supports.

    Args:
        run: from `funcvae.runs.load`.
        samples: K of the log-likelihood.
        n: number of test items, chosen at random; by default 1,000, or all if there are fewer.
        chunk: the most samples at a time.
        seed: of the key for the choice of items, their observation and the noise.
        progress: called with the number of finished samples, and their total over all items.

    Returns:
        The numbers of the table in nats per example; equal calls give equal bits. Numbers that the model does not
        support are None, and "why_not" has the reason. "log_weights" has those of two items, rounded to 1e-4: the item
        with the median effective sample size of the first 250, and the item with the least of all.

    Raises:
        BadValue: n is not between 2 and the number of test items.
        Missing, BadData: the data are not found, or have changed.
        NonFinite: a result is not finite; the message names the item.
    """
    test = run.dataset().test
    most = streaming.count(test)
    n = min(_MAX_ITEMS, most) if n is None else n
    if not 2 <= n <= most:
        raise BadValue(f"n is {n}: it must lie between 2 and {most}, the number of test items")
    choice_key, observe_key, weight_key, error_key = random.split(random.key(seed, device=run.device), 4)
    chosen = random.permutation(choice_key, most)[:n]
    x = run.observed(observe_key, test, chosen)

    report: Report = {"system": run.config.system.name, "estimator": run.config.estimator, "data": run.config.data}
    report |= {"title": run.title, "items": n, "of": most, "item_numbers": chosen.tolist(), "samples": samples}
    report |= {"seed": seed, "unit": "nats per example", "log_likelihood": None, "ladder": None, "shortfall": None}
    report |= {"posterior_gap": None, "ess": None, "pareto_k": None, "log_weights": None}
    try:
        report |= _log_weight_results(run, x, chosen, weight_key, samples, chunk, progress)
    except (BadType, BadData) as reason:
        report["why_not"] = str(reason)
    try:
        kl = evaluate.kl_per_dimension(*run.trained, x)
        report["kl_to_prior"] = {"total": float(kl.sum()), "per_dimension": kl.tolist()}
    except BadType:
        report["kl_to_prior"] = None
    try:
        error = evaluate.reconstruction_error(*run.trained, x, error_key, samples=100)
        report["reconstruction_error"] = _summary(error)
    except BadData:
        report["reconstruction_error"] = None
    report["squared_error"] = float(evaluate.squared_error(*run.trained, x).mean())
    units = evaluate.active_units(*run.trained, x)
    report["active_units"] = {"number": units.number, "of": run.model.latent, "threshold": units.threshold}
    report["active_units"]["variance"] = units.variance.tolist()
    return report


@checks.arguments
def evaluation_table(report: Report, *, wide: bool = False) -> str:
    """The report as text: values, and standard errors for the Monte-Carlo noise and for the choice of data.

    Lines fit 80 columns; with `wide` they are as long as it takes.
    """
    samples, units = report["samples"], report["active_units"]
    rows: list[Sequence[str]] = []

    def row(name: str, found: dict[str, float] | None) -> None:
        if found is not None:
            rows.append((unbroken(name), *(f"{found[what]:.4f}" for what in ("mean", "se", "data_se")), ""))

    def value(name: str, number: str, note: str = "") -> None:
        rows.append((unbroken(name), number, "", "", note))

    row(f"log p(x) >= L_{samples}", report["log_likelihood"])
    for k, found in (report["ladder"] or {}).items():
        if int(k) != samples:
            row(f"L_{k}" + (" (ELBO)" if k == "1" else ""), found)
    if report["shortfall"] is not None:
        note = "estimated as ½ se² of each item; more if k̂ is high"
        value(f"L_{samples} falls short by", f"{report['shortfall']:.4f}", note)
    row("KL(q(z|x) ‖ p(z|x)) >=", report["posterior_gap"])
    row("-E_q log p(x|z)", report["reconstruction_error"])
    if report["kl_to_prior"]:
        value("KL(q(z|x) ‖ p(z))", f"{report['kl_to_prior']['total']:.4f}")
    value("squared error at the mean", f"{report['squared_error']:.4f}", "not in nats")
    value("active units", str(units["number"]), f"of {units['of']}")
    if report["ess"]:
        value("effective sample size", f"{report['ess']['median']:.1f}", f"of {samples}, median")
        value("Pareto k̂", f"{report['pareto_k']['median']:.2f}", "median")
    title = report.get("title", report["system"])  # which reports of earlier versions lack
    head = f"{title}, {report['items']:,} of {report['of']:,} test items, seed {report['seed']}"
    titles = ("", "value", unbroken("± noise"), unbroken("± data"), "")
    blocks: list[Block] = [f"{head}; {report['unit']}", Table(titles, {"": rows}, "<>>><")]
    blocks += [f"warning: {report['warning']}"] if report.get("warning") else []
    blocks += [f"no log-likelihood: {report['why_not']}"] if report.get("why_not") else []
    return as_text(blocks, None if wide else WIDTH)


def evaluation_figures(report: Report) -> dict[str, Figure]:
    """The figures of an evaluation report, by file name."""
    made, name = {}, report["system"]
    rungs = {int(k): found for k, found in (report["ladder"] or {}).items() if math.isfinite(found["mean"])}
    if len(rungs) > 1:
        means, errors = ([found[what] for found in rungs.values()] for what in ("mean", "se"))
        title = f"{name}: the bound on log p(x) against K\n({report['items']:,} test items)"
        made["bound_ladder"] = figures.bound_ladder(list(rungs), means, errors, title=title)
    if report["kl_to_prior"]:
        active = [v > report["active_units"]["threshold"] for v in report["active_units"]["variance"]]
        title = f"{name}: KL divergence of each latent dimension"
        made["latent_use"] = figures.latent_use(
            report["kl_to_prior"]["per_dimension"], active, threshold=report["active_units"]["threshold"], title=title
        )
    if shown := report.get("log_weights"):
        log_w, ess, k_hat = ([item[what] for item in shown] for what in ("log_w", "ess", "pareto_k"))
        names = [f"test item {item['item']}: {item['which']}" for item in shown]
        made["log_weights"] = figures.log_weights(
            np.transpose(log_w), ess, k_hat, names=names, title=f"{name}: importance weights of single items"
        )
    return made


ESTIMATORS = {False: ("elbo_mc", "stl", "iwae", "dreg"), True: ("score", "arm", "disarm")}
"""Estimators to compare with the run's own by default, for a continuous posterior and for a discrete one."""


@checks.arguments
def comparison_report(
    run: Run,
    *,
    names: Sequence[str] | None = None,
    schemes: Sequence[str] = ("iid",),
    samples: Count | None = None,
    replicates: Annotated[int, checks.at_least(2)] = 1000,
    chunk: Count | None = None,
    batch: int | None = None,
    seed: int = 0,
    target_se: Positive | None = None,
    processes: Processes = SINGLE,
    progress: Progress = silent,
) -> tuple[variance.Comparison, Report]:
    """Compares estimators at the parameters of a run, on a batch of its training data, in evaluation mode.

    Args:
        run: from `funcvae.runs.load` or `funcvae.runs.initial_run`.
        names: of estimators, as "renyi:0.5"; the first is the reference. By default the run's own and `ESTIMATORS`.
        schemes: names of noise schemes; each estimator is measured under all schemes that it allows.
        samples: K; by default the run's own.
        replicates: draws of the noise.
        chunk: replicates at a time; by default chosen by the size of the model.
        batch: number of training data, chosen at random; by default the run's batch size.
        seed: of the key for the choice of data, their observation and the noise.
        target_se: see `funcvae.variance.compare`.
        processes: from `distributed.process_group()`. They share the replicates, and all return the whole result.
        progress: called with the number of finished replicates, and their total.

    Returns:
        The comparison, and a report for a JSON file. Equal calls give equal bits, except for fields with "seconds" in
        their names.

    Raises:
        BadValue: batch is not between 1 and the number of training data, a name is unknown, or no estimator is left.
        Missing, BadData: the data are not found, or have changed.
        NonFinite, ProcessLost, ReportedElsewhere: see `funcvae.variance.compare`.
    """
    samples = run.config.samples if samples is None else samples
    if processes.size > 1:
        processes.require_equal(
            **run.shared_facts(), estimators=names, noise=schemes, samples=samples, replicates=replicates, chunk=chunk,
            batch=batch, seed=seed, target_se=target_se,
        )  # fmt: skip
    x, chosen, noise_key = _training_batch(run, batch, seed)
    # Some systems have no density, which some defaults need.
    arms, left_out = _arms(run, x, names, schemes, 2 if names is None else None)
    found = variance.compare(
        arms, *run.trained, x, noise_key, samples=samples, replicates=replicates, chunk=chunk, target_se=target_se,
        processes=processes, progress=progress,
    )  # fmt: skip
    report = _variance_head(run, seed, chosen) | {"left_out": left_out, **found.to_dict()}
    return found, report


@checks.arguments
def samples_report(
    run: Run,
    samples: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    schemes: Sequence[str] = ("iid",),
    replicates: Annotated[int, checks.at_least(2)] = 1000,
    chunk: Count | None = None,
    batch: int | None = None,
    seed: int = 0,
    processes: Processes = SINGLE,
    progress: Progress = silent,
) -> tuple[list[variance.Comparison], Report]:
    """Compares estimators as `comparison_report` does, at several numbers of samples, on the same batch.

    An estimator that does not work with a number of samples, such as `vimco` with K = 1, is left out there.

    Args:
        samples: numbers of samples K, all different; results are in ascending order.

    Returns:
        The comparisons, and a report for a JSON file with all of them; "left_out" has the K for each reason.

    Raises:
        BadValue: samples is empty or has a number twice, or no estimator is left at a K; see `comparison_report`.
    """
    ks = sorted(checks.integer("a number in samples", k) for k in samples)
    if not ks or ks[0] < 1 or len(set(ks)) < len(ks):
        raise BadValue(f"samples is {checks.describe(list(samples))}: give at least one number, at least 1, none twice")
    if processes.size > 1:
        processes.require_equal(
            **run.shared_facts(), estimators=names, noise=schemes, samples=ks, replicates=replicates, chunk=chunk,
            batch=batch, seed=seed,
        )  # fmt: skip
    x, chosen, noise_key = _training_batch(run, batch, seed)
    found: list[variance.Comparison] = []
    left_out: dict[str, list[int]] = {}
    for k in ks:

        def report_progress(done: int, _: int, before: int = len(found) * replicates) -> None:
            progress(before + done, len(ks) * replicates)

        arms, reasons = _arms(run, x, names, schemes, k)
        for reason in dict.fromkeys(reasons):
            left_out.setdefault(reason, []).append(k)
        comparison = variance.compare(
            arms, *run.trained, x, noise_key, samples=k, replicates=replicates, chunk=chunk, processes=processes,
            progress=report_progress,
        )  # fmt: skip
        found.append(comparison)
    report = _variance_head(run, seed, chosen) | {"samples": ks, "left_out": left_out}
    return found, report | {"comparisons": [each.to_dict() for each in found]}


@checks.arguments
def samples_table(found: Sequence[variance.Comparison], *, wide: bool = False) -> str:
    """Variance and signal-to-noise ratio against K as text, for comparisons in ascending order of K.

    "±" has the larger half of the 95% interval relative to the value; a star means that the interval is unreliable.
    A table that does not fit 80 columns is split into several; with `wide` it is not.
    """
    lines = [f"batch of {found[0].batch}, {found[0].replicates:,} replicates; ±: half of the 95% interval"]
    lines += ["*: unreliable interval"] * any(each.flags() for each in found)
    quantities = {"variance": "total variance of the gradient [nats²]", "snr": "signal-to-noise ratio"}
    for network in found[0].networks:
        for field, quantity in quantities.items():
            lines += ["", f"{network}: {quantity}", _table_over_samples(found, network, field, wide)]
    return "\n".join(lines)


def _table_over_samples(found: Sequence[variance.Comparison], network: str, field: str, wide: bool) -> str:
    """A row for each arm and a column for each K."""
    arms = dict.fromkeys(arm for each in found for arm in each.rows)
    rows = [
        [arm, *(_measured(getattr(each.rows[arm].groups[network], field)) if arm in each.rows else "– "
                for each in found)] for arm in arms
    ]  # fmt: skip
    return in_parts(rows, ["estimator", *(f"K = {each.samples:,} " for each in found)], None if wide else WIDTH)


def _measured(of: variance.Measured) -> str:
    half = max(of.high - of.value, of.value - of.low)
    error = f" ±{half / of.value:.0%}" if of.value > 0 and math.isfinite(half) else ""
    if of.value == 0 < of.high:
        error = f" (< {of.high:.2g})"
    return f"{of.value:.3g}{error}{' ' if of.trusted else '*'}"


def _training_batch(run: Run, batch: int | None, seed: int) -> tuple[Data, Tensor, random.Key]:
    """A random batch of training data as the model sees them, their numbers, and the key of the noise."""
    train = run.dataset().train
    most = streaming.count(train)
    batch = min(run.config.batch, most) if batch is None else batch
    if not 1 <= batch <= most:
        raise BadValue(f"batch is {batch}: it must lie between 1 and {most:,}, the number of training data")
    choice_key, observe_key, noise_key = random.split(random.key(seed, device=run.device), 3)
    chosen = random.permutation(choice_key, most)[:batch]
    return run.observed(observe_key, train, chosen), chosen, noise_key


def _variance_head(run: Run, seed: int, chosen: Tensor) -> Report:
    """The fields that all reports of variances begin with."""
    report: Report = {"system": run.config.system.name, "trained_with": run.config.estimator, "data": run.config.data}
    report |= {"title": run.title, "seed": seed, "item_numbers": chosen.tolist()}
    return report | {"unit": "gradients of nats per example, summed over squared coordinates"}


@checks.arguments
def variance_report(run: Run, replicates: int) -> Report:
    """The gradient variance of a run's estimator under its noise, as a sweep records it for each cell.

    The run's seed decides the key of the `replicates` draws of the noise, and the choice of the batch.

    Returns:
        For each network, as in {"encoder": {...}}: the total "variance" with its 95% interval from "low" to "high",
        whether the interval is "trusted", and the signal-to-noise ratio "snr".
    """
    config = run.config
    found, _ = comparison_report(
        run, names=[config.estimator], schemes=[config.noise], replicates=replicates, seed=config.seed
    )
    (row,) = found.rows.values()
    report: Report = {}
    for network in found.networks:
        total, snr = row.groups[network].variance, row.groups[network].snr
        ends = {"variance": total.value, "low": total.low, "high": total.high}
        report[network] = ends | {"trusted": total.trusted, "snr": snr.value}
    return report


def _arms(
    run: Run, x: Data, names: Sequence[str] | None, schemes: Sequence[str], trial: int | None
) -> tuple[dict[str, tuple[Estimator, noise.Noise]], list[str]]:
    """The estimators under all schemes that they allow, and the reasons for leaving out others.

    With `trial`, those that do not work with this number of samples are left out as well.
    """
    first = examples.head(x, 1)
    q, _ = run.model.encode(run.params, run.state, first)
    defaults = run.config.estimator, *ESTIMATORS[hasattr(q, "values")]
    names_once = dict.fromkeys(defaults if names is None else names)
    found: dict[str, tuple[Estimator, noise.Noise]] = {}
    left_out: list[str] = []
    for scheme in map(noise.parse, dict.fromkeys(schemes)):
        for estimator in map(run.estimator, names_once):
            try:
                estimator.claims_under(scheme)
                if trial is not None:
                    eps = scheme(random.key(0, device=run.device), trial, tuple(q.loc.shape), dtype=q.loc.dtype)
                    estimator(*run.trained, first, eps, train=False)
            except (BadValue, BadType) as error:
                left_out.append(str(error))
                continue
            name = estimator.name if len(set(schemes)) == 1 else f"{estimator.name}, {noise.name_of(scheme)}"
            found[name] = estimator, scheme
    if not found:
        raise BadValue(left_out[0] if left_out else "estimators and noise each need at least one name")
    return found, left_out


def _log_weight_results(
    run: Run, x: Data, items: Tensor, key: random.Key, samples: int, chunk: int, progress: Progress
) -> Report:
    """The results that follow from the log-weights. Each slab of the data has its own key."""
    found: list[Any] = []
    shown: dict[str, Report] = {}
    n = len(items)
    for i, (slab, numbers) in enumerate(zip(examples.split(x, _SLAB), items.split(_SLAB), strict=True)):

        def report_progress(k: int, _: int, size: int = len(numbers), before: int = i * _SLAB) -> None:
            progress(before * samples + k * size, samples * n)

        compiled = compilation.available() and samples * len(numbers) >= _WORTH_COMPILING
        log_w = evaluate.log_weights(
            *run.trained, slab, random.fold_in(key, i), samples=samples, chunk=chunk, compile=compiled,
            progress=report_progress, items=numbers,
        )  # fmt: skip
        log_p, ess, k_hat, _ = evaluate.likelihood(log_w)
        ladder = evaluate.ladder(log_w, bound_samples(samples))
        found.append((log_p, ess, k_hat, ladder, evaluate.posterior_gap(log_w)))
        order = ess.argsort()
        for which, j in {"median ESS": int(order[(len(ess) - 1) // 2]), "least ESS": int(order[0])}.items():
            # The first items are as typical as all, because their order is random: only few log-weights are kept.
            if which not in shown or (which == "least ESS" and float(ess[j]) < shown[which]["ess"]):
                weights = [round(w, 4) for w in log_w[:, j].tolist()]
                shown[which] = {"item": int(numbers[j]), "ess": float(ess[j]), "pareto_k": float(k_hat[j])}
                shown[which] |= {"which": which, "log_w": weights}
    log_p, ess, k_hat, ladder, gap = tree.map(lambda *parts: torch.cat(parts), *found)
    whole = evaluate.Likelihood(log_p, ess, k_hat, samples)
    above, limit = int(whole.untrusted.sum()), psis.threshold(samples)
    return {
        "log_likelihood": _summary(log_p) | {"per_item": log_p.value.tolist(), "per_item_se": log_p.se.tolist()},
        "shortfall": float(whole.shortfall.mean()),
        "ladder": {str(k): _summary(bound) for k, bound in ladder.items()},
        "posterior_gap": _summary(gap),
        "ess": {"median": float(ess.median()), "least": float(ess.min()), "per_item": ess.tolist()},
        "pareto_k": {
            "median": float(k_hat.median()), "threshold": limit, "above": above, "per_item": k_hat.tolist(),
        },
        "warning": evaluate.untrusted_message(whole, items) if above else None,
        "log_weights": list(shown.values()),
    }  # fmt: skip


def _summary(found: Estimated) -> dict[str, float]:
    """The mean, and its standard errors for the Monte-Carlo noise and for the choice of data."""
    return {"mean": found.mean, "se": found.mean_se, "data_se": found.sampling_se}
