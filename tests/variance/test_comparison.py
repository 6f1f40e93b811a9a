"""Comparisons on common random numbers, against exact integration."""

import json
import math
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadData, BadType, BadValue, NonFinite
from funcvae.estimators import parse
from funcvae.variance import compare, comparison, exact, moments, online_moments
from tests.support.comparisons import KEY, SPECS, X, arms, on_the_toy
from tests.support.models import generators, same_bits
from tests.support.oracles import gradient_variances, tiny, toy


@cache
def known(spec):
    return exact(parse(spec), *toy(), X, samples=2, nodes=60)


def flat(params, part="encoder"):
    return torch.cat([leaf.flatten() for leaf in tree.leaves(params[part])])


# Against integration.


@pytest.mark.parametrize("spec", SPECS)
def test_variances_ratios_and_signal_to_noise_equal_those_of_quadrature(spec):
    row, base = on_the_toy().rows[spec], known("dreg")
    variance = float(flat(known(spec).variance).sum())
    mean = float(flat(known(spec).mean).norm())
    ratio = variance / float(flat(base.variance).sum())
    assert abs(row.groups["encoder"].variance.value - variance) < 4 * row.groups["encoder"].variance.se
    assert abs(row.ratio["encoder"].value - ratio) <= 4 * row.ratio["encoder"].se
    assert abs(row.groups["encoder"].snr.value - mean / variance**0.5) < 4 * row.groups["encoder"].snr.se
    if spec in ("elbo_mc", "stl"):
        assert row.signal == row.bias == {}, "another target"
    else:
        signal = float(flat(base.mean).norm()) / variance**0.5
        assert abs(row.signal["encoder"].value - signal) < 4 * row.signal["encoder"].se
    assert abs(row.bound.value - float(known(spec).bound)) < 4 * row.bound.se


@pytest.mark.parametrize(("spec", "biased"), [("iwae", False), ("vimco", False), ("ovis:0", False), ("iwae_stl", True)])
def test_a_bias_is_detected_with_its_size_and_no_other(spec, biased):
    bias = on_the_toy().rows[spec].bias["encoder"]
    square = float((flat(known(spec).mean) - flat(known("dreg").mean)).square().sum())
    assert abs(bias.square - square) < 4 * bias.se
    assert (bias.z > 5) is biased
    if not biased:
        assert bias.z < 4
    assert bias.norm == pytest.approx(math.sqrt(max(bias.square, 0)))


@pytest.mark.parametrize("replicates", [512, 513, 514, 600, 1000, 1024, 1025])
def test_a_bias_is_detected_at_any_number_of_replicates(replicates):
    row = on_the_toy(3, replicates, specs=("dreg", "iwae_stl")).rows["iwae_stl"]
    assert row.bias["encoder"].z > 10
    snr = row.groups["encoder"].snr
    assert 0.5 < snr.se / (0.04 * (1000 / replicates) ** 0.5) < 2, "the error has no jump"


