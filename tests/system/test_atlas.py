"""The programs of the atlas, on a small grid and on tables with known answers."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import funcvae as fv

ATLAS = Path(__file__).parents[2] / "examples" / "atlas"
SIZE_LIMIT = 2 * 2**20


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(ATLAS)
    yield
    for path in ATLAS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def measured(here, monkeypatch):
    """The folder of measurements of a small grid, which `measure.py` has made."""
    import measure

    settings = {"epochs": 10, "checkpoint_every": 10, "keep": 10}
    grid = here / "small.json"
    grid.write_text(json.dumps({"systems": ["gaussian2d_vae"], "seeds": [0, 3], "settings": settings}))
    monkeypatch.setattr(measure, "GRIDS", [grid])
    monkeypatch.setattr(measure, "SAMPLES", (1, 2))
    monkeypatch.setattr(measure, "HEAVY_TAILED", {"gaussian2d_vae": {1: 40, 2: 40}})
    measure.main(out=here)
    return here


def test_the_atlas_is_measured_once_and_analysed(measured, here, monkeypatch, capsys):
    import analyse
    import costs
    import measure

    cells = sorted((here / "cells").glob("*.json"))
    assert len(cells) == 2 * 3 * 2
    before = [path.stat().st_mtime_ns for path in cells]
    measure.main(out=here)
    assert [path.stat().st_mtime_ns for path in cells] == before

    found = json.loads(cells[0].read_text())["comparisons"]
    assert found["ELBO"]["reference"] == "elbo_mc, iid"
    assert all(row["unbiased"] for of_family in found.values() for row in of_family["rows"].values())

    for module in (costs, analyse):
        monkeypatch.setattr(module, "SAMPLES", (1, 2))
    monkeypatch.setattr(costs, "TIMINGS", 1)
    monkeypatch.setattr(costs, "EXPERIMENTS", {})
    costs.main(out=here)
    for name, value in {"SYSTEMS": ("gaussian2d_vae", "sbn_vae"), "SAMPLES": (1, 2)}.items():
        monkeypatch.setattr(analyse, name, value)
    card = analyse.main(out=here, to=here)
    assert {name.partition(",")[0] for name in card["use"]} <= set(measure.ESTIMATORS)
    assert sorted(path.stem for path in here.glob("*.png")) == ["cost", "noise", "phases", "snr"]
    table = analyse.read(here)
    assert list(pd.read_csv(here / "atlas.csv")) == list(table.drop(columns="cost"))
    assert table["ms"].notna().all()
    for name in ("stl", "elbo"):
        of_end = json.loads((here / "cells" / "gaussian2d_vae-elbo-k4-s0-end-K2.json").read_text())
        row = of_end["comparisons"]["ELBO"]["rows"][f"{name}, iid"]
        at = "system == 'gaussian2d_vae' and seed == 0 and phase == 'end' and samples == 2 and noise == 'iid'"
        picked = table.query(f"{at} and group == 'encoder' and estimator == @name")
        assert picked["variance"].item() == row["groups"]["encoder"]["variance"]["value"]


def costs_of(values):
    """A table of measurements with these costs: {(system, seed, estimator): cost}."""
    rows = [
        {"system": system, "seed": seed, "phase": "end", "samples": 1, "estimator": name, "noise": "iid"}
        | {"target": "ELBO", "group": "all", "cost": cost}
        for (system, seed, name), cost in values.items()
    ]
    return pd.DataFrame(rows)


def test_the_card_is_chosen_from_some_cells_and_judged_by_others(monkeypatch):
    import analyse

    monkeypatch.setattr(analyse, "SAMPLES", (1,))
    # The regrets of x are 1 and 1.5, those of y 2 and 1, and those of w 1.4 and 1.4.
    costs = {("a", 0, "x"): 1.0, ("a", 0, "y"): 2.0, ("b", 1, "x"): 3.0, ("b", 1, "y"): 2.0}
    costs |= {("a", 0, "w"): 1.4, ("b", 1, "w"): 2.8}
    held_out = {("a", 3, "x"): 3.0, ("a", 3, "y"): 1.0, ("a", 3, "w"): 2.0}
    held_out |= {("linear_vae", 0, "x"): 5.0, ("linear_vae", 0, "y"): 10.0, ("linear_vae", 0, "w"): 5.0}
    discrete = {("sbn_vae", seed, name): cost for seed in (0, 3) for name, cost in {"x": 1.0, "z": 2.0}.items()}
    table = pd.concat(
        [costs_of(costs | held_out | discrete).assign(phase=phase) for phase in ("start", "tenth", "end")]
    )
    card, regrets = analyse.card(table, ("ELBO",))
    card = card.set_index(["posterior", "stage"])
    assert sorted(regrets) == sorted([2.0, 1.0, 1.0] * 3), "of w and x, at three phases"
    for stage in analyse.STAGES:
        row = card.loc["normal", stage]
        assert (row["use"], row["next"], row["by_mean"]) == ("w", "x", "x")
        assert row["next / use"] == pytest.approx(np.sqrt(1 / 1.4 * 3.0 / 2.8))
        assert (row["median regret"], row["worst regret"], row["worst of by_mean"]) == (1.5, 2.0, 3.0)
        assert row["worst cell"].startswith("a 3")
        assert (card.loc["Bernoulli", stage]["use"], card.loc["Bernoulli", stage]["worst regret"]) == ("x", 1.0)


def test_the_effect_of_the_variance_is_the_slope_within_seeds():
    import analyse_bounds

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4))
    x -= x.mean(1, keepdims=True)
    (slope, r2), low, high = analyse_bounds.with_interval(x, -0.5 * x, rng)
    assert (slope, r2) == pytest.approx((-0.5, 1.0))
    noisy = -0.5 * x + 0.3 * rng.normal(size=x.shape)
    (slope, r2), low, high = analyse_bounds.with_interval(x, noisy, rng)
    assert low[0] < -0.5 < high[0] < -0.3
    assert 0.5 < r2 < 0.9
    unrelated = rng.normal(size=x.shape)
    _, low, high = analyse_bounds.with_interval(x, unrelated, rng)
    assert low[0] < 0 < high[0]


def test_bounds_are_read_at_equal_steps_and_equal_seconds(here):
    import analyse_bounds

    (here / "bounds").mkdir()
    for name, scale in {"fast": 1.0, "slow": 2.0}.items():
        run = {"seed": 0, "estimator": name, "steps": 10, "test_bound": [1.0, 2.0, 3.0, 4.0]}
        run |= {"variance": [{"encoder": 9 * scale * grown, "decoder": scale * grown} for grown in (1, 1, 10, 10)]}
        (here / "bounds" / f"toy-{name}-s0.json").write_text(json.dumps(run))
    found = analyse_bounds.read(here, "toy", pd.Series({"fast": 1.0, "slow": 2.0})).set_index("estimator")
    assert found["variance at equal steps"].tolist() == pytest.approx([1.5, 1.5 + np.log10(2)])
    assert found["variance at equal seconds"].tolist() == pytest.approx([1.5, np.log10(20)]), (
        "the slow one makes two of four"
    )
    assert found["steps"].tolist() == [4.0, 4.0]
    assert found["seconds"].tolist() == [4.0, 2.0], "the slow estimator makes 20 of 40 steps"


def test_a_run_of_bounds_measures_along_training(monkeypatch):
    import bounds

    small = bounds.EXPERIMENTS["gaussian2d_vae"]._replace(batch=10, steps=20)
    monkeypatch.setitem(bounds.EXPERIMENTS, "gaussian2d_vae", small)
    monkeypatch.setattr(bounds, "TEST_ITEMS", 50)
    found = bounds.trained("gaussian2d_vae", "stl", 0, "data")
    assert (found["steps"], len(found["variance"]), len(found["test_bound"])) == (2, bounds.POINTS, bounds.POINTS)
    other = bounds.trained("gaussian2d_vae", "score", 0, "data")
    assert other["variance"][0]["encoder"] > found["variance"][0]["encoder"] > 0


def test_combinations_reach_the_least_variance_that_their_covariance_allows():
    import combine

    c = np.array([[1.0, 0.2], [0.2, 2.0]])
    a = combine.best_weights(c)
    assert a == pytest.approx([1.8 / 2.6, 0.8 / 2.6], abs=1e-5)  # (c22 - c12, c11 - c12) over their sum
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(c)
    g = {"encoder/a": np.einsum("ij,rjp->rip", root, rng.normal(size=(4000, 2, 5)))}
    assert combine.covariance(g["encoder/a"]) == pytest.approx(5 * c, abs=0.5)
    gains = combine.gains(g, rng)
    assert gains.mean(0) == pytest.approx([1.0 / (a @ c @ a)] * 2, rel=0.03)


def test_a_weight_for_each_layer_gains_where_layers_differ():
    import combine

    rng = np.random.default_rng(0)
    scales = {"encoder/a": (1.0, 10.0), "encoder/b": (10.0, 1.0)}
    g = {layer: np.array(s)[:, None] * rng.normal(size=(2000, 2, 5)) for layer, s in scales.items()}
    whole, by_layer = combine.gains(g, rng).mean(0)
    # Singly each has 101, halves of both 50.5; by layer each has 100/101.
    assert (whole, by_layer) == pytest.approx((2.0, 101 / (2 * 100 / 101)), rel=0.1)


def test_the_committed_table_is_complete_and_described():
    path = ATLAS / "atlas.csv"
    assert path.stat().st_size < SIZE_LIMIT
    table = pd.read_csv(path)
    described = (ATLAS / "README.md").read_text()
    assert all(f"`{column}`" in described for column in table)
    cells = table.groupby(["system", "seed", "phase", "samples"]).ngroups
    assert cells == (4 * 4 + 2) * 3 * 4
    iwae = table.query("estimator == 'iwae' and noise == 'iid' and samples == 1 and group == 'encoder'")
    elbo_mc = table.query("estimator == 'elbo_mc' and noise == 'iid' and samples == 1 and group == 'encoder'")
    # At K = 1 they have one gradient.
    assert (iwae["variance_low"].to_numpy() <= elbo_mc["variance_high"].to_numpy()).all()
    assert (elbo_mc["variance_low"].to_numpy() <= iwae["variance_high"].to_numpy()).all()


def test_the_grids_can_be_trained():
    for path in sorted((ATLAS / "grids").glob("*.json")):
        grid = fv.runs.parse_grid(json.loads(path.read_text()))
        own = {"linear_vae": fv.runs.find_system(f"{ATLAS / 'linear.py'}:linear_vae")}
        systems = {
            name.rpartition(":")[2]: own.get(name.rpartition(":")[2]) or fv.models.SYSTEMS[name]
            for name in grid.systems
        }
        for cell in fv.runs.expand_grid(grid, "unused", systems=systems):
            steps = cell.steps(60_000 if cell.data == "mnist" else 10_000)
            assert steps // 10 % cell.checkpoint_every == 0, "a checkpoint of a tenth of the steps"
            assert steps // cell.checkpoint_every <= cell.keep, "which is kept"
