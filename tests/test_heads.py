"""Each head against its formula."""

import pytest
import torch
from torch import nn

from funcvae import heads, random, vae
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    FullNormal,
    Normal,
    RelaxedBernoulli,
    RelaxedCategorical,
    SignedNormal,
)
from funcvae.errors import BadType, BadValue
from tests.support.posteriors import weights

OUT = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 4)
A, B = OUT[..., :2], OUT[..., 2:]


@pytest.mark.parametrize("out", [OUT, (A, B)], ids=["halved", "tuple"])
def test_normal_heads_follow_their_formulas(out):
    for head, sigma in ((heads.normal_logvar, (B / 2).exp()), (heads.normal_logsigma, B.exp())):
        q = head(out)
        assert isinstance(q, Normal)
        assert torch.equal(q.loc, A)
        assert torch.equal(q.sigma, sigma)
    torch.testing.assert_close(heads.normal_logvar(out).sigma ** 2, B.exp(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("out", [OUT, (A, B)], ids=["halved", "tuple"])
def test_signed_normal_does_not_transform_sigma(out):
    q = heads.signed_normal(out)
    assert isinstance(q, SignedNormal)
    assert torch.equal(q.loc, A)
    assert torch.equal(q.sigma, B)


def test_a_head_of_two_refuses_an_odd_width_and_names_it():
    for head in (heads.normal_logvar, heads.normal_logsigma, heads.signed_normal):
        with pytest.raises(BadValue, match="odd length 3"):
            head(torch.zeros(2, 3))


@pytest.mark.parametrize("sigma", [0.5**0.5, 0.1, 3.0])
def test_normal_fixed_is_a_squared_error_times_c_plus_a_constant(sigma):
    p = heads.normal_fixed(sigma)(OUT)
    x = OUT.flip(0)
    c = 1 / (2 * sigma**2)
    constant = -p.log_prob(OUT)
    assert (constant - constant[0, 0, 0]).abs().max() < 1e-12
    torch.testing.assert_close(-p.log_prob(x), c * (x - OUT) ** 2 + constant, rtol=1e-12, atol=1e-12)


def test_sigma_root_half_gives_the_plain_squared_error_and_sigma_one_half_does_not():
    def excess(sigma):
        p = heads.normal_fixed(sigma)(OUT)
        return p.log_prob(OUT) - p.log_prob(OUT + 1)

    torch.testing.assert_close(excess(0.5**0.5), torch.ones_like(OUT), rtol=1e-12, atol=0)
    assert (excess(0.5) - 1).abs().min() > 0.5


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-39])
def test_a_fixed_sigma_must_be_positive_and_in_the_range_of_the_output(sigma):
    with pytest.raises(BadValue, match="sigma"):
        heads.normal_fixed(sigma)(torch.ones(2, dtype=torch.float32))


def test_the_range_of_a_fixed_sigma_is_that_of_the_output():
    assert heads.normal_fixed(1e39)(torch.ones(2, dtype=torch.float64)).sigma == 1e39
    with pytest.raises(BadValue, match=r"sigma is 100000\.0: it is out of the range of torch\.float16"):
        heads.normal_fixed(1e5)(torch.ones(2, dtype=torch.float16))


def test_bernoulli_and_delta_do_not_transform_the_output():
    p, q = heads.bernoulli(OUT), heads.delta(OUT)
    assert isinstance(p, Bernoulli)
    assert isinstance(q, Delta)
    assert p.logits is q.loc is OUT


def test_full_normal_fills_the_triangle_by_rows_with_an_exponential_diagonal():
    out = torch.arange(18, dtype=torch.float64).reshape(2, 9) / 10
    q = heads.full_normal(out)
    assert isinstance(q, FullNormal)
    assert torch.equal(q.loc, out[:, :3])
    a, b, c, d, e, f = out[:, 3:].unbind(1)
    zero = torch.zeros(2).double()
    rows = [[a.exp(), zero, zero], [b, c.exp(), zero], [d, e, f.exp()]]
    torch.testing.assert_close(q.scale_tril, torch.stack([torch.stack(row, -1) for row in rows], -2))
    torch.testing.assert_close(heads.full_normal((out[:, :3], out[:, 3:])), q)
    assert heads.full_normal(torch.ones(4, 2)).scale_tril.shape == (4, 1, 1)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(3, 7), r"has 7 numbers for each datum: .* such as 5 for Z = 2 or 9 for Z = 3"),
        (torch.zeros(3, 1), r"has 1 numbers .* such as 2 for Z = 1 or 5 for Z = 2"),
        ((torch.zeros(3, 2), torch.zeros(3, 4)), r"has 6 numbers .* such as 5 for Z = 2"),
        ((torch.zeros(3, 3), torch.zeros(3, 2)), r"has 5 numbers .* such as 9 for Z = 3"),
    ],
)
def test_full_normal_refuses_other_widths_and_names_the_right_ones(out, message):
    with pytest.raises(BadValue, match=message):
        heads.full_normal(out)


