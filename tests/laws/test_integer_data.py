"""Integer, bool and byte data give the numbers of the same data in the dtype of the parameters."""

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import evaluate, tree, variance
from funcvae.estimators import parse
from funcvae.figures import decoding
from funcvae.train import fit, init

KEY = fv.random.key(6)
BITS = fv.random.bernoulli(KEY, 0.4, (8, 5))
KINDS = [torch.bool, torch.uint8, torch.int64]
pytestmark = pytest.mark.filterwarnings("ignore::funcvae.evaluate.Untrusted")


class Embedded(nn.Linear):
    """Takes data of any dtype."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


def made(dtype, likelihood=fv.heads.bernoulli):
    model = fv.vae(
        encoder=lambda: Embedded(5, 4, dtype=dtype),
        decoder=lambda: nn.Linear(2, 5, dtype=dtype),
        latent=2,
        likelihood=likelihood,
    )
    return model, *model.init(KEY)


def trained(model, data, estimator="iwae", **settings):
    opt = fv.optim.adam()
    ts, history = fit(
        init(model, opt, KEY),
        model,
        parse(estimator),
        opt,
        data,
        test=data,
        batch=4,
        samples=2,
        compile=False,
        **settings,
    )
    return ts.params, torch.tensor(history.test_bound)


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in tree.rows(a, b))


USES = {
    "estimator": lambda trained, x: parse("dreg")(
        *trained, x, fv.noise.iid(KEY, 2, (8, 2), dtype=trained[1]["decoder"]["weight"].dtype), train=True
    ),
    "fit": lambda trained_, x: trained(trained_[0], x),
    "by_samples": lambda trained_, x: trained(trained_[0], x, shards=2, split=fv.distributed.by_samples),
    "moments": lambda trained, x: variance.moments(parse("iwae"), *trained, x, KEY, samples=2, replicates=5).mean,
    "sources": lambda trained, x: torch.tensor(
        variance.sources(parse("iwae"), *trained, x, KEY, batch=2, samples=2, batches=3, replicates=2)
        .groups["all"].noise.value
    ),
    "exact": lambda trained, x: variance.exact(
        parse("iwae"), *trained, x[:1], samples=1, nodes=3, tolerance=10.0
    ).covariance,
    "log_weights": lambda trained, x: evaluate.log_weights(*trained, x, KEY, samples=4),
    "reconstruction": lambda trained, x: evaluate.reconstruction_error(*trained, x, KEY).value,
    "squared_error": lambda trained, x: evaluate.squared_error(*trained, x),
    "figures": lambda trained, x: (decoding.reconstructed(*trained, x, KEY), decoding.samples(*trained, KEY, 3)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("use", USES)
def test_data_of_any_dtype_give_the_same_bits(use, dtype):
    model = made(dtype)
    floats = USES[use](model, BITS.to(dtype))
    for kind in KINDS:
        assert same_bits(USES[use](model, BITS.to(kind)), floats)


@pytest.mark.parametrize("kind", KINDS)
def test_a_normal_likelihood_takes_data_of_any_dtype(kind):
    model = made(torch.float32, fv.heads.normal_fixed(0.5))
    assert same_bits(USES["fit"](model, BITS.to(kind)), USES["fit"](model, BITS.float()))


@pytest.mark.parametrize("estimator", ["iwae", "elbo"])
def test_bytes_that_observe_turns_into_floats_equal_the_floats(estimator):
    data = (torch.arange(40).view(8, 5) * 6).to(torch.uint8)
    model, *_ = made(torch.float32)
    from_bytes = trained(model, data, estimator, observe=lambda key, x: x.float() / 255)
    assert same_bits(from_bytes, trained(model, data.float() / 255, estimator))


def test_the_bytes_that_observe_returns_must_fit_the_likelihood():
    data = torch.full((8, 5), 200, dtype=torch.uint8)
    with pytest.raises(fv.errors.BadData, match="observed train ranges from 2 to 2: a Bernoulli likelihood requires"):
        trained(made(torch.float32)[0], data, observe=lambda key, x: x.float() / 100)


def test_noise_of_another_dtype_is_an_error_for_integer_data_too():
    with pytest.raises(fv.errors.BadValue, match=r"eps is torch\.float64 and the parameters are torch\.float32"):
        parse("iwae")(*made(torch.float32), BITS.long(), torch.zeros(2, 8, 2, dtype=torch.float64), train=True)
