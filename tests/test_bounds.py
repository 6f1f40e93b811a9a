"""Bounds against decimal arithmetic, and their gradients against the known weights."""

from decimal import Decimal

import pytest
import torch
from torch.func import grad, vmap

from funcvae import bounds, random

LOG_W = {
    "ordinary": [-1.5, 0.25, -0.75, 2.0],
    "one": [-86.35],
    "low": [-100_000.0, -100_001.0, -100_002.5],
    "high": [90_000.0, 90_001.0, 89_998.0],
    "apart": [-10_000.0, 0.0, -3.0, 0.5],
    "impossible": [float("-inf"), -2.0, -1.0],
}


def exact(name, column):
    if name == "elbo":
        return float(sum(map(Decimal, column)) / len(column))
    return float((sum(Decimal(f).exp() for f in column if f > float("-inf")) / len(column)).ln())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", LOG_W)
@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_bound_equals_decimal_arithmetic(name, case, dtype):
    column = LOG_W[case]
    log_w = torch.tensor([column, column[::-1]], dtype=dtype).T
    expected = float("-inf") if (name, case) == ("elbo", "impossible") else exact(name, column)
    value = getattr(bounds, name)(log_w)
    assert value.shape == (2,)
    torch.testing.assert_close(value, torch.full((2,), expected, dtype=dtype))


def test_a_second_sample_of_weight_zero_lowers_the_iwae_bound_by_log_2():
    log_w = torch.tensor([[0.3], [0.3]], dtype=torch.float64)
    without = bounds.iwae(log_w)
    log_w[1] = float("-inf")
    torch.testing.assert_close(bounds.iwae(log_w), without - torch.tensor(2.0).double().log())


def test_iwae_is_never_below_elbo_and_equals_it_at_one_sample():
    log_w = 20 * random.normal(random.key(0), (5, 100), torch.float64)
    assert (bounds.iwae(log_w) > bounds.elbo(log_w)).all()
    torch.testing.assert_close(bounds.iwae(log_w[:1]), bounds.elbo(log_w[:1]))


def test_adding_a_constant_to_the_log_weights_adds_it_to_the_bound():
    log_w = random.normal(random.key(1), (5, 10), torch.float64)
    for bound in (bounds.elbo, bounds.iwae):
        torch.testing.assert_close(bound(log_w + 7.0), bound(log_w) + 7.0)


def test_gradients_are_the_weights_and_stay_finite():
    log_w = torch.tensor(LOG_W["apart"]).unsqueeze(1)
    torch.testing.assert_close(grad(lambda f: bounds.iwae(f).sum())(log_w), log_w.softmax(0))
    torch.testing.assert_close(grad(lambda f: bounds.elbo(f).sum())(log_w), torch.full_like(log_w, 0.25))
    impossible = torch.tensor(LOG_W["impossible"]).unsqueeze(1)
    assert grad(lambda f: bounds.iwae(f).sum())(impossible)[0] == 0


def test_vmap_over_replicates_equals_a_loop():
    log_w = random.normal(random.key(2), (3, 5, 10))
    for bound in (bounds.elbo, bounds.iwae):
        torch.testing.assert_close(vmap(bound)(log_w), torch.stack([bound(f) for f in log_w]))


OTHERS = {
    "renyi": (bounds.renyi(0.5), lambda f: 2 * (sum((Decimal(v) / 2).exp() for v in f) / len(f)).ln()),
    "renyi, negative": (bounds.renyi(-1), lambda f: (sum((2 * Decimal(v)).exp() for v in f) / len(f)).ln() / 2),
    "renyi, above one": (bounds.renyi(3), lambda f: -(sum((-2 * Decimal(v)).exp() for v in f) / len(f)).ln() / 2),
    "miwae": (bounds.miwae(2), lambda f: sum(Decimal(exact("iwae", half)) for half in (f[:2], f[2:])) / 2),
    "ciwae": (bounds.ciwae(0.25), lambda f: Decimal(0.25 * exact("elbo", f) + 0.75 * exact("iwae", f))),
    "tvo": (bounds.tvo((0, 0.25, 1)), lambda f: (Decimal(exact("elbo", f)) + 3 * tempered(f, Decimal("0.25"))) / 4),
}


