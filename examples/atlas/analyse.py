"""Tables and figures of the atlas: python examples/atlas/analyse.py --out atlas

Reads what `measure.py` and `costs.py` wrote in OUT. Writes `atlas.csv`, whose columns README.md describes, and four
figures. Prints the card: which estimator to use, chosen from three seeds of four systems, and tested on other seeds and
systems.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from measure import HELD_OUT_SEED, PHASES, SAMPLES, is_held_out

import funcvae as fv

HERE = Path(__file__).parent
SYSTEMS = ("gaussian2d_vae", "mnist_vae", "burda_vae", "sbn_vae")
BERNOULLI = "sbn_vae"
GROUPS = ("all", "encoder", "decoder", "prior")
MEASURED = ("variance", "snr")
STAGES = {"start": ("start",), "later": ("tenth", "end")}
CELL = ["system", "seed", "phase", "samples"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """One row for each estimator and group of parameters of a file of `measure.py`."""
    content = json.loads(path.read_text())
    rows = []
    for comparison in content["comparisons"].values():
        for name, found in comparison["rows"].items():
            for group in filter(found["groups"].get, GROUPS):
                moments, ratio = found["groups"][group], found["ratio"][group]
                bias = (found["bias"] or {}).get(group, {})
                row = {name: content[name] for name in ("system", "seed", "phase")}
                row |= {"samples": comparison["samples"], "estimator": found["estimator"], "noise": found["noise"]}
                row |= {"target": found["target"], "group": group, "parameters": moments["size"]}
                row |= {"decodes": found["decodes"], "replicates": comparison["replicates"]}
                for what in MEASURED:
                    value = moments[what]
                    row |= {what: value["value"], f"{what}_low": value["low"], f"{what}_high": value["high"]}
                row |= {"reference": comparison["reference"].partition(",")[0], "ratio": ratio["value"]}
                row |= {"ratio_se": ratio["se"], "ratio_low": ratio["low"], "ratio_high": ratio["high"]}
                row |= {"bias_z": bias.get("z"), "bias_at_most": bias.get("relative_limit")}
                rows.append(row | {"trusted": int(not moments["variance"]["flag"])})
    return rows


def read(out: Path) -> pd.DataFrame:
    """All measurements, with the time of a gradient in ms, and the cost: variance × time."""
    found = pd.DataFrame([row for path in sorted(out.glob("cells/*.json")) for row in rows_of(path)])
    numbers = [name for name in found if name.split("_")[0] in ("variance", "snr", "ratio", "bias")]
    found[numbers] = found[numbers].apply(pd.to_numeric, errors="coerce")
    costs = pd.DataFrame(json.loads((out / "costs.json").read_text()))
    found = found.merge(costs.drop(columns="median_ms"), on=["system", "samples", "estimator"], how="left")
    found["cost"] = found["variance"] * found["ms"]
    return found


def labelled(found: pd.DataFrame) -> pd.Series:
    """The estimator, and its noise if that is not iid."""
    return found["estimator"].where(found["noise"] == "iid", found["estimator"] + ", " + found["noise"])


def relative_cost(found: pd.DataFrame, target: str, group: str = "all") -> pd.DataFrame:
    """Each estimator's variance × time over the least of its cell, for one target; rows are cells."""
    part = found[(found["target"] == target) & (found["group"] == group)]
    table = part.assign(label=labelled(part)).pivot_table(index=CELL, columns="label", values="cost")
    return table.div(table.min(axis=1), axis=0)


def held_out(cells: pd.MultiIndex) -> np.ndarray:
    """Which cells the card is tested on."""
    return np.array([is_held_out(system, seed) for system, seed, *_ in cells], bool)


def geometric_mean(table: pd.DataFrame | pd.Series) -> Any:
    return np.exp(np.log(table).mean())


