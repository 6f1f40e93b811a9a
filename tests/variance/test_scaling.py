"""Sweeps and slopes on log-log axes, against power laws."""

import json
import math

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.estimators import parse
from funcvae.variance import Measured, compare, slope, sweep
from tests.support.oracles import toy

KEY = fv.random.key(41)


def measured(value, se):
    return Measured(value, se, value - 2 * se, value + 2 * se)


def power(exponent, relative, factor=3.0):
    """A measure of a power law with a relative error."""

    def measure(value, key):
        noise = float(fv.random.normal(key, (), torch.float64))
        true = factor * value**exponent
        return {"law": measured(true * (1 + relative * noise), relative * true)}

    return measure


@pytest.mark.parametrize("exponent", [-0.5, 0.5, 2.0, 0.0])
def test_a_power_law_without_noise_is_fitted_exactly(exponent):
    fit = slope((1, 2, 8, 100), [measured(3 * k**exponent, 0.0) for k in (1, 2, 8, 100)])
    assert fit.slope == pytest.approx(exponent, abs=1e-12)
    assert fit.se == pytest.approx(0, abs=1e-12)
    assert math.exp(fit.intercept) == pytest.approx(3)


def test_slopes_scatter_by_their_standard_errors():
    fits = [sweep(power(-0.5, 0.05), (1, 3, 10, 30, 100), fv.random.key(s)).slopes["law"] for s in range(400)]
    z = np.array([(fit.slope + 0.5) / fit.se for fit in fits])
    assert abs(z.mean()) < 0.25
    assert 0.75 < z.std() < 1.1  # errors are larger if the points scatter more than expected


def test_weights_are_the_relative_errors():
    values, rows = (1, 10, 100), [measured(1.0, 1e-3), measured(10.0, 1e-2), measured(1e9, 1e12)]
    assert slope(values, rows).slope == pytest.approx(1, abs=1e-3)


def test_slopes_are_those_of_normal_equations():
    values, estimates, errors = (1, 3, 7, 20), (2.0, 2.5, 7.0, 9.0), (0.1, 0.2, 0.7, 0.3)
    fit = slope(values, [measured(*pair) for pair in zip(estimates, errors, strict=True)])
    x, y, w = np.log(values), np.log(estimates), (np.array(estimates) / errors) ** 2
    design = np.stack([x, np.ones(4)], 1)
    inverse = np.linalg.inv(design.T @ (w[:, None] * design))
    rise, level = inverse @ design.T @ (w * y)
    chi2 = w @ (y - level - rise * x) ** 2
    assert chi2 > 2
    assert (fit.slope, fit.intercept) == pytest.approx((rise, level), rel=1e-12)
    assert fit.se == pytest.approx(math.sqrt(chi2 / 2 * inverse[0, 0]), rel=1e-12)
    two = slope(values[:2], [measured(*pair) for pair in zip(estimates[:2], errors[:2], strict=True)])
    assert two.se == pytest.approx(math.hypot(0.1 / 2, 0.2 / 2.5) / math.log(3), rel=1e-12)


@pytest.mark.parametrize("errors", [(1e-100, 1e-3, 1e-3), (1e-17, 1e-17, 0.1), (1e300, 1e-3, 1e-3)])
def test_errors_of_any_size_give_a_finite_slope(errors):
    fit = slope((1, 10, 100), [measured(v, v * e) for v, e in zip((1.0, 10.0, 100.0), errors, strict=True)])
    assert fit.slope == pytest.approx(1, abs=1e-9)
    assert math.isfinite(fit.se)


def test_one_value_has_no_slope():
    rows = [measured(v, 0.1 * i) for i, v in enumerate((2.0, 3.0, 4.0), 1)]
    assert slope((3, 3, 3), rows) is None


def test_estimates_without_a_logarithm_or_an_error_are_ignored():
    rows = [
        measured(0.0, 0.1),
        measured(2.0, 0.1),
        measured(math.nan, 0.1),
        measured(4.0, 0.1),
        measured(3.0, math.inf),
    ]
    assert slope((1, 2, 3, 4, 5), rows).slope == pytest.approx(1)
    assert slope((1, 2), rows[:2]) is None


def test_scatter_beyond_the_errors_increases_the_slopes_error():
    values = (1, 2, 4, 8)
    rows = [measured(v * f, 1e-6) for v, f in zip(values, (1, 1.2, 0.9, 1.1), strict=True)]
    assert slope(values, rows).se > 0.01


