"""What is found out about a finished run, as a dict that goes into a JSON file, a table, and figures."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from funcvae import evaluate, pareto, plots, random
from funcvae.errors import BadData, BadType, BadValue
from funcvae.evaluate import Estimated
from funcvae.runs import Run

Report = dict[str, Any]

RUNGS = (1, 10, 100, 1000, 5000)
MOST_ITEMS = 1000
_SLAB = 250  # data at a time


def rungs(samples: int) -> list[int]:
    """The K of the bounds to report, up to `samples`."""
    return [*(k for k in RUNGS if k < samples), samples]


def evaluation(
    run: Run,
    *,
    samples: int = 5000,
    n: int | None = None,
    chunk: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
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
        What the table shows, the same bits every time. What the model has no meaning for is None, and "why_not" says
        why.
    """
    test = run.dataset().test
    n = min(MOST_ITEMS, len(test)) if n is None else n
    if not 2 <= n <= len(test):
        raise BadValue(f"--n is {n}: the test set has {len(test)} items, so it must lie between 2 and {len(test)}")
    for name, value in {"samples": samples, "chunk": chunk}.items():
        if value < 1:
            raise BadValue(f"--{name} is {value}: it must be at least 1")
    choice_key, observe_key, weight_key, error_key = random.split(random.key(seed, device=run.device), 4)
    chosen = random.permutation(choice_key, len(test))[:n]
    x = run.recipe.observe(observe_key, test.to(run.device)[chosen])

    report: Report = {"system": run.config.system, "estimator": run.config.estimator, "data": run.config.data}
    report |= {
        "items": n,
        "of": len(test),
        "item_numbers": chosen.tolist(),
        "samples": samples,
        "seed": seed,
        "unit": "nats per example",
    }
    report |= {"log_likelihood": None, "ladder": None, "posterior_gap": None, "ess": None, "pareto_k": None}
    try:
        report |= _by_importance(run, x, chosen, weight_key, samples, chunk, progress)
    except (BadType, BadData) as error:
        report["why_not"] = str(error)
    try:
        kl = evaluate.kl_per_dimension(*run.trained, x)
        report["kl_to_prior"] = {"total": float(kl.sum()), "per_dimension": kl.tolist()}
    except BadType:
        report["kl_to_prior"] = None
    try:
        report["reconstruction_error"] = _summary(evaluate.reconstruction_error(*run.trained, x, error_key))
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


