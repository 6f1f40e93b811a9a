"""The VAE: three networks and two heads as pure functions over parameter pytrees."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from funcvae import heads, priors, random, tree
from funcvae.distributions import Distribution, Posterior
from funcvae.errors import BadValue
from funcvae.module import Functional, Params, State, functional


class VAE(NamedTuple):
    """A latent-variable model p(z) p(x|z) with its recognition network q(z|x).

    `params` and `state` are {"encoder": {...}, "decoder": {...}, "prior": {...}}; each function returns the state as
    its network left it.
    """

    init: Callable[[random.Key], tuple[Params, State]]
    encode: Callable[..., tuple[Posterior, State]]
    """(params, state, x [B, ...], train=False) -> (q(z|x), state)"""
    decode: Callable[..., tuple[Distribution, State]]
    """(params, state, z [B, Z] or [N, B, Z], train=False) -> (p(x|z), state)"""
    prior: Callable[..., tuple[Distribution, State]]
    """(params, state, z, train=False) -> (p(z), state)"""
    latent: int


def vae(
    *,
    encoder: Callable[[], nn.Module],
    decoder: Callable[[], nn.Module],
    latent: int,
    posterior: Callable[..., Posterior] = heads.normal_logvar,
    likelihood: heads.Head = heads.bernoulli,
    prior: Callable[[], nn.Module] = priors.standard_normal,
) -> VAE:
    """A VAE from factories of its networks.

    Args:
        encoder: makes the module that maps x [B, ...] to what `posterior` takes.
        decoder: makes the module that maps z [B, Z] to what `likelihood` takes. The Monte-Carlo axis of z [N, B, Z] is
            `vmap`ped over it, so it never sees N; in training mode BatchNorm normalises each sample's batch by itself,
            and its running statistics are averaged over N.
        latent: Z.
        posterior: the head that makes q(z|x).
        likelihood: the head that makes p(x|z).
        prior: makes the module that maps z to a distribution over it; standard normal unless given.

    Raises:
        BadType: a network is not given as a factory.
        BadValue: latent is below one.
    """
    if latent < 1:
        raise BadValue(f"latent is {latent}: a latent space has at least one dimension")
    networks = {"encoder": functional(encoder), "decoder": functional(decoder), "prior": functional(prior)}

    def init(key: random.Key) -> tuple[Params, State]:
        keys = random.split(key, len(networks))
        made = {name: net.init(k) for (name, net), k in zip(networks.items(), keys, strict=True)}
        return {name: params for name, (params, _) in made.items()}, {name: state for name, (_, state) in made.items()}

    def encode(params: Params, state: State, x: Tensor, train: bool = False) -> tuple[Posterior, State]:
        out, new = networks["encoder"].apply(params["encoder"], state["encoder"], x, train=train)
        q = posterior(out)
        if q.loc.shape != (len(x), latent):  # it might broadcast, silently
            raise BadValue(f"the posterior over z has shape {list(q.loc.shape)}: latent is {latent}, so [B, {latent}]")
        return q, {**state, "encoder": new}

    def decode(params: Params, state: State, z: Tensor, train: bool = False) -> tuple[Distribution, State]:
        decoder = networks["decoder"]
        if z.ndim == 2:
            out, new = decoder.apply(params["decoder"], state["decoder"], z, train=train)
        else:
            out, new = _over_samples(decoder, params["decoder"], state["decoder"], z, train)
        return likelihood(out), {**state, "decoder": new}

    def prior_(params: Params, state: State, z: Tensor, train: bool = False) -> tuple[Distribution, State]:
        p, new = networks["prior"].apply(params["prior"], state["prior"], z, train=train)
        return p, {**state, "prior": new}

    return VAE(init, encode, decode, prior_, latent)


def log_prob(p: Distribution, x: Tensor) -> Tensor:
    """The log-density [N, B] of x under p, summed over all axes after these two, in nats."""
    elementwise = p.log_prob(x)
    return elementwise.flatten(2).sum(-1) if elementwise.ndim > 2 else elementwise


def log_likelihood(p: Distribution, x: Tensor) -> Tensor:
    """log p(x|z) [N, B] in nats, for p from decoding z [N, B, Z] and data x [B, ...].

    Raises:
        BadValue: the decoder's distribution is not over data of x's shape. (It might broadcast, silently.)
    """
    decoded = tree.leaves(p)[0].shape[1:]
    if decoded != x.shape:
        batches = f"in batches of {decoded[0]} and {len(x)}"
        raise BadValue(
            f"the decoder describes data of shape {list(decoded[1:])}, but each x is {list(x.shape[1:])}, {batches}"
        )
    return log_prob(p, x)


def _over_samples(net: Functional, params: Params, state: State, z: Tensor, train: bool) -> tuple[Tensor, State]:
    """The network `vmap`ped over z's sample axis; its state averaged over the samples."""
    if len(z) == 1:  # the same without the transform's overhead
        out, new = net.apply(params, state, z[0], train=train)
        return tree.map(lambda t: t.unsqueeze(0), out), new
    out, new = torch.vmap(lambda z_n: net.apply(params, state, z_n, train=train))(z)
    return out, tree.map(lambda v: v.mean(0) if v.is_floating_point() else v[0], new)