@pytest.mark.parametrize("keys", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_without_a_bias_z_is_standard_normal(keys):
    z = np.array([on_the_toy(s, 130, specs=("dreg", "iwae")).rows["iwae"].bias["encoder"].z for s in range(keys)])
    assert abs(z.mean()) < 4 / keys**0.5
    assert z.std() == pytest.approx(1, abs=4 / (2 * keys) ** 0.5)


@pytest.mark.slow
def test_the_error_of_a_bias_is_its_scatter_between_keys():
    found = [on_the_toy(s, 600, specs=("dreg", "iwae_stl")).rows["iwae_stl"].bias["encoder"] for s in range(150)]
    scatter = np.std([bias.square for bias in found]) / np.mean([bias.se for bias in found])
    assert 0.75 < scatter < 1.15
    assert all(bias.detected for bias in found)


def test_few_replicates_have_no_z():
    for replicates in (2, 5, 30):
        assert math.isnan(on_the_toy(1, replicates, specs=("dreg", "iwae_stl")).rows["iwae_stl"].bias["encoder"].z)


def biases(reference, difference, replicates, keys):
    """For each key, the bias of reference + difference against the reference, gradients of shape [R, P] from a key."""
    found = []
    for key in range(keys):
        values = difference(fv.random.key(key), replicates)
        sums = online_moments.empty_sums([values[0]], 1)
        _, _, along = online_moments.add_chunk_(sums, 0, [values])
        center = [values[: online_moments.replicates_in_center(r) if r else 1].mean(0) for r in range(replicates)]
        square = torch.stack([c @ c for c in center])
        found.append(comparison._bias((along[:, 0] + square)[:, None].numpy(), reference, 1e-30))
    return found


def skewed(key, replicates):
    """Differences without a bias: log-normal numbers minus their mean, which rare large ones dominate."""
    return (2 * fv.random.normal(key, (replicates, 1), torch.float64)).exp() - math.exp(2)


def test_rare_large_differences_are_no_bias():
    found = biases(1.0, skewed, 60, 300)
    plain = [b.square / b.se * math.sqrt(44 * (1 / 44 + 1 / 16)) for b in found]  # of the 44 later replicates
    assert sum(z > 4 for z in plain) > 25, "a normal score detects a bias in a tenth of them"
    assert sum(b.detected for b in found) < 5


def test_the_score_allows_for_the_kurtosis_on_both_sides():
    rows = np.exp(2 * fv.random.normal(KEY, (200, 1), torch.float64).numpy())
    above, below = (comparison._bias(sign * rows, 1.0, 1e-30) for sign in (1, -1))
    assert 0 < above.z < 0.9 * above.square / rows[128:].std() * 72**0.5
    assert below.z == -above.z


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_the_limit_of_a_bias_is_above_the_bias(size):
    found = biases(2.0, lambda key, r: size / 5**0.5 + fv.random.normal(key, (r, 5), torch.float64), 200, 200)
    assert np.mean([b.limit >= size for b in found]) > 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5
    assert all(b.relative_limit == b.limit / 2 for b in found)
    assert all(b.limit < 0.7 for b in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 64])
@pytest.mark.parametrize("x", [1.2, 30.0])
def test_a_variance_that_is_a_rounding_error_is_zero(x, samples, dtype):
    model, params, state = toy(x / 2, 0.5)  # q = p(z|x): the variance of stl and dreg is zero
    params, data = tree.map(lambda p: p.to(dtype), params), torch.full((3, 1), x, dtype=dtype)
    found = compare(arms("elbo_mc", "stl"), model, params, state, data, KEY, samples=samples, replicates=64, timings=0)
    stl, other = (found.rows[spec] for spec in ("stl", "elbo_mc"))
    for measured in (stl.groups["encoder"].variance, stl.ratio["encoder"]):
        assert measured[:4] == (0, 0, 0, 0)
        assert "a variance of zero to rounding" in measured.flag
    assert not stl.groups["encoder"].snr.value < math.inf
    assert other.groups["encoder"].variance.value > 0.1 / samples
    assert stl.bias["encoder"].z == pytest.approx(0, abs=5)
    swapped = compare(arms("stl", "elbo_mc"), model, params, state, data, KEY, samples=samples, replicates=64)
    assert math.isnan(swapped.rows["elbo_mc"].ratio["encoder"].value), "nothing is a multiple of zero"


def test_a_small_variance_is_not_zero():
    model, params, state = toy(0.6, 0.5 + 1e-6)
    found = compare(arms("elbo_mc", "stl"), model, params, state, 1.2 * X, KEY, samples=1, replicates=64, timings=0)
    known = sum(gradient_variances("stl", 0.6, 0.5 + 1e-6, 1.2))
    assert found.rows["stl"].groups["encoder"].variance.value == pytest.approx(known, rel=1)
    assert found.rows["stl"].groups["encoder"].variance.value < 1e-10


def test_on_common_noise_a_ratio_is_more_precise_than_its_parts():
    found = on_the_toy()
    prior = found.rows["iwae"].ratio["prior"]
    assert prior[:4] == pytest.approx((1, 0, 1, 1), abs=1e-9), "their decoders have the same gradient"
    assert found.rows["iwae"].bias["prior"].square == pytest.approx(0, abs=1e-20)
    against = compare(arms("iwae", "elbo_mc"), *toy(), X, KEY, samples=2, replicates=20_000, chunk=1000, timings=0)
    ratio = against.rows["elbo_mc"].ratio["encoder"]
    parts = [row.groups["encoder"].variance for row in against.rows.values()]
    assert ratio.se / ratio.value < 0.8 * math.hypot(*(part.se / part.value for part in parts))


