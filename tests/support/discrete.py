"""Small models with discrete posteriors, and sums over all values of their latents."""

import itertools

import torch
from torch import nn

import funcvae as fv
from funcvae import tree

X = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


def bernoulli_model(latent=2):
    """A model of binary data with Bernoulli latents and a learned prior, with params and state, in float64."""
    return _model(fv.heads.bernoulli, fv.priors.learned_bernoulli(latent), latent)


def categorical_model(variables=2, classes=3):
    """The same with categorical latents."""
    prior = fv.priors.learned_categorical(classes, variables)
    return _model(fv.heads.categorical(classes), prior, variables * classes)


def _model(posterior, prior, latent):
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, latent)),
        decoder=lambda: nn.Sequential(nn.Linear(latent, 5), nn.Tanh(), nn.Linear(5, 4)),
        posterior=posterior,
        prior=prior,
        latent=latent,
    )
    params, state = model.init(fv.random.key(4))
    params = tree.map(lambda t: 2.5 * t.double(), params)
    start = {name: torch.linspace(-0.5, 0.4, t.numel()).double().view(t.shape) for name, t in params["prior"].items()}
    return model, {**params, "prior": start}, state


def joint_values(q, latent):
    """All values of the latents of one datum [S, 1, Z]."""
    of_variable = q.values()
    variables = latent // of_variable.shape[1]
    rows = itertools.product(range(len(of_variable)), repeat=variables)
    return torch.stack([of_variable[list(row)].flatten() for row in rows]).unsqueeze(1)


def exact_gradient(model, params, state, x, target, samples):
    """The bound of one datum and its gradient to descend, by autograd of the sum over all values.

    The target is "ELBO", "L_K" or a function log_w [K, B] -> [B].
    """
    target = {"ELBO": fv.bounds.elbo, "L_K": fv.bounds.iwae}.get(target, target)
    params = tree.map(lambda t: t.clone().requires_grad_(), params)
    q, _ = model.encode(params, state, x)
    z = joint_values(q, model.latent)
    log_q = q.log_prob(z).sum(-1)[:, 0]
    log_p = model.decode(params, state, z)[0].log_prob(x).sum(-1) + model.prior(params, state, z)[0].log_prob(z).sum(-1)
    f = log_p[:, 0] - log_q
    draws = torch.cartesian_prod(*[torch.arange(len(z))] * samples).view(-1, samples).T
    bound = (log_q[draws].sum(0).exp() * target(f[draws])).sum()
    grads = torch.autograd.grad(-bound, tree.leaves(params))
    return bound.detach(), tree.like(list(grads), params)
