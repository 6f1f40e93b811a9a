"""Expectations over the noise of models with few Bernoulli or categorical latents: sums over cells of u = Φ(eps)."""

import itertools

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from funcvae import tree
from funcvae.distributions import Bernoulli
from tests.support.discrete import X, bernoulli_model


def published_model():
    """The Bernoulli model of two latents whose variances are known."""
    model, params, state = bernoulli_model()
    return model, {**params, "prior": {"logits": 2.5 * params["prior"]["logits"]}}, state


def log_weights(model, params, state, x, q, z):
    """log w [M, B] at z [M, B, Z] written out, for Bernoulli or categorical q and p(z), and p(x|z) of bits."""

    def log_p(p, z):
        if isinstance(p, Bernoulli):  # of grey values too
            return -binary_cross_entropy_with_logits(p.logits.expand_as(z), z, reduction="none").sum(-1)
        return (z.unflatten(-1, p.logits.shape[-2:]) * p.logits.log_softmax(-1)).sum((-2, -1))

    p_x, p_z = model.decode(params, state, z)[0], model.prior(params, state, z)[0]
    return log_p(p_x, x.expand_as(p_x.logits)) + log_p(p_z, z) - log_p(q, z)


def cells(steps, nodes):
    """Gauss-Legendre nodes u [S] of the intervals between the steps, and weights that add up to 1.

    Means are exact for polynomials in u of degree 2 `nodes` - 1 in each interval.
    """
    node, weight = np.polynomial.legendre.leggauss(nodes)
    edges = np.unique([0.0, *np.asarray(steps.detach()), 1.0])
    size = np.diff(edges)[:, None]
    return (edges[:-1, None] + size * (node + 1) / 2).ravel(), (size * weight / 2).ravel()


def product(axes):
    """All combinations [G, axes] of the points of several axes, and the products of their weights [G]."""
    points, weights = zip(*axes, strict=True)
    grid = torch.tensor(np.array(list(itertools.product(*points))))
    return grid, torch.tensor(np.array(list(itertools.product(*weights)))).prod(1)


def noise_grid(estimator, q, samples, nodes):
    """Noise [G, N, 1, Z] of one datum and weights [G], whose sums are the expectations of an estimator."""
    if estimator.points.breaks:
        u, weights = product([cells(steps, nodes) for steps in estimator.points.breaks(q)[:, 0].T] * samples)
        return torch.special.ndtri(u).view(len(u), samples, 1, -1), weights
    # Only z matters. Φ(±8) is beyond every probability, and the Gumbel noise of one class is by far the largest.
    values = q.values()
    z = values.repeat(1, q.loc.shape[-1] // values.shape[-1]).unsqueeze(1)
    p = q.log_prob(z).unflatten(-1, (-1, values.shape[-1])).sum(-1)[:, 0].exp()  # [S, V]
    which, weights = product([(range(len(values)), of_variable) for of_variable in p.T.tolist()] * samples)
    return torch.where(values[which] == isinstance(q, Bernoulli), -8.0, 8.0).view(
        len(which), samples, 1, -1
    ).double(), weights


def moments(estimator, trained, samples=1, nodes=2):
    """Mean and total variance of the gradient of one datum, as trees like params and {network: number}."""
    model, params, state = trained
    eps, weights = noise_grid(estimator, model.encode(params, state, X)[0], samples, nodes)
    torch.testing.assert_close(weights.sum(), torch.ones(()).double())
    mean = square = None
    for part, w in zip(eps.split(4096), weights.split(4096), strict=True):
        grads = torch.vmap(lambda e: estimator.estimate(model.unchecked(), params, state, X, e, False).grads)(part)
        sums = [tree.map(lambda t, r=r: torch.tensordot(w, t**r, 1), grads) for r in (1, 2)]  # noqa: B023
        mean, square = (
            sums if mean is None else [tree.map(torch.add, *pair) for pair in zip((mean, square), sums, strict=True)]
        )
    total = {
        name: sum(
            float((s - m**2).sum()) for s, m in zip(tree.leaves(square[name]), tree.leaves(mean[name]), strict=True)
        )
        for name in mean
    }
    return mean, total