def test_rows_equal_the_results_of_moments():
    model, params, state, x = tiny()
    found = compare(arms("iwae", "elbo", "piwae:2"), model, params, state, x, KEY, samples=4, replicates=50, chunk=7)
    for spec, row in found.rows.items():
        alone = moments(parse(spec), model, params, state, x, KEY, samples=4, replicates=50, chunk=7)
        for group, here in row.groups.items():
            there = alone.groups[group]
            for a, b in zip((here.variance, here.norm, here.snr), (there.variance, there.norm, there.snr), strict=True):
                assert a.value == pytest.approx(b.value, rel=1e-9, nan_ok=True)
                assert a.se == pytest.approx(b.se, rel=1e-6, nan_ok=True)
            assert here.kurtosis == pytest.approx(there.kurtosis, rel=1e-9, nan_ok=True)
        assert row.bound.value == pytest.approx(alone.bound.value)
        assert row.seconds > 0


def test_the_directional_ratio_is_its_definition_in_two_passes():
    model, params, state, x = tiny()
    found = compare(arms("iwae"), model, params, state, x, KEY, samples=3, replicates=100, timings=0)
    grads = []
    for r in range(100):
        eps = fv.noise.iid(fv.random.fold_in(KEY, r), 3, (2, 2), dtype=torch.float64)
        grads.append(flat(parse("iwae")(model, params, state, x, eps, train=False).grads))
    g = torch.stack(grads).numpy()
    parallel, across = [], []
    for r in range(32, 100):
        mean = g[: 32 if r < 64 else 64].mean(0)
        u = mean / np.linalg.norm(mean)
        parallel.append(abs(g[r] @ u))
        across.append(np.linalg.norm(g[r] - (g[r] @ u) * u))
    ratio = np.array(parallel) / across
    dsnr = found.rows["iwae"].groups["encoder"].dsnr
    assert dsnr.value == pytest.approx(ratio.mean(), rel=1e-9)
    assert dsnr.se == pytest.approx(ratio.std(ddof=1) / 68**0.5, rel=1e-9)
    assert math.isinf(on_the_toy().rows["iwae"].groups["prior"].dsnr.value), "one dimension has no orthogonal part"


# The weights, and flags.


def test_effective_sample_size_is_that_of_quadrature():
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    z = 0.8 + math.sqrt(2 / 3) * node
    w = np.exp(-0.5 * (1 - z) ** 2 - 0.5 * z**2 + 0.5 * node**2)
    joint = np.outer(weight, weight) / weight.sum() ** 2
    ess = (joint * (w[:, None] + w) ** 2 / (w[:, None] ** 2 + w**2)).sum()
    found = on_the_toy().rows["iwae"].importance
    assert found.ess == pytest.approx(ess, abs=0.01)
    assert found.least_ess == found.ess


def test_the_tail_of_the_weights_is_arvizs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", reason="needs arviz")
    model, params, state = toy(0.5, 0.25)
    found = compare(arms("iwae"), model, params, state, X, KEY, samples=4, replicates=300, timings=0)
    eps = torch.stack([fv.noise.iid(fv.random.fold_in(KEY, r), 4, (1, 1), dtype=torch.float64) for r in range(300)])
    log_w = torch.vmap(lambda e: parse("iwae")(model, params, state, X, e, train=False).log_w)(eps).flatten()
    assert found.rows["iwae"].importance.k_hat == pytest.approx(float(arviz.psislw(log_w.numpy().copy())[1]), abs=1e-6)


@pytest.mark.parametrize(("s2", "latent"), [(2 / 3, 1), (0.2, 1), (0.25, 20)])
def test_weights_of_infinite_variance_do_not_flag_a_gradient_that_is_bounded_in_them(s2, latent):
    found = on_the_toy(0, 1000, s2, 0.5, 8, ("elbo_mc", "iwae"), latent)
    assert all(row.groups["encoder"].variance.trusted for row in found.rows.values())
    assert not any("Pareto" in reason for reason in found.flags())


def test_a_table_says_why_an_interval_is_unreliable():
    found = on_the_toy(0, 20)
    assert "fewer than 30 replicates" in found.flags()
    assert "* unreliable interval" in str(found)


def score_variance(latent, m, s2, x):
    """tr Cov of `score` at K = 1 with prior mean 0: f = sum_j f_j, and f h(eps_i) for h of m_i and log s_i."""
    eps, w = np.polynomial.hermite_e.hermegauss(40)
    w, s = w / w.sum(), math.sqrt(s2)
    z = m + s * eps
    f = -0.5 * (x - z) ** 2 - 0.5 * z**2 - 0.5 * math.log(2 * math.pi) + 0.5 * eps**2 + math.log(s)
    rest = (latent - 1) * (w @ f)
    rest_square = (latent - 1) * (w @ f**2 - (w @ f) ** 2) + rest**2
    total = 0.0
    for h in (eps / s, eps**2 - 1):
        square = w @ (f * f * h * h) + 2 * (w @ (f * h * h)) * rest + (w @ (h * h)) * rest_square
        total += latent * (square - (w @ (f * h) + (w @ h) * rest) ** 2)
    return total