def tempered(column, beta):
    weights = [(beta * Decimal(v)).exp() for v in column]
    return sum(w * Decimal(v) for w, v in zip(weights, column, strict=True)) / sum(weights)


@pytest.mark.parametrize("case", ["ordinary", "apart"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_bounds_equal_decimal_arithmetic(name, case):
    bound, known = OTHERS[name]
    log_w = torch.tensor(LOG_W[case], dtype=torch.float64).unsqueeze(1)
    assert bound(log_w).item() == pytest.approx(float(known(LOG_W[case])), rel=1e-12)


def test_the_bounds_have_the_known_order():
    log_w = 3 * random.normal(random.key(4), (6, 200), torch.float64)
    ladder = [
        bounds.renyi(2.0), bounds.elbo, bounds.renyi(0.9), bounds.renyi(0.5), bounds.renyi(0.1), bounds.iwae,
        bounds.renyi(-1.0),
    ]  # fmt: skip
    values = torch.stack([bound(log_w) for bound in ladder])
    assert (values.diff(dim=0) > 0).all()
    for between in (bounds.miwae(2), bounds.miwae(3), bounds.ciwae(0.5), bounds.tvo((0, 0.5, 1))):
        assert (between(log_w) > bounds.elbo(log_w)).all()
        assert (between(log_w) < bounds.iwae(log_w)).all()


def test_families_of_bounds_have_elbo_and_iwae_as_limits():
    log_w = random.normal(random.key(5), (6, 20), torch.float64)
    pairs = [
        (bounds.renyi(0), bounds.iwae), (bounds.renyi(1 - 1e-9), bounds.elbo), (bounds.miwae(1), bounds.iwae),
        (bounds.miwae(6), bounds.elbo), (bounds.ciwae(0), bounds.iwae), (bounds.ciwae(1), bounds.elbo),
        (bounds.tvo((0, 1)), bounds.elbo),
    ]  # fmt: skip
    for general, special in pairs:
        torch.testing.assert_close(general(log_w), special(log_w), rtol=0, atol=1e-6)


def test_tvo_with_a_fine_partition_approaches_iwae():
    log_w = random.normal(random.key(6), (6, 20), torch.float64)
    fine = bounds.tvo([i / 1000 for i in range(1001)])(log_w)
    assert ((bounds.iwae(log_w) - fine).abs() < 5e-3).all()
    assert (fine < bounds.iwae(log_w)).all()


def test_one_sample_of_weight_zero_leaves_ciwae_0_and_renyi_and_tempered_means_finite():
    log_w = torch.tensor(LOG_W["impossible"], dtype=torch.float64).unsqueeze(1)
    assert bounds.ciwae(0)(log_w).isfinite().all()
    assert bounds.renyi(0.5)(log_w).isfinite().all()
    w, mean = bounds.tempered_mean(log_w, 0.5)
    assert w[0] == 0
    assert mean.isfinite().all()


@pytest.mark.parametrize("alpha", [0.9, 0.9999, 0.99999])
def test_the_renyi_bound_is_accurate_near_the_elbo(alpha):
    log_w = random.normal(random.key(7), (6, 20)) - 540
    exact = bounds.renyi(alpha)(log_w.double())
    torch.testing.assert_close(bounds.renyi(alpha)(log_w).double(), exact, rtol=0, atol=2e-4)
    plain = ((1 - alpha) * log_w).logsumexp(0) - torch.tensor(6.0).log()
    assert alpha < 0.99 or (plain / (1 - alpha) - exact).abs().max() > 1e-3  # the naive formula
    slope = grad(lambda f: bounds.renyi(alpha)(f).sum())(log_w.double())
    torch.testing.assert_close(slope, ((1 - alpha) * log_w.double()).softmax(0))
