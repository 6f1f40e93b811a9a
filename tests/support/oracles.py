"""Known results: the linear-Gaussian toy in closed form, expectations by quadrature, tests in standard errors.

The toy is Rainforth et al. (2018), arXiv:1802.04537: p(z) = N(mu, I), p(x|z) = N(z, I), q(z|x) = N(m, s² I). The
closed forms are for one dimension. The exact posterior has mean m* = (x + mu)/2 and variance ½, and delta = m - m*.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae import tree
from funcvae.distributions import Normal

S2 = 2 / 3


class ToyEncoder(nn.Module):
    """q(z|x) = N(m, s²) with parameters m and log s for each dimension."""

    def __init__(self, m, s2, latent):
        super().__init__()
        self.m = nn.Parameter(torch.full((latent,), m, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.full((latent,), 0.5 * math.log(s2), dtype=torch.float64))

    def forward(self, x):
        return self.m.expand_as(x), self.log_s.expand_as(x)


class LearnedPrior(nn.Module):
    """N(mu, 1) with a learned mean."""

    def __init__(self, mu, latent):
        super().__init__()
        self.mu = nn.Parameter(torch.full((latent,), mu, dtype=torch.float64))

    def forward(self, z):
        return Normal(self.mu, torch.ones_like(self.mu))


def toy(m=0.8, s2=S2, mu=0.0, latent=1):
    """The toy as a model in float64, with its params and state."""
    model = fv.vae(
        encoder=lambda: ToyEncoder(m, s2, latent),
        decoder=nn.Identity,
        posterior=fv.heads.normal_logsigma,
        likelihood=fv.heads.normal_fixed(1.0),
        prior=lambda: LearnedPrior(mu, latent),
        latent=latent,
    )
    return model, *model.init(fv.random.key(0))


def double(params):
    """The tree with its floating-point leaves in float64."""
    return tree.map(lambda t: t.double() if t.is_floating_point() else t, params)


def tiny(encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh()), **kwargs):
    """A nonlinear model of points in the plane with two latents and a learned prior, and two points, in float64."""
    model = fv.vae(
        encoder=encoder,
        decoder=lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        latent=2,
        **{"likelihood": fv.heads.normal_fixed(1.0), "prior": lambda: LearnedPrior(0.3, 2), **kwargs},
    )
    params, state = model.init(fv.random.key(1))
    x = torch.tensor([[0.5, -0.3], [-0.2, 0.8]], dtype=torch.float64)
    return model, double(params), state, x


def noise(n, b, z, seed=0):
    """Independent noise [n, b, z] in float64."""
    return fv.noise.iid(fv.random.key(seed), n, (b, z), dtype=torch.float64)


# Closed forms, for one dimension.


def log_evidence(x, mu=0.0):
    """log p(x) = log N(x; mu, 2)."""
    return -0.25 * (x - mu) ** 2 - 0.5 * math.log(4 * math.pi)


def posterior(x, mu=0.0):
    """Mean and variance of p(z|x)."""
    return (x + mu) / 2, 0.5


def gap(m, s2, x, mu=0.0):
    """KL(q ‖ p(z|x)) = log p(x) - ELBO."""
    delta = m - posterior(x, mu)[0]
    return 0.5 * (2 * s2 - 1 - math.log(2 * s2)) + delta**2


def elbo(m, s2, x, mu=0.0):
    """log p(x) - KL(q ‖ p(z|x))."""
    return log_evidence(x, mu) - gap(m, s2, x, mu)


def log_weight_variance(m, s2, x, mu=0.0):
    """Var log w under q."""
    delta = m - posterior(x, mu)[0]
    return 2 * (0.5 - s2) ** 2 + 4 * s2 * delta**2


def gradient_means(m, s2, x, mu=0.0):
    """The ELBO's derivatives in m and log s."""
    return -2 * (m - posterior(x, mu)[0]), 1 - 2 * s2


def gradient_variances(name, m, s2, x, mu=0.0):
    """Var of one sample's gradient in m and in log s."""
    delta = m - posterior(x, mu)[0]
    return {
        "elbo_mc": (4 * s2, 8 * s2**2 + 4 * s2 * delta**2),
        "elbo": (s2, s2 * (x - m) ** 2 + 2 * s2**2),
        "stl": ((1 - 2 * s2) ** 2 / s2, 2 * (1 - 2 * s2) ** 2 + 4 * s2 * delta**2),
    }[name]


def iwae_asymptote(dimensions=1):
    """gamma, where log p(x) - E L_K -> gamma/(2K) at s² = 2/3 and delta = 0."""
    return (16 / 15) ** (dimensions / 2) - 1


def iwae_bound(k, m, s2, x, mu=0.0, nodes=60):
    """E L_K of the toy by Gauss–Hermite quadrature, with numpy only."""
    eps, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z = m + math.sqrt(s2) * eps
    log_w = -0.5 * (x - z) ** 2 - 0.5 * (z - mu) ** 2 - 0.5 * math.log(2 * math.pi) + 0.5 * eps**2 + 0.5 * math.log(s2)
    w = np.exp(log_w)
    total = sum(np.meshgrid(*[w] * k, indexing="ij"))
    joint = np.prod(np.meshgrid(*[weights / weights.sum()] * k, indexing="ij"), axis=0)
    return float((joint * np.log(total / k)).sum())