COVERAGE = [  # (D, K, s², m, estimators); 20 of score are heavy-tailed
    (1, 2, 2 / 3, 0.8, ("elbo_mc", "vimco")),
    (1, 2, 2 / 3, 0.8, ("elbo_mc", "stl", "iwae", "dreg", "vimco")),
    (20, 2, 2 / 3, 0.5, ("elbo_mc", "stl", "score")),
]


def covered(latent, samples, s2, m, specs, keys, replicates=1000):
    """For each estimator, of each key: whether the interval contains the exact variance, and whether it is flagged."""
    found = {}
    for spec in specs:
        if spec == "score":
            found[spec] = score_variance(latent, m, s2, 1.0) / samples
        elif spec in ("elbo_mc", "stl"):
            found[spec] = latent * sum(gradient_variances(spec, m, s2, 1.0)) / samples
        else:
            known = exact(parse(spec), *toy(m, s2), X, samples=samples, nodes=80)
            found[spec] = float(flat(known.variance).sum())
    held = {spec: [] for spec in specs}
    for seed in keys:
        run = on_the_toy(seed, replicates, s2, m, samples, specs, latent)
        for spec in specs:
            v = run.rows[spec].groups["encoder"].variance
            held[spec].append((v.low <= found[spec] <= v.high, not v.trusted))
    return {spec: np.array(rows) for spec, rows in held.items()}


@pytest.mark.parametrize(
    "setting", [COVERAGE[0], *(pytest.param(setting, marks=pytest.mark.slow) for setting in COVERAGE[1:])]
)
def test_intervals_contain_the_exact_variance(setting):
    for spec, rows in covered(*setting, range(60)).items():
        assert rows[:, 0].mean() > 0.85, spec  # of 60: four standard errors below 95%
        assert rows[:, 1].mean() < 0.1, spec


@pytest.mark.slow
@pytest.mark.parametrize("setting", COVERAGE[1:])
def test_95_in_100_of_500_intervals_without_a_flag_contain_the_exact_variance(setting):
    for spec, rows in covered(*setting, range(500)).items():
        holds, flagged = rows.T
        print(f"{setting[:4]} {spec}: {holds[~flagged].mean():.3f} of those not flagged, {flagged.mean():.3f} flagged")
        assert 0.92 <= holds[~flagged].mean() <= 0.98, spec
        assert flagged.mean() <= 0.05, spec


# Noise schemes.


def test_noise_schemes_are_compared_in_one_comparison():
    plain = compare(
        {"iid": parse("elbo_mc"), "mirrored": (parse("elbo_mc"), fv.noise.mirrored)},
        *toy(), X, KEY, samples=2, replicates=2000, chunk=500, timings=0,
    )  # fmt: skip
    assert [row.noise for row in plain.rows.values()] == ["iid", "mirrored"]
    assert plain.rows["mirrored"].groups["encoder/m"].variance.value < 1e-20, "mirrored pairs have no noise in m"
    assert plain.rows["mirrored"].ratio["encoder/m"].value == pytest.approx(0, abs=1e-20)
    assert plain.rows["mirrored"].bias["encoder"].z < 4, "the ELBO stays the target"
    bound = compare(
        {"iid": parse("iwae"), "mirrored": (parse("iwae"), fv.noise.mirrored)},
        *toy(), X, KEY, samples=2, replicates=50, timings=0,
    )  # fmt: skip
    assert bound.rows["mirrored"].target == "L_K under mirrored noise"
    assert bound.rows["mirrored"].bias == {}, "another target than L_K under independent noise"
    assert math.isfinite(bound.rows["mirrored"].importance.k_hat)
    assert "mirrored noise" in str(bound)


def test_schemes_that_are_equal_but_not_identical_count_as_one():
    class Mine:
        def draw(self, key, n, shape, *, dtype):
            return fv.noise.iid(key, n, shape, dtype=dtype)

    mine = Mine()
    arms_ = {"a": (parse("iwae"), mine.draw), "b": (parse("elbo_mc"), mine.draw)}
    found = compare(arms_, *toy(), X, KEY, samples=2, replicates=3, timings=1)
    assert list(found.rows) == ["a", "b"]
    assert all(row.seconds > 0 for row in found.rows.values())


