"""Reconstruction errors against the ELBO and on a point posterior."""

import math

import torch
from torch import nn

import funcvae as fv
from funcvae import evaluate
from tests.support.oracles import tiny

KEY = fv.random.key(0)


def test_the_elbo_is_minus_the_reconstruction_error_minus_the_kl():
    model, params, state, x = tiny()
    error = evaluate.reconstruction_error(model, params, state, x, KEY, samples=4000)
    kl = evaluate.kl_per_dimension(model, params, state, x).sum()
    log_w = evaluate.log_weights(model, params, state, x, fv.random.key(1), samples=4000, chunk=500)
    difference = log_w.mean() - (-error.mean - kl)
    noise = math.hypot(error.mean_se, float(log_w.var(0).mean() / 4000 / 2) ** 0.5)
    assert abs(difference) < 4 * noise


def test_reconstruction_and_squared_error_agree_on_a_point_posterior():
    model = fv.vae(
        encoder=lambda: nn.Linear(3, 2),
        decoder=lambda: nn.Linear(2, 3),
        posterior=fv.heads.delta,
        likelihood=fv.heads.normal_fixed(0.5**0.5),
        latent=2,
    )
    params, state = model.init(KEY)
    x = fv.random.normal(KEY, (7, 3))
    squared = evaluate.squared_error(model, params, state, x, batch=2)
    error = evaluate.reconstruction_error(model, params, state, x, KEY, samples=2, batch=3)
    torch.testing.assert_close(error.value, squared + 1.5 * math.log(math.pi), rtol=1e-5, atol=1e-5)
    assert error.se.abs().max() < 1e-6