def test_two_layers_and_coupling_flow_exponentiate_log_sigma_and_keep_the_weights():
    layers, couplings = weights(0, 2, 3, 2), (weights(1, 1, 3, 2), weights(2, 1, 2))
    q, flow = heads.two_layers((A, B, layers)), heads.coupling_flow((A, B, couplings))
    for normal in (q.first, flow.base):
        assert torch.equal(normal.loc, A)
        assert torch.equal(normal.sigma, B.exp())
    assert q.layers == layers
    assert flow.couplings == couplings


PAIR = torch.zeros(4, 2), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("head", "out", "message"),
    [
        (heads.two_layers, PAIR, r"has 2 parts: this head takes \(loc, log_sigma, layers\)"),
        (heads.two_layers, (*PAIR, ()), "layers map 2 numbers to 2: .* an even number, in at least one layer"),
        (heads.two_layers, (*PAIR, weights(0, 2, 3)), "layers map 2 numbers to 3: .* to an even number"),
        (heads.two_layers, (*PAIR, weights(0, 3, 2)), r"shapes \[2, 3\] and \[2\]: it must be \[n, 2\] and \[n\]"),
        (heads.two_layers, (*PAIR, (PAIR[:1],)), r"has 1 tensors: it must be \(weight, bias\)"),
        (heads.coupling_flow, PAIR, r"has 2 parts: this head takes \(loc, log_sigma, couplings\)"),
        (heads.coupling_flow, (*PAIR, (weights(0, 1, 4),)), "coupling 1 map 1 numbers to 4: they must map them to 2"),
        (heads.coupling_flow, (PAIR[0][:, :1], PAIR[1][:, :1], ()), "needs two halves"),
        (
            heads.coupling_flow, (torch.zeros(4, 3), torch.zeros(4, 3), (weights(0, 1, 4), weights(0, 1, 4))),
            r"coupling 2 has shapes \[4, 1\] and \[4\]: it must be \[n, 2\]",
        ),
    ],
)  # fmt: skip
def test_heads_with_networks_refuse_weights_that_do_not_fit(head, out, message):
    with pytest.raises(BadValue, match=message):
        head(out)


def test_a_layer_without_a_bias_is_refused():
    with pytest.raises(BadType, match="a bias of layers is None"):
        heads.two_layers((*PAIR, ((torch.zeros(2, 2), None),)))


def test_categorical_has_the_logits_of_each_variable_in_a_row():
    q = heads.categorical(2)(OUT)
    assert isinstance(q, Categorical)
    assert q.logits.shape == (2, 3, 2, 2)
    assert torch.equal(q.logits.flatten(-2), OUT)
    assert q.mean.shape == OUT.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concrete_has_the_logits_of_bernoulli_or_categorical_and_the_temperature(dtype):
    out = OUT.to(dtype)
    one, many = heads.concrete(0.6)(out), heads.concrete(0.6, classes=4)(out)
    assert isinstance(one, RelaxedBernoulli)
    assert isinstance(many, RelaxedCategorical)
    assert one.logits is out
    assert torch.equal(many.logits, out.unsqueeze(-2))
    for q in (one, many):
        assert q.temperature.dtype == dtype
        assert q.temperature.item() == pytest.approx(0.6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-39])
def test_a_temperature_must_be_positive_and_in_the_range_of_the_output(temperature):
    with pytest.raises(BadValue, match="temperature is"):
        heads.concrete(temperature)(torch.ones(2, 2))


@pytest.mark.parametrize("head", [heads.categorical, lambda classes: heads.concrete(0.5, classes)])
def test_a_categorical_variable_has_two_classes_or_more_and_they_divide_the_output(head):
    for classes in (1, 0, -2):
        with pytest.raises(BadValue, match=f"classes is {classes}: it must be at least 2"):
            head(classes)
    with pytest.raises(BadValue, match="4 logits cannot be divided into variables of 3 classes: use a multiple of 3"):
        head(3)(OUT)
    with pytest.raises(BadType, match=r"classes is 2\.5"):
        head(2.5)
    with pytest.raises(BadValue, match=r"the network's output has shape \[\]"):
        head(2)(torch.zeros(()))


def test_a_categorical_posterior_of_another_width_than_latent_is_an_error():
    model = vae(encoder=lambda: nn.Linear(3, 6), decoder=lambda: nn.Linear(4, 3), latent=4,
                posterior=heads.categorical(3))  # fmt: skip
    with pytest.raises(BadValue, match=r"the posterior over z has shape \[2, 6\]: latent is 4, so \[2, 4\]"):
        model.encode(*model.init(random.key(0)), torch.zeros(2, 3))


def test_probabilities_are_clamped_where_their_logits_are_infinite():
    probs = torch.tensor([[0.0, 0.25, 1.0]])
    p, x = heads.bernoulli_probs(probs), torch.tensor([[0.0, 1.0, 1.0]])
    known = torch.distributions.Bernoulli(probs.clamp(1e-6, 1 - 1e-6)).log_prob(x)
    torch.testing.assert_close(p.log_prob(x), known, rtol=1e-5, atol=1e-7)
    assert heads.bernoulli(probs.logit()).log_prob(x).isfinite().all().logical_not()