def test_the_target_of_a_function_is_its_own_unless_it_has_claims():
    def made(spec, claims=None):
        def mine(model, params, state, x, eps, *, train):
            return parse(spec)(model, params, state, x, eps, train=train)

        if claims:
            mine.claims = claims
        return mine

    given = {"iwae": parse("iwae"), "a": made("iwae"), "b": made("elbo"), "c": made("dreg", parse("dreg").claims)}
    found = compare(given, *toy(), X, KEY, samples=2, replicates=200, timings=0)
    assert [row.target for row in found.rows.values()] == ["L_K", "a", "b", "L_K"]
    assert found.rows["a"].bias == found.rows["b"].bias == {}
    assert abs(found.rows["c"].bias["encoder"].z) < 4


def test_an_estimator_may_be_unhashable():
    @dataclass
    class Mine:
        scale: float

        def __call__(self, model, params, state, x, eps, *, train):
            return parse("iwae")(model, params, state, x, eps, train=train)

    assert compare({"mine": Mine(1.0)}, *toy(), X, KEY, samples=2, replicates=3).rows["mine"].estimator == "mine"
    assert moments(Mine(1.0), *toy(), X, KEY, samples=2, replicates=3).replicates == 3


def test_k_hat_of_very_many_samples_uses_some_of_them(monkeypatch):
    monkeypatch.setattr("funcvae.variance.weight_diagnostics._MOST_WEIGHTS", 100)
    x = X.expand(200, 1)
    found = compare(arms("iwae"), *toy(0.5, 0.2), x, KEY, samples=80, replicates=20, timings=0)
    assert math.isfinite(found.rows["iwae"].importance.k_hat)


# Output and reproducibility.


def without_times(found):
    """The comparison as a dict, without times, which do not repeat."""
    return {
        "rows": {
            name: {k: v for k, v in row.items() if "seconds" not in k} for name, row in found.to_dict()["rows"].items()
        }
    }


def test_numbers_repeat_to_the_bit_and_arguments_survive():
    model, *tensors = tiny()
    before, states = tree.map(torch.clone, (tensors, KEY)), generators()
    first, second = (
        compare(arms("iwae", "rws"), model, *tensors, KEY, samples=3, replicates=40, chunk=6) for _ in range(2)
    )
    assert json.dumps(without_times(first)) == json.dumps(without_times(second))
    assert same_bits((tensors, KEY), before)
    assert generators() == states


def test_cost_is_variance_times_seconds():
    found = compare(arms("iwae"), *toy(), X, KEY, samples=2, replicates=50, timings=1)
    row = found.rows["iwae"]
    assert row.seconds > 0
    assert row.cost("encoder") == row.groups["encoder"].variance.value * row.seconds
    assert row.median_seconds == row.seconds, "of one timing"


def test_progress_is_reported():
    reported = []
    options = {"samples": 2, "replicates": 7, "chunk": 3, "timings": 0}
    compare(arms("iwae", "dreg"), *toy(), X, KEY, **options, progress=lambda *at: reported.append(at))
    assert reported == [(0, 7), (1, 7), (2, 7), (4, 7), (7, 7)]  # at every renewal of the centre