def test_a_sweep_over_k_of_a_comparison():
    model, params, state = toy()
    x = torch.tensor([[1.0]], dtype=torch.float64)

    def measure(k, key):
        arms = {"elbo_mc": parse("elbo_mc"), "stl": parse("stl")}
        found = compare(arms, model, params, state, x, key, samples=k, replicates=400, chunk=400, timings=0)
        return {name: row.groups["encoder"].variance for name, row in found.rows.items()}

    reported = []
    found = sweep(measure, (1, 4, 16), KEY, progress=lambda *at: reported.append(at))
    for name in ("elbo_mc", "stl"):  # a mean of K independent terms
        assert abs(found.slopes[name].slope + 1) < 4 * found.slopes[name].se
        assert found.slopes[name].se < 0.1
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]
    lines = str(found).splitlines()
    assert lines[0].split() == ["K", "elbo_mc", "stl"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "4", "16", "slope"]
    assert json.loads(json.dumps(found.to_dict()))["values"] == [1, 4, 16]
    frame = found.to_pandas().pivot(index="K", columns="series", values="se")
    assert frame.loc[4, "stl"] == found.series["stl"][1].se
    assert len(found.to_csv().splitlines()) == 7


def test_a_sweep_of_many_series_fits_the_terminal():
    one = Measured(1.0, 0.1, 0.8, 1.2)
    found = sweep(lambda k, key: {f"a long name, number {i}": one for i in range(9)}, (1, 4), KEY)
    assert max(map(len, str(found).splitlines())) <= 80
    assert max(map(len, found.table(wide=True).splitlines())) > 80
    assert str(found).count("slope") == 3  # three tables of three series


def test_a_sweep_over_the_steps_of_training_and_over_the_batch():
    model, opt, x = fv.models.gaussian2d_vae(hidden=8), fv.optim.adam(1e-2), fv.random.normal(KEY, (64, 2))
    kept = {}

    def keep(step, ts):
        kept[step] = fv.tree.map(torch.clone, (ts.params, ts.state))

    ts = fv.train.init(model, opt, fv.random.key(0))
    fv.train.fit(ts, model, parse("elbo"), opt, x, epochs=4, batch=16, watch=keep, compile=False)

    def variance_of(params, state, x, key):
        found = compare({"iwae": parse("iwae")}, model, params, state, x, key, samples=2, replicates=200, timings=0)
        return {"iwae": found.row("iwae").groups["encoder"].variance}

    along = sweep(lambda step, key: variance_of(*kept[step], x, key), (1, 4, 16), KEY, over="step")
    assert along.over == "step"
    assert all(m.value > 0 for m in along.series["iwae"])
    wide = sweep(lambda b, key: variance_of(*kept[16], x[:b], key), (4, 16, 64), KEY, over="batch")
    assert wide.slopes["iwae"].slope == pytest.approx(-1, abs=0.4), "the variance of the noise is proportional to 1/B"
    assert json.loads(wide.to_json())["over"] == "batch"


def test_each_value_has_its_own_key():
    keys = []
    sweep(lambda v, key: keys.append(key) or {"a": measured(1.0, 0.1)}, (5, 7), KEY)
    assert torch.equal(keys[0], fv.random.fold_in(KEY, 0))
    assert torch.equal(keys[1], fv.random.fold_in(KEY, 1))


def test_wrong_arguments_raise_an_error():
    with pytest.raises(BadValue, match="give at least one value, and no value twice"):
        sweep(power(1, 0.1), (), KEY)
    with pytest.raises(BadValue, match="no value twice"):
        sweep(power(1, 0.1), (1, 2, 1), KEY)
    with pytest.raises(BadValue, match="measure returned b at 2, but a before"):
        sweep(lambda v, key: {"a" if v == 1 else "b": measured(1.0, 0.1)}, (1, 2), KEY)


def test_only_selects_series():
    found = sweep(lambda v, key: {"a": measured(v, 0.1), "b": measured(0.0, 0.1)}, (1, 2, 4), KEY)
    assert found.only("a").series == {"a": found.series["a"]}
    assert found.only("a").slopes == {"a": found.slopes["a"]}
    assert found.only("b").slopes == {}
    with pytest.raises(BadValue, match="unknown series of the sweep 'c'"):
        found.only("c")
