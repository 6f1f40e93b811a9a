"""Draws from a key in forward: torch's formulas, exact structure, and mean and variance in standard errors."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from funcvae import random
from funcvae._support.keyed_draws import InForward

KEY, P, N = random.key(3), 0.3, 100_000


def drawn(draw, key=KEY):
    with InForward(key):
        return draw()


def assert_moments(x, mean, variance, kurtosis=9.0):
    """Within five standard errors, which allow a kurtosis."""
    x = x.double().flatten()
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / len(x))
    assert abs(x.var() - variance) < 5 * variance * math.sqrt(kurtosis / len(x))


SAMPLES = {
    "randn": (lambda: torch.randn(N), 0, 1),
    "randn(size)": (lambda: torch.randn(2, N // 2, dtype=torch.float64), 0, 1),
    "randn_like": (lambda: torch.randn_like(torch.zeros(N)), 0, 1),
    "normal_": (lambda: torch.empty(N).normal_(2, std=3), 2, 9),
    "normal": (lambda: torch.normal(2.0, 3.0, (N,)), 2, 9),
    "normal around": (lambda: torch.normal(torch.full((N,), 2.0), std=3.0), 2, 9),
    "rand": (lambda: torch.rand(size=(N,)), 1 / 2, 1 / 12),
    "rand_like": (lambda: torch.rand_like(torch.zeros(N)), 1 / 2, 1 / 12),
    "uniform_": (lambda: torch.empty(N).uniform_(1, 3), 2, 1 / 3),
    "bernoulli": (lambda: torch.bernoulli(torch.full((N,), P)), P, P * (1 - P)),
    "bernoulli with p": (lambda: torch.zeros(N).bernoulli(P), P, P * (1 - P)),
    "bernoulli_": (lambda: torch.zeros(N).bernoulli_(p=P), P, P * (1 - P)),
    "exponential_": (lambda: torch.zeros(N).exponential_(2), 1 / 2, 1 / 4),
    "randint": (lambda: torch.randint(low=2, high=5, size=(N,)), 3, 2 / 3),
    "randint below": (lambda: torch.randint(3, (N,)), 1, 2 / 3),
    "rsample": (lambda: torch.distributions.Normal(torch.full((N,), 2.0), 3.0).rsample(), 2, 9),
    "gumbel_softmax": (lambda: F.gumbel_softmax(torch.zeros(N, 2), hard=True)[:, 0], 1 / 2, 1 / 4),
    "rrelu": (lambda: F.rrelu(-torch.ones(N), 0.1, 0.4, training=True), -0.25, 0.3**2 / 12),
    "alpha_dropout": (lambda: F.alpha_dropout(random.normal(random.key(1), (N,)), P, training=True), 0, 1),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_draws_have_torchs_mean_and_variance_and_depend_on_the_key_alone(name):
    draw, mean, variance = SAMPLES[name]
    before = torch.get_rng_state()
    x = drawn(draw)
    assert_moments(x, mean, variance)
    assert torch.equal(drawn(draw), x)
    assert not torch.equal(drawn(draw, random.key(4)), x)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw().dtype == x.dtype
    assert draw().shape == x.shape
    torch.set_rng_state(before)


def test_a_wrong_scale_of_dropout_would_fail():
    x = torch.ones(N)
    kept = drawn(lambda: F.dropout(x, P))
    assert_moments(kept, 1, P / (1 - P))
    with pytest.raises(AssertionError):
        assert_moments(kept * (1 - P), 1, P / (1 - P))


@pytest.mark.parametrize("layer", [partial(nn.Dropout, P), partial(nn.Dropout, P, inplace=True)])
def test_dropout_zeroes_elements_or_scales_them(layer):
    x = random.normal(random.key(1), (50, 40))
    y = drawn(lambda: layer()(x.clone()))
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, x / (1 - P), 0.0))
    assert abs(kept.float().mean() - (1 - P)) < 5 * math.sqrt(P * (1 - P) / x.numel())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d, (40, 30, 5)),
        (nn.Dropout2d, (40, 30, 5, 4)),
        (nn.Dropout2d, (400, 5, 4)),
        (nn.Dropout3d, (40, 30, 2, 3, 4)),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_feature_dropout_drops_channels_whole(layer, shape):
    y = drawn(lambda: layer(P)(torch.ones(shape)))
    channels = y.flatten(2)  # torch reads three axes as [N, C, L]
    assert torch.equal(channels, channels[..., :1].expand_as(channels))
    assert_moments(channels[..., 0], 1, P / (1 - P))


def test_alpha_dropout_takes_two_values_at_a_constant():
    alpha = 1.7580993408473766
    a = ((1 + alpha**2 * P) * (1 - P)) ** -0.5
    for layer in (nn.AlphaDropout(P), nn.FeatureAlphaDropout(P)):
        y = drawn(lambda layer=layer: layer(torch.full((500, 40, 3), 0.7)))
        high, low = a * (0.7 + alpha * P), a * alpha * (P - 1)
        assert ((y - high).abs().minimum((y - low).abs()) < 1e-6).all()
    assert torch.equal(y, y[..., :1].expand_as(y))


def test_nothing_is_dropped_with_p_0_and_everything_with_p_1():
    x = random.normal(random.key(1), (5, 4))
    for f in (F.dropout, F.alpha_dropout):
        assert torch.equal(drawn(lambda f=f: f(x, 0.0, True)), x)
        assert torch.equal(drawn(lambda f=f: f(x, 1.0, True)), torch.zeros_like(x))
        assert torch.equal(drawn(lambda f=f: f(x, P, False)), x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.ones(5, 6).tril().bool()},
        {"attn_mask": torch.arange(30.0).view(5, 6) / 30},
        {"enable_gqa": True},
    ],
)
def test_attention_with_rare_dropout_is_torchs(options):
    q, k, v = (random.normal(random.key(i), (2, 4, n, 3), torch.float64) for i, n in enumerate((5, 6, 6)))
    if options.get("enable_gqa"):
        k, v = k[:, :2], v[:, :2]
    if isinstance(mask := options.get("attn_mask"), torch.Tensor) and mask.is_floating_point():
        options = {"attn_mask": mask.double()}
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    found = drawn(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=1e-12, **options))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "cell", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu"), partial(nn.LSTM, proj_size=2)]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_one_after_another_are_torchs(cell, packed, bidirectional):
    net = cell(3, 4, 3, dropout=1e-12, bidirectional=bidirectional, batch_first=True).double()
    x = random.normal(KEY, (2, 5, 3), torch.float64)
    x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True) if packed else x
    out, last = drawn(lambda: net(x))
    expected, expected_last = net.eval()(x)
    if packed:
        out, expected = out.data, expected.data
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(last, expected_last)


def test_dropout_between_recurrent_layers_leaves_out_whole_inputs():
    net = nn.RNN(1, 1, 2, dropout=P, bias=False, batch_first=True)
    for weight in net.parameters():
        nn.init.ones_(weight)
    out, _ = drawn(lambda: net(torch.full((N // 10, 1, 1), 0.5)))
    kept = math.tanh(math.tanh(0.5) / (1 - P))
    assert ((out == 0) | ((out - kept).abs() < 1e-6)).all()
    assert_moments(out, (1 - P) * kept, P * (1 - P) * kept**2)


def test_a_generator_of_its_own_is_used():
    with InForward(KEY):
        x = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, torch.randn(3, generator=torch.Generator().manual_seed(0)))