def as_json(report: Report) -> bytes:
    """The report as a JSON file's bytes."""
    return (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def table(report: Report) -> str:
    """The report as lines of text: values, and standard errors for the Monte-Carlo noise and for the choice of data."""
    head = f"{report['system']}, {report['items']:,} of {report['of']:,} test items, seed {report['seed']}"
    lines = [f"{head}; {report['unit']}", f"{'':26}{'value':>10}  {'± noise':>9}  {'± data':>9}"]

    def row(name: str, found: dict[str, Any] | None) -> None:
        if found is not None:
            errors = ["" if found[e] is None else f"{found[e]:.4f}" for e in ("se", "data_se")]
            lines.append(f"{name:26}{found['mean']:10.3f}  {errors[0]:>9}  {errors[1]:>9}".rstrip())

    row(f"log p(x) >= L_{report['samples']}", report["log_likelihood"])
    for k, found in (report["ladder"] or {}).items():
        if int(k) != report["samples"]:
            row(f"L_{k}" + (" (ELBO)" if k == "1" else ""), found)
    row("KL(q(z|x) ‖ p(z|x))", report["posterior_gap"])
    row("-E_q log p(x|z)", report["reconstruction_error"])
    if report["kl_to_prior"]:
        lines.append(f"{'KL(q(z|x) ‖ p(z))':26}{report['kl_to_prior']['total']:10.3f}")
    lines.append(f"{'squared error at the mean':26}{report['squared_error']:10.3f}   (no nats)")
    units = report["active_units"]
    lines.append(f"{'active units':26}{units['number']:10}   of {units['of']}")
    if report["ess"]:
        lines.append(f"{'effective sample size':26}{report['ess']['median']:10.1f}   of {report['samples']}, median")
        k_hat = report["pareto_k"]["median"]
        lines += [] if k_hat is None else [f"{'Pareto k̂':26}{k_hat:11.2f}   median"]
    lines += [f"warning: {report['warning']}"] if report.get("warning") else []
    lines += [f"no log-likelihood: {report['why_not']}"] if report.get("why_not") else []
    return "\n".join(lines)


def figures(report: Report) -> dict[str, Figure]:
    """The figures of a report, by file name."""
    made, name = {}, report["system"]
    if report["ladder"] and len(report["ladder"]) > 1:
        found = list(report["ladder"].values())
        ks, means, errors = map(int, report["ladder"]), [f["mean"] for f in found], [f["se"] for f in found]
        errors = [math.nan if e is None else e for e in errors]
        title = f"{name}: the bound on log p(x) grows with K ({report['items']:,} test items)"
        made["bound_ladder"] = plots.bound_ladder(list(ks), means, errors, title=title)
    if report["kl_to_prior"]:
        active = [v > report["active_units"]["threshold"] for v in report["active_units"]["variance"]]
        title = f"{name}: what each latent dimension is used for"
        made["latent_use"] = plots.latent_use(report["kl_to_prior"]["per_dimension"], active, title=title)
    return made


def _by_importance(
    run: Run,
    x: Tensor,
    items: Tensor,
    key: random.Key,
    samples: int,
    chunk: int,
    progress: Callable[[int, int], None],
) -> Report:
    """All that follows from the log-weights, slab by slab of the data: each has a key of its own."""
    likelihoods, ladders, gaps, done = [], [], [], 0
    for i, slab in enumerate(x.split(_SLAB)):

        def report_progress(k: int, size: int = len(slab), before: int = done) -> None:
            progress(before + k * size, samples * len(x))

        log_w = evaluate.log_weights(
            *run.trained, slab, random.fold_in(key, i), samples=samples, chunk=chunk, progress=report_progress
        )
        done += samples * len(slab)
        likelihoods.append(evaluate.likelihood(log_w))
        ladders.append(evaluate.ladder(log_w, rungs(samples)))
        gaps.append(evaluate.posterior_gap(log_w))
    log_p = _joined([found.log_p for found in likelihoods])
    ess, k_hat = (torch.cat([getattr(found, name) for found in likelihoods]) for name in ("ess", "k_hat"))
    whole = evaluate.Likelihood(log_p, ess, k_hat, samples)
    above = int(whole.untrusted.sum())
    limit = pareto.threshold(samples)
    return {
        "log_likelihood": _summary(log_p) | {"per_item": log_p.value.tolist(), "per_item_se": _finite(log_p.se)},
        "ladder": {str(k): _summary(_joined([ladder[k] for ladder in ladders])) for k in rungs(samples)},
        "posterior_gap": _summary(_joined(gaps)),
        "ess": {"median": float(ess.median()), "least": float(ess.min()), "per_item": ess.tolist()},
        "pareto_k": {
            "median": _finite(k_hat.median()), "threshold": _finite(torch.tensor(limit)), "above": above,
            "per_item": _finite(k_hat),
        },
        "warning": evaluate.distrust(whole, items) if above else None,
    }  # fmt: skip


def _joined(parts: Sequence[Estimated]) -> Estimated:
    return Estimated(torch.cat([part.value for part in parts]), torch.cat([part.se for part in parts]))


def _summary(found: Estimated) -> dict[str, float | None]:
    """Mean and standard errors; None for what is not known."""
    return {"mean": found.mean, "se": _finite(torch.tensor(found.mean_se)), "data_se": found.sampling_se}


def _finite(values: Tensor) -> Any:
    """The numbers, with None for those that are not finite: JSON has no infinity."""
    numbers = values.double().tolist()
    if isinstance(numbers, list):
        return [v if math.isfinite(v) else None for v in numbers]
    return numbers if math.isfinite(numbers) else None