def card(found: pd.DataFrame, targets: tuple[str, ...] = ("ELBO", "L_K")) -> tuple[pd.DataFrame, list[float]]:
    """For each kind of posterior, target, stage and K: the estimator with the least worst regret.

    The regret of an estimator in a cell is its variance × time over that of the best one there. The card takes the
    estimator whose worst regret over the cells for choosing is least. For comparison, `by_mean` is the one with the
    least geometric mean, and "worst of by_mean" its worst regret in the held-out cells.

    Returns:
        The card, and the regrets of all its choices in held-out cells where there is a choice.
    """
    rows, regrets = [], list[float]()
    for target in targets:
        table = relative_cost(found, target)
        kinds = {"normal": table.index.get_level_values("system") != BERNOULLI}
        kinds["Bernoulli"] = ~kinds["normal"]
        for (kind, chosen), stage, samples in itertools.product(kinds.items(), STAGES, SAMPLES):
            phases = table.index.get_level_values("phase").isin(STAGES[stage])
            here = table[chosen & phases & (table.index.get_level_values("samples") == samples)]
            test = held_out(here.index)
            if test.all():  # nothing to choose from
                continue
            choosing = here[~test].dropna(axis=1)
            worst = choosing.max().sort_values()
            best, second = worst.index[0], worst.index[1] if len(worst) > 1 else ""
            regret, by_mean = here[test][best], geometric_mean(choosing).idxmin()
            regrets += regret.tolist() if second else []
            rows.append(
                {
                    "posterior": kind, "target": target, "stage": stage, "K": samples, "use": best,
                    "next": second,
                    "next / use": geometric_mean(choosing[second] / choosing[best]) if second else math.nan,
                    "cells": len(regret), "median regret": regret.median(), "worst regret": regret.max(),
                    "worst cell": " ".join(map(str, regret.idxmax())), "by_mean": by_mean,
                    "worst of by_mean": here[test][by_mean].max(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows), regrets


def best_samples(found: pd.DataFrame) -> pd.DataFrame:
    """Variance × time of the best estimator of the ELBO at each K, over that at the best K; means of cells."""
    part = found[(found["target"] == "ELBO") & (found["group"] == "all")]
    least = part.groupby(CELL)["cost"].min().unstack("samples")
    return np.exp(np.log(least.div(least.min(axis=1), axis=0)).groupby("system").mean())


def written(factor: float) -> str:
    """A factor in a cell of the heat map."""
    if math.isnan(factor):
        return ""
    return "≥10⁴" if factor >= 1e4 else f"{factor:.0f}" if factor >= 9.95 else f"{factor:.1f}"


def draw_costs(found: pd.DataFrame) -> Figure:
    """Variance × time of every estimator at the end of training, over the best of its column."""
    tables = {target: relative_cost(found, target) for target in ("ELBO", "L_K")}
    heights = [len(table.columns) for table in tables.values()]
    figure = Figure(figsize=(11, 2.2 + 0.3 * sum(heights)), layout="constrained")
    figure.suptitle("Cost of a gradient: variance × time, relative to the best estimator of the same target and K")
    axes = figure.subplots(2, 1, height_ratios=heights, sharex=True)
    for ax, (target, table) in zip(axes, tables.items(), strict=True):
        end = table[(table.index.get_level_values("phase") == "end") & ~held_out(table.index)]
        means = np.exp(np.log(end).groupby(["system", "samples"]).mean())
        means = means.reindex([(system, k) for system in SYSTEMS for k in SAMPLES])
        means = means.dropna(axis=1, how="all")
        means = means[geometric_mean(means).sort_values().index]
        image = ax.imshow(means.T, norm=LogNorm(1, 100), cmap="cividis_r", aspect="auto")
        for (y, x), value in np.ndenumerate(means.T.to_numpy()):
            ax.text(
                x, y, written(value), ha="center", va="center", fontsize=8, color="white" if value > 10 else "black"
            )
        ax.set_yticks(range(len(means.columns)), means.columns)
        ax.set_title(f"target {target}: all parameters, end of training, mean of three seeds", fontsize=10, loc="left")
        for edge in range(len(SAMPLES), len(means), len(SAMPLES)):
            ax.axvline(edge - 0.5, color="white", linewidth=3)
    axes[-1].set_xticks(range(len(SYSTEMS) * len(SAMPLES)), [f"{k}" for _ in SYSTEMS for k in SAMPLES])
    for i, system in enumerate(SYSTEMS):
        axes[0].text(len(SAMPLES) * (i + 0.5) - 0.5, -1.6, system, ha="center", fontweight="bold", fontsize=10)
    axes[-1].set_xlabel("samples K")
    figure.colorbar(image, ax=axes, label="variance × time over the best", extend="max", shrink=0.6)
    return figure


def over_seeds(found: pd.DataFrame, index: str, values: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Geometric mean, least and greatest over the seeds: rows `index`, a column for each estimator."""
    part = found.assign(label=labelled(found)).groupby([index, "label"])[values]
    tables = (part.agg(how).unstack("label") for how in (lambda x: np.exp(np.log(x.clip(1e-30)).mean()), "min", "max"))
    mean, low, high = tables
    return mean.where(low > 0), low.where(low > 0), high.where(low > 0)


def lines(ax: Axes, x: list[float], found: pd.DataFrame, index: str, values: str, styles: dict[str, int]) -> None:
    """A line for each estimator in `styles`, with bars from the least to the greatest seed.

    A signal that some seed does not show is 0 there, and is left out.
    """
    mean, low, high = (table.reindex(x) for table in over_seeds(found, index, values))
    for label, style in styles.items():
        if label in mean:
            middle = mean[label].to_numpy()
            bars = np.maximum([middle - low[label], high[label] - middle], 0)  # rounding may make them negative
            look: Any = {"marker": "os^Dv<>P"[style], "color": fv.figures.PALETTE[style]}
            ax.errorbar(x, middle, bars, label=label, linewidth=1.2, markersize=5, **look)


def draw_snr(found: pd.DataFrame) -> Figure:
    """The signal-to-noise ratio of the encoder's gradient against K."""
    styles = {"elbo": 0, "stl": 1, "iwae": 2, "dreg": 3, "vimco": 4, "rloo": 5, "disarm": 6, "disarm_local": 7}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle("Signal-to-noise ratio of the encoder's gradient at the end of training, independent noise")
    axes = figure.subplots(1, len(SYSTEMS), sharey=True)
    for ax, system in zip(axes, SYSTEMS, strict=True):
        part = chosen(found, system, "encoder").query("noise == 'iid' and phase == 'end'")
        lines(ax, list(SAMPLES), part, "samples", "snr", styles)
        ax.set(title=system, xscale="log", yscale="log", xlabel="samples K")
        ax.set_xticks(SAMPLES, SAMPLES)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("‖E g‖/√(tr Cov g), batch of 10\n(geometric mean and range of 3 seeds)")
    unique = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=len(unique), frameon=False)
    return figure


def chosen(found: pd.DataFrame, system: str, group: str) -> pd.DataFrame:
    """The measurements of one system and group, without those for the test of the card."""
    return found[(found["system"] == system) & (found["group"] == group) & (found["seed"] != HELD_OUT_SEED)]


def draw_phases(found: pd.DataFrame) -> Figure:
    """The ratio of the encoder's variance to the reference's, along training."""
    styles = {"elbo": 0, "stl": 1, "dreg": 3, "vimco": 4, "rloo": 5, "arm": 2, "rebar:0.7:0.6": 6, "quadratic_cv:1": 7}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle("Variance of the encoder's gradient along training, K = 4, relative to the reference of its target")
    for ax, system in zip(figure.subplots(1, len(SYSTEMS), sharey=True), SYSTEMS, strict=True):
        part = chosen(found, system, "encoder").query("noise == 'iid' and samples == 4")
        part = part.assign(phase=part["phase"].map(PHASES.index))
        lines(ax, list(range(len(PHASES))), part, "phase", "ratio", styles)
        ax.axhline(1, color="grey", linewidth=0.8)
        references = " or ".join(part["reference"].unique())
        ax.set_title(f"{system}\nrelative to {references}", fontsize=10)
        ax.set(yscale="log", xlim=(-0.3, len(PHASES) - 0.7))
        ax.set_xticks(range(len(PHASES)), ["start", "a tenth", "end"])
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("variance / reference's variance")
    unique = {label: line for ax in figure.axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=len(unique), frameon=False)
    return figure


def mirrored_ratios(found: pd.DataFrame) -> pd.DataFrame:
    """The variance under mirrored noise over that under independent noise, for the ELBO; geometric means of seeds."""
    part = found[(found["target"] == "ELBO") & (found["samples"] > 1) & ~held_out(found[["system", "seed"]].to_numpy())]
    index = [*CELL, "group", "estimator"]
    table = part.pivot_table(index=index, columns="noise", values="variance")
    ratio = (table["mirrored"] / table["iid"]).dropna()
    return np.exp(np.log(ratio).groupby(["system", "phase", "samples", "group", "estimator"]).mean())


def draw_noise(found: pd.DataFrame) -> Figure:
    """What mirrored noise does to the variance of the ELBO's gradient."""
    ratios = mirrored_ratios(found)
    names = ("elbo", "elbo_mc", "stl", "quadratic_cv:1")
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle("Mirrored noise: variance of the ELBO's gradient relative to independent noise, end of training")
    axes = figure.subplots(3, len(SYSTEMS) - 1, sharex=True, sharey=True, squeeze=False)
    for row, group in zip(axes, ("all", "encoder", "decoder"), strict=True):
        for ax, system in zip(row, SYSTEMS, strict=False):
            for style, name in enumerate(names):
                values = [ratios.get((system, "end", k, group, name), math.nan) for k in SAMPLES[1:]]
                colour, marker = fv.figures.PALETTE[style], "os^D"[style]
                ax.plot(SAMPLES[1:], values, marker=marker, color=colour, label=name, linewidth=1.2, markersize=5)
            ax.axhline(1, color="grey", linewidth=0.8)
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(SAMPLES[1:], SAMPLES[1:])
            ax.minorticks_off()
            ax.grid(alpha=0.3)
            ax.set_title(f"{system}: {'all parameters' if group == 'all' else group}", fontsize=10)
        row[0].set_ylabel("mirrored / independent")
    for ax in axes[-1]:
        ax.set_xlabel("samples K")
    axes[0][0].set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
    axes[-1][0].text(0.03, 0.95, "the estimators coincide", transform=axes[-1][0].transAxes, va="top", style="italic")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def main(out: Path = Path("atlas"), to: Path = HERE) -> pd.DataFrame:
    """Writes the table and the figures, and prints the findings.

    Args:
        out: Folder that `measure.py` and `costs.py` wrote.
        to: Folder of the table and the figures.
    """
    found = read(out)
    se = found["ratio_se"] / found["ratio"]
    print(f"{len(found):,} rows; the relative standard error of {(se <= 0.05).mean():.1%} of the ratios is at most 5%,")
    print(f"of {(se <= 0.1).mean():.1%} at most 10%; {1 - found['trusted'].mean():.1%} of the intervals are unreliable")
    fair = found[found["reference"] != found["estimator"]].dropna(subset="bias_z")
    print(f"bias: |z| > 4 in {(fair['bias_z'].abs() > 4).sum()} of {len(fair):,} tests")
    found.drop(columns="cost").to_csv(to / "atlas.csv", index=False, float_format="%.3g")
    for name, draw in {"cost": draw_costs, "snr": draw_snr, "phases": draw_phases, "noise": draw_noise}.items():
        fv.figures.save(draw(found), to / f"{name}.png")
    cards, regrets = card(found)
    print(f"regret in {len(regrets)} held-out cells: median {np.median(regrets):.2f}, worst {max(regrets):.2f}")
    print(cards.to_string(index=False, float_format="{:.2f}".format))
    print("\nVariance × time of the best estimator of the ELBO at each K, over that at the best K:")
    print(best_samples(found).to_string(float_format="{:.2f}".format))
    print("\nMirrored over independent noise, ELBO, end of training:")
    print(mirrored_ratios(found).xs("end", level="phase").unstack("samples").to_string(float_format="{:.3f}".format))
    return cards


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