def test_replicates_double_until_ratios_reach_the_target():
    options = {"samples": 2, "chunk": 500, "timings": 0}
    found = compare(arms("iwae", "vimco"), *toy(), X, KEY, replicates=100, target_se=0.05, **options)
    ratio = found.rows["vimco"].ratio["encoder"]
    assert found.reached
    assert ratio.se / ratio.value <= 0.05
    assert found.replicates in [100 * 2**i for i in range(1, 8)]
    before = compare(arms("iwae", "vimco"), *toy(), X, KEY, replicates=found.replicates // 2, **options)
    assert before.rows["vimco"].ratio["encoder"].se / before.rows["vimco"].ratio["encoder"].value > 0.05
    same = compare(arms("iwae", "vimco"), *toy(), X, KEY, replicates=found.replicates, **options)
    assert same.rows["vimco"].ratio["encoder"].value == pytest.approx(ratio.value, rel=1e-12)
    assert "the relative standard error of every ratio is at most 0.05" in str(found)
    assert "cover slightly less than 95%" in str(found)
    assert "cover slightly less" not in str(same)


def test_a_target_out_of_reach_ends_and_is_reported():
    found = compare(
        arms("iwae", "vimco"), *toy(), X, KEY, samples=2, replicates=2, chunk=300, target_se=1e-9, timings=0
    )
    assert not found.reached
    assert found.replicates == 2 * 2**7
    assert "above 1e-09 after the last stage" in str(found)
    assert "cover slightly less" not in str(found), "it did not stop at the target"


def test_replicates_do_not_double_for_the_ratio_to_a_variance_of_zero():
    options = {"samples": 4, "replicates": 40, "target_se": 0.5, "timings": 0}
    found = compare(arms("stl", "elbo_mc"), *toy(float(X) / 2, 0.5), X, KEY, **options)  # q = p(z|x)
    assert math.isnan(found.rows["elbo_mc"].ratio["encoder"].value)
    assert found.reached
    assert found.replicates == 40


def test_one_replicate():
    found = compare(arms("iwae", "dreg"), *tiny(), KEY, samples=2, replicates=1, timings=0)
    row = found.rows["dreg"]
    assert math.isnan(row.groups["encoder"].variance.value)
    assert math.isnan(row.ratio["encoder"].value)
    assert math.isnan(row.bias["encoder"].z)
    assert row.groups["encoder"].dsnr.flag == "fewer than 30 replicates"
    assert "dreg" in str(found)
    assert json.loads(found.to_json())["rows"]["dreg"]["ratio"]["encoder"]["value"] == "nan"


# Errors.


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((), {}, "arms is empty: give estimators by name"),
        (("iwae", "dreg"), {"reference": "dregs"}, "unknown reference 'dregs': did you mean 'dreg'"),
        (("iwae",), {"replicates": 0}, "replicates is 0"),
        (("iwae",), {"chunk": 0}, "chunk is 0"),
        (("iwae",), {"samples": 0}, "samples is 0"),
        (("iwae",), {"target_se": 0.0}, "target_se is 0.0: it must be positive and finite"),
        (("iwae",), {"groups": ("encodr",)}, "unknown group of parameters 'encodr': did you mean 'encoder'"),
        (("iwae",), {"timings": -1}, "timings is -1"),
        (("iwae", "dreg"), {"noise": fv.noise.mirrored}, "dreg requires independent samples"),
    ],
)
def test_wrong_arguments_raise_an_error(given, options, message):
    with pytest.raises(BadValue, match=message):
        compare(arms(*given), *tiny(), KEY, **{"samples": 2, **options})


def test_wrong_estimators_keys_noise_and_data_raise_an_error():
    args = (*tiny(), KEY)
    with pytest.raises(BadType, match=r"'a' is 'iwae': give an estimator, such as estimators.iwae\(\)"):
        compare({"a": "iwae"}, *args, samples=2)
    with pytest.raises(BadType, match="it must be an int32 tensor"):
        compare(arms("iwae"), *tiny(), torch.zeros(2), samples=2)
    with pytest.raises(BadValue, match=r"eps has shape \[3, 2, 2\]: it must be \[2, 2, 2\]"):
        compare(
            arms("iwae"), *args, samples=2, noise=lambda key, n, shape, dtype: fv.noise.iid(key, 3, shape, dtype=dtype)
        )
    model, params, state, x = tiny()
    with pytest.raises(
        BadData, match=r"the data are torch\.float32 and the parameters torch\.float64: convert the data"
    ):
        compare(arms("iwae"), model, params, state, x.float(), KEY, samples=2)


def test_a_gradient_that_is_not_finite_raises_an_error_that_names_the_estimator():
    def breaks(model, params, state, x, eps, *, train):
        out = parse("iwae")(model, params, state, x, eps, train=train)
        return out._replace(grads=tree.map(lambda g: g / (eps[0, 0, 0] < 1), out.grads))

    with pytest.raises(NonFinite, match=r"mine: the gradient or bound of replicate \d+ is not finite"):
        compare({"iwae": parse("iwae"), "mine": breaks}, *tiny(), KEY, samples=2, replicates=50)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_comparison_on_cuda_equals_that_on_the_cpu():
    model, params, state, x = tiny()
    here = compare(arms("iwae", "dreg"), model, params, state, x, KEY, samples=2, replicates=40)
    there = compare(
        arms("iwae", "dreg"), model, *tree.map(torch.Tensor.cuda, (params, state, x)), KEY, samples=2, replicates=40
    )
    for name, row in here.rows.items():
        assert there.rows[name].groups["all"].variance.value == pytest.approx(
            row.groups["all"].variance.value, rel=1e-8
        )