def by_hand(weights, k, m, s2, x, mu=0.0, nodes=60):
    """Mean and variance of an estimator's ascent direction in m, log s and mu on the toy, with numpy only.

    `weights` maps log-weights [k, G] to (path, score, theta). z = m + s eps, so that with q's parameters held
    constant ∂ log w/∂z = (x - z) - (z - mu) + (z - m)/s², and ∇ log q is eps/s in m and eps² - 1 in log s.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    eps = np.stack([axis.ravel() for axis in np.meshgrid(*[node] * k, indexing="ij")])
    joint = np.prod(np.meshgrid(*[weight / weight.sum()] * k, indexing="ij"), axis=0).ravel()
    s = math.sqrt(s2)
    z = m + s * eps
    log_w = -0.5 * (x - z) ** 2 - 0.5 * (z - mu) ** 2 + 0.5 * eps**2 + math.log(s) - 0.5 * math.log(2 * math.pi)
    path, score, theta = weights(log_w)
    in_z = (x - z) - (z - mu) + eps / s
    grads = {
        "m": (path * in_z + score * eps / s).sum(0),
        "log_s": (path * in_z * s * eps + score * (eps**2 - 1)).sum(0),
        "mu": (theta * (z - mu)).sum(0),
    }
    means = {name: joint @ g for name, g in grads.items()}
    return {name: (means[name], joint @ (g - means[name]) ** 2) for name, g in grads.items()}


# Expectations over the noise of any small model.


def grid(samples, latent, nodes):
    """Gauss–Hermite nodes for eps [G, samples, 1, latent] on a tensor grid, and their weights [G], which sum to one."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    axes = samples * latent
    eps = torch.tensor(np.stack([a.ravel() for a in np.meshgrid(*[node] * axes, indexing="ij")], -1))
    weights = torch.ones(1, dtype=torch.float64)
    for _ in range(axes):
        weights = torch.outer(weights, torch.tensor(weight)).flatten()
    return eps.reshape(-1, samples, 1, latent), weights


def quadrature(estimator, model, params, state, x, samples, nodes):
    """The mean and variance of `Estimate.grads` over the noise by Gauss–Hermite quadrature, as trees like params."""
    points, weights = grid(samples, model.latent, nodes)
    means, variances = [], []
    for datum in x.split(1):  # the data have independent noise
        mean = square = None
        for eps, w in zip(points.split(8192), weights.split(8192), strict=True):
            g = torch.vmap(lambda e: estimator(model, params, state, datum, e, train=False).grads)(eps)  # noqa: B023
            first = tree.map(lambda t: torch.tensordot(w, t, 1), g)  # noqa: B023
            second = tree.map(lambda t: torch.tensordot(w, t.square(), 1), g)  # noqa: B023
            mean = first if mean is None else tree.map(torch.add, mean, first)
            square = second if square is None else tree.map(torch.add, square, second)
        means.append(mean)
        variances.append(tree.map(lambda s, m: (s - m.square()) / len(x) ** 2, square, mean))
    return tree.map(lambda *t: sum(t) / len(x), *means), tree.map(lambda *t: sum(t), *variances)


def under_mirrored_noise(estimator):
    """The estimator and its bound as functions of one half of the noise; the other half is its negative."""

    def call(model, params, state, x, half, *, train):
        return estimator(model, params, state, x, torch.cat([half, -half]), train=train)

    def bound(model, params, state, x, half):
        return estimator.bound(model, params, state, x, torch.cat([half, -half]))

    return call, bound


def quadrature_bound(bound, model, params, state, x, samples, nodes, chunk=8192):
    """The exact mean over noise and batch of a function (model, params, state, x, eps) -> [B], and its gradient."""

    def part(params, eps, weights):
        values = torch.vmap(lambda e: bound(model, params, state, x, e.expand(-1, len(x), -1)).mean())(eps)
        return (weights * values).sum()

    value, gradient = 0.0, tree.zeros_like(params)
    for eps, weights in zip(*(t.split(chunk) for t in grid(samples, model.latent, nodes)), strict=True):
        slope, here = torch.func.grad_and_value(part)(params, eps, weights)
        value, gradient = value + float(here), tree.map(torch.add, gradient, slope)
    return value, gradient


def log_weights(model, params, state, x, eps):
    """log w [K, B] written out with torch.distributions for normal posteriors and priors, sample by sample."""
    q, _ = model.encode(params, state, x)
    rows = []
    for e in eps:
        z = q.loc + q.sigma * e
        p_x, p_z = model.decode(params, state, z)[0], model.prior(params, state, z)[0]
        if isinstance(p_x, Normal):
            log_p_x = torch.distributions.Normal(*p_x, validate_args=False).log_prob(x)
        else:
            log_p_x = -nn.functional.binary_cross_entropy_with_logits(p_x.logits, x, reduction="none")
        log_p_z = torch.distributions.Normal(*p_z, validate_args=False).log_prob(z)
        log_q = torch.distributions.Normal(*q, validate_args=False).log_prob(z)
        rows.append(log_p_x.flatten(1).sum(1) + log_p_z.sum(1) - log_q.sum(1))
    return torch.stack(rows)


def descent(bound, params):
    """Minus the gradient of a function params -> bound [B], averaged over the batch."""
    return grad(lambda p: -bound(p).mean())(params)


def assert_close(actual, expected, atol, rtol=0.0):
    """Asserts that two trees have the same structure and close leaves."""
    assert tree.structure(actual) == tree.structure(expected)
    for name, leaf in tree.named_leaves(actual).items():
        torch.testing.assert_close(
            leaf, tree.named_leaves(expected)[name], atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_zero_mean(samples, z=5.0):
    """Asserts that the mean of the samples [R, ...] is within z standard errors of zero in every coordinate."""
    samples = torch.as_tensor(samples, dtype=torch.float64)
    error = samples.std(0) / math.sqrt(len(samples))
    assert bool((error > 0).all()), "samples without variance cannot test a mean"
    score = samples.mean(0) / error
    worst = float(score.abs().max())
    assert worst <= z, f"a mean is {worst:.1f} standard errors from zero"
