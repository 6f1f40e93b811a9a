"""The split by the law of total variance, against the toy's closed forms."""

import math

import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue, NonFinite
from funcvae.estimators import parse
from funcvae.variance import sources
from tests.support.models import batch_norm_vae, generators
from tests.support.oracles import tiny, toy

KEY = fv.random.key(31)
N, B, K, M, S2 = 50, 25, 2, 0.8, 2 / 3
DATA = fv.random.normal(fv.random.key(1), (N, 1), torch.float64)


DRAWN = (1 - B / N) * float(DATA.var()) / B  # variance of the mean of B data drawn from N without replacement


def split(spec="elbo_mc", **options):
    return sources(parse(spec), *toy(M, S2), DATA, KEY, **{"batch": B, "samples": K, "batches": 800, **options})


def close(measured, known):
    return abs(measured.value - known) < 4 * measured.se + 1e-12


def test_both_parts_are_the_closed_forms():
    # the gradient in m has the mean 2 (m - x/2) given x, and the variance 4 s²/K; those in log s and mu have a mean
    # that does not depend on x, and variances (8 s⁴ + 4 s² δ²)/K and s²/K
    found = split().groups
    delta2 = float((M - DATA / 2).square().mean())
    known = {
        "encoder/m": (DRAWN, 4 * S2 / (K * B)),
        "encoder/log_s": (0.0, (8 * S2**2 + 4 * S2 * delta2) / (K * B)),
        "prior/mu": (0.0, S2 / (K * B)),
    }
    for name, (data, noise) in known.items():
        assert close(found[name].data, data), name
        assert close(found[name].noise, noise), name
        assert close(found[name].total, data + noise), name
        assert close(found[name].share, data / (data + noise)), name
        assert found[name].total.value == pytest.approx(found[name].data.value + found[name].noise.value)
    assert found["encoder/m"].data.value > 10 * found["encoder/m"].data.se
    assert abs(found["encoder/m"].data.value - float(DATA.var()) / B) > 4 * found["encoder/m"].data.se, (
        "not that N >> B"
    )


def test_the_variance_of_the_batches_means_contains_noise():
    found = split(samples=1, replicates=2, batches=400).groups["encoder/m"]
    raw = found.data.value + found.noise.value / 2  # the uncorrected variance of the batches' means
    assert abs(raw - DRAWN) > 8 * found.data.se
    assert close(found.data, DRAWN)


@pytest.mark.parametrize("batches", [15, pytest.param(30, marks=pytest.mark.slow)])
def test_standard_errors_are_the_scatter_between_keys(batches):
    runs = [
        sources(parse("elbo_mc"), *toy(M, S2), DATA, fv.random.key(s), batch=B, samples=K, batches=batches)
        for s in range(40)
    ]
    for field in ("data", "noise", "total", "share"):
        measured = [getattr(run.groups["encoder"], field) for run in runs]
        values, errors = torch.tensor([[m.value, m.se] for m in measured]).T
        assert float(values.std() / errors.square().mean().sqrt()) == pytest.approx(1, abs=0.45)


def test_more_samples_do_not_change_the_variance_of_the_data():
    """Many replicates, which cost little, make the few batches precise."""
    few, many = (split(samples=k, batches=200, replicates=16).groups["encoder/m"] for k in (1, 16))
    assert many.noise.value == pytest.approx(few.noise.value / 16, rel=0.1)
    assert abs(many.data.value - few.data.value) < 4 * math.hypot(many.data.se, few.data.se)
    assert many.share.value > few.share.value


def test_batches_of_all_data_have_no_variance_of_the_data():
    found = split(batch=N, batches=100).groups["all"]
    assert abs(found.data.value) < 4 * found.data.se


def test_a_random_observation_adds_to_the_variance_of_the_data():
    def jitter(key, x):
        return x + 2 * fv.random.normal(key, tuple(x.shape), x.dtype)

    found = split(batches=200, observe=jitter).groups["encoder/m"].data
    assert close(found, DRAWN + 4 / B)
    assert found.value - DRAWN > 4 * found.se


def test_results_repeat_bit_for_bit_and_leave_global_generators_unchanged():
    states, reported = generators(), []
    first = split(batches=20, progress=lambda *at: reported.append(at))
    assert first == split(batches=20)
    assert first != split(batches=20, samples=3)
    assert reported[-1] == (20, 20)
    assert len(reported) == 21
    assert generators() == states


def test_sources_print_as_a_table():
    lines = str(split(batches=100, groups=("*/m",))).splitlines()
    assert lines[0] == "100 batches of 25, 4 replicates of the noise in each; ± standard error"
    assert lines[1].split()[:3] == ["data", "noise", "total"]
    assert [line.split()[0] for line in lines[2:]] == ["all", "encoder", "prior"]


def test_batch_norm_in_training_mode():
    model = batch_norm_vae()
    params, state = model.init(fv.random.key(1))
    x = fv.random.bernoulli(fv.random.key(2), 0.5, (20, 3)).float()
    found = sources(parse("iwae"), model, params, state, x, KEY, batch=4, samples=2, batches=5, train=True)
    assert found.groups["decoder"].noise.value > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0: it must be at least 1"),
        ({"batch": 51}, "batch is 51: it must lie between 1 and 50"),
        ({"batches": 1}, "batches is 1: it must be at least 2"),
        ({"replicates": 1}, "replicates is 1: it must be at least 2"),
        ({"samples": 0}, "samples is 0"),
        ({"groups": ("enc",)}, "unknown group of parameters 'enc'"),
    ],
)
def test_wrong_arguments_raise_an_error(options, message):
    with pytest.raises(BadValue, match=message):
        split(**options)


def test_a_wrong_noise_scheme_and_a_gradient_that_is_not_finite_raise_an_error():
    with pytest.raises(BadValue, match="dreg requires independent samples"):
        split("dreg", noise=fv.noise.mirrored)
    model, params, state, x = tiny()
    params["decoder"]["0.bias"] = params["decoder"]["0.bias"] * math.nan
    with pytest.raises(NonFinite, match="batch 0: the gradient or bound of replicate 0 is not finite"):
        sources(parse("iwae"), model, params, state, x, KEY, batch=1, samples=1)
