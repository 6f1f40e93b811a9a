"""Reports on a finished run: a dict for a JSON file, a table, and figures."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from funcvae import compilation, estimators, evaluate, figures, noise, random, variance
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadData, BadType, BadValue
from funcvae.estimators.types import Estimator
from funcvae.evaluate import psis
from funcvae.evaluate.importance_sampling import Progress
from funcvae.evaluate.weights import Estimated
from funcvae.runs.folder import Run

__all__ = [
    "Report", "comparison_report", "evaluation_figures", "evaluation_report", "evaluation_table", "variance_report",
]  # fmt: skip

Report = dict[str, Any]

_MAX_ITEMS = 1000
_SLAB = 250  # data at a time
_WORTH_COMPILING = 500_000  # log-weights of a slab


def bound_samples(samples: int) -> list[int]:
    """The K of the bounds to report, up to `samples`."""
    return [*(k for k in (1, 10, 100, 1000, 5000) if k < samples), samples]


def evaluation_report(
    run: Run,
    *,
    samples: int = 5000,
    n: int | None = None,
    chunk: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Evaluates a run on test data: everything in `funcvae.evaluate` that its model allows, in nats per example.

    Args:
        run: from `runs.load`.
        samples: K of the log-likelihood.
        n: how many test items, drawn by the seed; 1,000, or all where there are fewer, unless given.
        chunk: samples at a time.
        seed: of the key for choice, observation and noise.
        progress: called with the number of data-samples done, and of all.

    Returns:
        The numbers of the table, the same bits every time. Those that the model does not have are None, and "why_not"
        is the reason.
    """
    test = run.dataset().test
    n = min(_MAX_ITEMS, len(test)) if n is None else n
    if not 2 <= n <= len(test):
        raise BadValue(f"--n is {n}: the test set has {len(test)} items, so it must lie between 2 and {len(test)}")
    for name, value in {"samples": samples, "chunk": chunk}.items():
        if value < 1:
            raise BadValue(f"--{name} is {value}: it must be at least 1")
    choice_key, observe_key, weight_key, error_key = random.split(random.key(seed, device=run.device), 4)
    chosen = random.permutation(choice_key, len(test))[:n]
    x = run.recipe.observe(observe_key, test.to(run.device)[chosen])

    report: Report = {"system": run.config.system, "estimator": run.config.estimator, "data": run.config.data}
    report |= {"items": n, "of": len(test), "item_numbers": chosen.tolist(), "samples": samples, "seed": seed}
    report |= {"unit": "nats per example", "log_likelihood": None, "ladder": None, "shortfall": None}
    report |= {"posterior_gap": None, "ess": None, "pareto_k": None}
    try:
        report |= _log_weight_results(run, x, chosen, weight_key, samples, chunk, progress)
    except (BadType, BadData) as error:
        report["why_not"] = str(error)
    try:
        kl = evaluate.kl_per_dimension(*run.trained, x)
        report["kl_to_prior"] = {"total": float(kl.sum()), "per_dimension": kl.tolist()}
    except BadType:
        report["kl_to_prior"] = None
    try:
        report["reconstruction_error"] = _summary(
            evaluate.reconstruction_error(*run.trained, x, error_key, samples=100)
        )
    except BadData:
        report["reconstruction_error"] = None
    report["squared_error"] = float(evaluate.squared_error(*run.trained, x).mean())
    units = evaluate.active_units(*run.trained, x)
    report["active_units"] = {
        "number": units.number,
        "of": run.model.latent,
        "threshold": units.threshold,
        "variance": units.variance.tolist(),
    }
    return report


def evaluation_table(report: Report) -> str:
    """The report as lines of text: values, and standard errors for the Monte-Carlo noise and for the choice of data."""
    head = f"{report['system']}, {report['items']:,} of {report['of']:,} test items, seed {report['seed']}"
    lines = [f"{head}; {report['unit']}", f"{'':26}{'value':>11}  {'± noise':>9}  {'± data':>9}"]

    def row(name: str, found: dict[str, float] | None) -> None:
        if found is not None:
            lines.append(f"{name:26}{found['mean']:11.4f}  {found['se']:9.4f}  {found['data_se']:9.4f}")

    row(f"log p(x) >= L_{report['samples']}", report["log_likelihood"])
    for k, found in (report["ladder"] or {}).items():
        if int(k) != report["samples"]:
            row(f"L_{k}" + (" (ELBO)" if k == "1" else ""), found)
    if report["shortfall"] is not None:
        short = f"L_{report['samples']} falls short by"
        lines.append(f"{short:26}{report['shortfall']:11.4f}   or so: ½ se² of each item; more where k̂ is high")
    row("KL(q(z|x) ‖ p(z|x)) >=", report["posterior_gap"])
    row("-E_q log p(x|z)", report["reconstruction_error"])
    if report["kl_to_prior"]:
        lines.append(f"{'KL(q(z|x) ‖ p(z))':26}{report['kl_to_prior']['total']:11.4f}")
    lines.append(f"{'squared error at the mean':26}{report['squared_error']:11.4f}   (no nats)")
    units = report["active_units"]
    lines.append(f"{'active units':26}{units['number']:11}   of {units['of']}")
    if report["ess"]:
        lines.append(f"{'effective sample size':26}{report['ess']['median']:11.1f}   of {report['samples']}, median")
        lines.append(f"{'Pareto k̂':26}{report['pareto_k']['median']:11.2f}   median")
    lines += [f"warning: {report['warning']}"] if report.get("warning") else []
    lines += [f"no log-likelihood: {report['why_not']}"] if report.get("why_not") else []
    return "\n".join(lines)


