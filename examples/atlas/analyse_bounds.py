"""How much of the differences in the final bound does the variance explain? Reads what `bounds.py` wrote.

    python examples/atlas/analyse_bounds.py --out atlas

For each system it compares runs of one seed, at equal steps and at equal seconds, and prints:

- each estimator's test bound minus the mean of its seed, with a 95% interval over the seeds;
- the slope of the test bound on log10 of the variance along training, within seeds, in nats for a tenfold variance;
- R², the share of the differences within seeds that this line explains.

Intervals of slope and R² are percentiles of 2,000 bootstrap samples of the seeds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
from bounds import EXPERIMENTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

import funcvae as fv

HERE = Path(__file__).parent
STYLES = ("elbo", "stl", "iwae", "dreg", "vimco", "rloo", "elbo_mc", "score")  # the first as in `analyse.py`


def read(out: Path, system: str, seconds: pd.Series) -> pd.DataFrame:
    """One row for each run: log10 of the variance along training, and the bound at equal steps and at equal seconds.

    At equal seconds, every estimator trains as long as the fastest takes for all steps, so slower ones make fewer. The
    bound between two measurements is interpolated, and the variance is that of the steps that are made.

    Args:
        seconds: the time of a step for each estimator, up to a factor.
    """
    rows = []
    for path in sorted((out / "bounds").glob(f"{system}-*.json")):
        run = json.loads(path.read_text())
        steps = run["steps"] * np.arange(1, len(run["test_bound"]) + 1)
        total = np.array([sum(groups.values()) for groups in run["variance"]])
        made = steps[-1] * seconds.min() / seconds[run["estimator"]]
        rows.append(
            {
                "seed": run["seed"], "estimator": run["estimator"],
                "variance at equal steps": np.log10(total).mean(),
                "variance at equal seconds": np.log10(total[: max(1, int((steps <= made).sum()))]).mean(),
                "steps": run["test_bound"][-1], "seconds": np.interp(made, steps, run["test_bound"]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def within_seeds(runs: pd.DataFrame, column: str) -> np.ndarray:
    """A table [seeds, estimators] of a column, minus the mean of each seed."""
    table = runs.pivot(index="seed", columns="estimator", values=column).to_numpy()
    return table - table.mean(1, keepdims=True)


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and R² of the line through the origin."""
    slope = (x * y).sum() / (x * x).sum()
    return slope, 1 - ((y - slope * x) ** 2).sum() / (y * y).sum()


def with_interval(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, resamples: int = 2000) -> np.ndarray:
    """Slope and R², and the ends of their 95% intervals: [3, 2]."""
    drawn = rng.integers(len(x), size=(resamples, len(x)))
    found = np.array([line(x[rows], y[rows]) for rows in drawn])
    return np.stack([line(x, y), *np.percentile(found, [2.5, 97.5], axis=0)])


def step_times(out: Path, system: str) -> pd.Series:
    """The time of a training step with each estimator in ms, as `costs.py` measured it."""
    return pd.Series(json.loads((out / "step_times.json").read_text())[system])


def draw(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], effect: dict[str, Any]) -> None:
    """The differences within seeds [seeds, estimators], and the line through them."""
    for i, name in enumerate(names):
        style = STYLES.index(name)
        colour = fv.figures.PALETTE[style]
        ax.scatter(x[:, i], y[:, i], s=18, marker="os^Dv<>P"[style], color=colour, label=name)
    slope, low, high, r2 = (effect[key] for key in ("nats per tenfold variance", "low", "high", "R²"))
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, slope * ends, color="black", linewidth=1)
    title = f"{effect['system']}: {slope:.3g} [{low:.3g}, {high:.3g}] nats\nfor a tenfold variance; R² = {r2:.2f}"
    ax.set(title=title, xlabel="log10 of the variance, minus the mean of the seed")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)


def main(out: Path = Path("atlas"), to: Path = HERE) -> pd.DataFrame:
    """Prints the effects and draws them.

    Args:
        out: Folder that `bounds.py` and `costs.py` wrote.
        to: Folder of the figure.
    """
    rng = np.random.default_rng(0)
    effects = []
    figure = Figure(figsize=(11, 4), layout="constrained")
    for ax, (system, experiment) in zip(figure.subplots(1, 2), EXPERIMENTS.items(), strict=True):
        runs = read(out, system, step_times(out, system))
        names = sorted(runs["estimator"].unique())
        for budget in ("seconds", "steps"):
            x, y = within_seeds(runs, f"variance at equal {budget}"), within_seeds(runs, budget)
            (slope, r2), (slope_low, r2_low), (slope_high, r2_high) = with_interval(x, y, rng)
            effect = {"system": system, "equal": budget, "seeds": len(x), "nats per tenfold variance": slope}
            effect |= {"low": slope_low, "high": slope_high, "R²": r2, "R² low": r2_low, "R² high": r2_high}
            effects.append(effect)
            for name, differences in zip(names, y.T, strict=True):
                half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
                print(f"{system} at equal {budget}, {name:10}: {differences.mean():+8.4f} ± {half:.4f} nats")
        draw(ax, x, y, names, effect)  # at equal steps
        target = fv.estimators.parse(names[0]).claims.target
        ax.set_ylabel(f"test {target} after {experiment.steps:,} steps,\nminus the mean of the seed [nats]")
    title = "Test bound against the variance of the gradient along training"
    figure.suptitle(f"{title}: differences within {len(x)} seeds")
    fv.figures.save(figure, to / "bounds.png")
    table = pd.DataFrame(effects)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    return table


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
