"""The model of points in the plane against its description."""

import pytest
import torch

import funcvae as fv
from funcvae import data, models
from funcvae.figures import decoding
from funcvae.models import SYSTEMS
from tests.support.networks import KEY, described, known, layers, linear


def test_gaussian2d_vae_is_the_network_described():
    model = models.gaussian2d_vae()
    params, state = described(model)
    assert layers(params["encoder"]) == layers(params["decoder"]) == {"shared.0": (2, 64), "param_layer": (64, 4)}
    x = fv.random.normal(fv.random.key(2), (5, 2), torch.float64)
    q, _ = model.encode(params, state, x)
    p, _ = model.decode(params, state, x)
    for part, distribution in {"encoder": q, "decoder": p}.items():
        out = linear(params[part], "param_layer", linear(params[part], "shared.0", x).tanh())
        known(distribution, loc=out[:, :2], sigma=(out[:, 2:] / 2).exp())


@pytest.mark.slow
def test_gaussian2d_vae_learns_the_true_mean_and_covariance_within_five_percent():
    """Trained by its recipe. Samples without the decoder's noise are too narrow."""
    recipe, dataset = SYSTEMS["gaussian2d_vae"].recipe, data.load("gaussian2d")
    model, opt = models.gaussian2d_vae(), recipe.optimizer(10)
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, _ = fv.train.fit(
        ts,
        model,
        fv.estimators.parse(recipe.estimator),
        opt,
        dataset.train,
        epochs=recipe.epochs,
        batch=recipe.batch,
        samples=recipe.samples,
        compile=False,
    )
    mean, cov = torch.tensor(data.GAUSSIAN2D_MEAN), torch.tensor(data.GAUSSIAN2D_COV)
    x = decoding.samples(model, ts.params, ts.state, fv.random.key(1), 100_000)
    assert ((x.mean(0) - mean).abs() < 0.05 * mean).all()
    assert ((x.T.cov() - cov).abs() < 0.05 * cov).all()
    means = decoding.samples(model, ts.params, ts.state, fv.random.key(1), 100_000, drawn=False)
    assert ((means.mean(0) - mean).abs() < 0.05 * mean).all()
    assert (means.T.cov().diag() < 0.95 * cov.diag()).all()


def test_gaussian2d_vae_takes_its_sizes():
    model = models.gaussian2d_vae(latent=3, hidden=5)
    params, _ = model.init(KEY)
    assert model.latent == 3
    assert layers(params["encoder"]) == {"shared.0": (2, 5), "param_layer": (5, 6)}
    assert layers(params["decoder"]) == {"shared.0": (3, 5), "param_layer": (5, 4)}