def evaluation_figures(report: Report) -> dict[str, Figure]:
    """The figures of a report, by file name."""
    made, name = {}, report["system"]
    rungs = {int(k): found for k, found in (report["ladder"] or {}).items() if math.isfinite(found["mean"])}
    if len(rungs) > 1:
        means, errors = ([found[what] for found in rungs.values()] for what in ("mean", "se"))
        title = f"{name}: the bound on log p(x) against K\n({report['items']:,} test items)"
        made["bound_ladder"] = figures.bound_ladder(list(rungs), means, errors, title=title)
    if report["kl_to_prior"]:
        active = [v > report["active_units"]["threshold"] for v in report["active_units"]["variance"]]
        title = f"{name}: nats that each latent dimension carries"
        made["latent_use"] = figures.latent_use(report["kl_to_prior"]["per_dimension"], active, title=title)
    return made


ESTIMATORS = ("elbo_mc", "stl", "iwae", "dreg")
"""Compared with the run's own unless others are named."""


def comparison_report(
    run: Run,
    *,
    names: Sequence[str] | None = None,
    schemes: Sequence[str] = ("iid",),
    samples: int | None = None,
    replicates: int = 1000,
    chunk: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    target_se: float | None = None,
    processes: Processes = SINGLE,
    progress: Progress = lambda done, total: None,
) -> tuple[variance.Comparison, Report]:
    """Compares estimators at a run's parameters, on a batch of its training data, in evaluation mode.

    Args:
        run: from `runs.load` or `runs.initial_run`.
        names: of estimators, as "renyi:0.5"; the first is the reference. The run's own and `ESTIMATORS` unless given.
        schemes: of noise; each estimator is taken under all that it allows.
        samples: K; the run's own unless given.
        replicates: of the noise.
        chunk: replicates at a time; by the model's size unless given.
        batch: how many data, drawn by the seed; the run's own number unless given.
        seed: of the key for choice, observation and noise.
        target_se: see `variance.compare`.
        processes: who takes the replicates, from `distributed.process_group()`; all have the result.
        progress: called with the number of replicates done, and of all.

    Returns:
        The comparison, and a report for a JSON file, the same bits every time but for fields with "seconds" in their
        names.
    """
    samples = run.config.samples if samples is None else samples
    if replicates < 2:
        raise BadValue(f"--replicates is {replicates}: a variance needs at least 2")
    for name, value in {"samples": samples, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise BadValue(f"--{name} is {value}: it must be at least 1")
    if target_se is not None and not target_se > 0:
        raise BadValue(f"--target-se is {target_se}: a relative standard error is positive, as 0.01")
    if processes.size > 1:
        processes.require_equal(
            **run.shared_facts(), estimators=names, noise=schemes, samples=samples, replicates=replicates, chunk=chunk,
            batch=batch, seed=seed, target_se=target_se,
        )  # fmt: skip
    train = run.dataset().train
    batch = min(run.config.batch, len(train)) if batch is None else batch
    if not 1 <= batch <= len(train):
        raise BadValue(f"--batch is {batch}: there are {len(train):,} training data, so it must lie between 1 and that")
    choice_key, observe_key, noise_key = random.split(random.key(seed, device=run.device), 3)
    chosen = random.permutation(choice_key, len(train))[:batch]
    x = run.recipe.observe(observe_key, train.to(run.device)[chosen])
    arms, left_out = _arms(run, x, names, schemes)
    found = variance.compare(
        arms, *run.trained, x, noise_key, samples=samples, replicates=replicates, chunk=chunk, target_se=target_se,
        processes=processes, progress=progress,
    )  # fmt: skip
    report: Report = {"system": run.config.system, "trained_with": run.config.estimator, "data": run.config.data}
    report |= {"seed": seed, "item_numbers": chosen.tolist(), "left_out": left_out}
    report |= {"unit": "gradients of nats per example, summed over squared coordinates", **found.as_dict()}
    return found, report


def variance_report(run: Run, replicates: int) -> Report:
    """The gradient variance of a finished run's estimator under its noise, as a sweep records it for each cell.

    Args:
        run: from `runs.load`.
        replicates: of the noise. Its key, and the choice of the batch, come from the run's seed.

    Returns:
        For each network, as {"encoder": {...}}: the total "variance" with its 95% interval, "low" to "high", whether
        that is "trusted", and the signal-to-noise ratio "snr".
    """
    config = run.config
    found, _ = comparison_report(
        run, names=[config.estimator], schemes=[config.noise], replicates=replicates, seed=config.seed
    )
    (row,) = found.rows.values()
    report: Report = {}
    for network in found.networks:
        variance, snr = row.groups[network].variance, row.groups[network].snr
        report[network] = {"variance": variance.value, "low": variance.low, "high": variance.high}
        report[network] |= {"trusted": variance.trusted, "snr": snr.value}
    return report


def _arms(
    run: Run, x: Tensor, names: Sequence[str] | None, schemes: Sequence[str]
) -> tuple[dict[str, tuple[Estimator, noise.Noise]], list[str]]:
    """The estimators under every scheme that they allow, and the reasons why others are left out."""
    names_once = dict.fromkeys(names if names is not None else (run.config.estimator, *ESTIMATORS))
    found: dict[str, tuple[Estimator, noise.Noise]] = {}
    left_out: list[str] = []
    for scheme in map(noise.parse, dict.fromkeys(schemes)):
        for estimator in map(estimators.parse, names_once):
            try:
                estimator.claims_under(scheme)
                if names is None:  # a system without a density has use for its own estimator alone
                    estimator(*run.trained, x[:1], x.new_zeros(2, 1, run.model.latent), train=False)
            except (BadValue, BadType) as error:
                left_out.append(str(error))
                continue
            name = estimator.name if len(set(schemes)) == 1 else f"{estimator.name}, {noise.name_of(scheme)}"
            found[name] = estimator, scheme
    if not found:
        raise BadValue(left_out[0] if left_out else "--estimators and --noise each need a name or more")
    return found, left_out


def _log_weight_results(
    run: Run,
    x: Tensor,
    items: Tensor,
    key: random.Key,
    samples: int,
    chunk: int,
    progress: Progress,
) -> Report:
    """Everything that follows from the log-weights; each slab of the data has its own key."""
    likelihoods, ladders, gaps, done = [], [], [], 0
    for i, slab in enumerate(x.split(_SLAB)):

        def report_progress(k: int, _: int, size: int = len(slab), before: int = done) -> None:
            progress(before + k * size, samples * len(x))

        compiled = compilation.available() and samples * len(slab) >= _WORTH_COMPILING
        log_w = evaluate.log_weights(
            *run.trained, slab, random.fold_in(key, i), samples=samples, chunk=chunk, compile=compiled,
            progress=report_progress, items=items[i * _SLAB :][: len(slab)],
        )  # fmt: skip
        done += samples * len(slab)
        likelihoods.append(evaluate.likelihood(log_w))
        ladders.append(evaluate.ladder(log_w, bound_samples(samples)))
        gaps.append(evaluate.posterior_gap(log_w))
    log_p = _concatenated([found.log_p for found in likelihoods])
    ess, k_hat = (torch.cat([getattr(found, name) for found in likelihoods]) for name in ("ess", "k_hat"))
    whole = evaluate.Likelihood(log_p, ess, k_hat, samples)
    above = int(whole.untrusted.sum())
    limit = psis.threshold(samples)
    return {
        "log_likelihood": _summary(log_p) | {"per_item": log_p.value.tolist(), "per_item_se": log_p.se.tolist()},
        "shortfall": float(whole.shortfall.mean()),
        "ladder": {str(k): _summary(_concatenated([ladder[k] for ladder in ladders])) for k in bound_samples(samples)},
        "posterior_gap": _summary(_concatenated(gaps)),
        "ess": {"median": float(ess.median()), "least": float(ess.min()), "per_item": ess.tolist()},
        "pareto_k": {
            "median": float(k_hat.median()), "threshold": limit, "above": above, "per_item": k_hat.tolist(),
        },
        "warning": evaluate.untrusted_message(whole, items) if above else None,
    }  # fmt: skip


def _concatenated(parts: Sequence[Estimated]) -> Estimated:
    return Estimated(torch.cat([part.value for part in parts]), torch.cat([part.se for part in parts]))


def _summary(found: Estimated) -> dict[str, float]:
    """The mean, and its standard errors for the Monte-Carlo noise and for the choice of data."""
    return {"mean": found.mean, "se": found.mean_se, "data_se": found.sampling_se}
