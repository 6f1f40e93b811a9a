"""The VAE: three networks and two heads as pure functions over parameter pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from funcvae import heads, priors, random, tree
from funcvae._support import checks
from funcvae.distributions import Distribution, Posterior
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError
from funcvae.modules import Functional, Params, State, functional

__all__ = [
    "CHECK_SEED", "VAE", "Decode", "Encode", "Observe", "Trained", "as_is", "check_data", "check_model",
    "check_trained", "log_p_x_given_z", "log_prob", "log_weight", "vae",
]  # fmt: skip


class Encode(Protocol):
    """The recognition network."""

    def __call__(self, params: Params, state: State, x: Tensor, train: bool = False) -> tuple[Posterior, State]:
        """q(z|x) of data x [B, ...], and the new state."""
        ...


class Decode(Protocol):
    """The decoder, or the prior."""

    def __call__(self, params: Params, state: State, z: Tensor, train: bool = False) -> tuple[Distribution, State]:
        """p(x|z), or p(z), of latents z [B, Z] or [N, B, Z], and the new state."""
        ...


class VAE(NamedTuple):
    """A latent-variable model p(z) p(x|z) with its recognition network q(z|x).

    `params` and `state` are {"encoder": {...}, "decoder": {...}, "prior": {...}}; each function returns the state as
    its network left it.
    """

    init: Callable[[random.Key], tuple[Params, State]]
    encode: Encode
    decode: Decode
    prior: Decode
    latent: int


class Trained(NamedTuple):
    """A model with its parameters and state: write `*trained` where a function takes the three."""

    model: VAE
    params: Params
    state: State


def vae(
    *,
    encoder: Callable[[], nn.Module],
    decoder: Callable[[], nn.Module],
    latent: int,
    posterior: Callable[[Any], Posterior] = heads.normal_logvar,
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
        BadType: a network is not given as a factory, or a head is none.
        BadValue: latent is below one; or, from its functions, params, state, x or z are not what the model takes.
    """
    checks.fits("latent", (latent := checks.integer("latent", latent, 1),))
    checks.function("posterior", posterior)
    checks.function("likelihood", likelihood)
    networks = {"encoder": functional(encoder), "decoder": functional(decoder), "prior": functional(prior)}

    def init(key: random.Key) -> tuple[Params, State]:
        keys = random.split(key, len(networks))
        made = {name: net.init(k) for (name, net), k in zip(networks.items(), keys, strict=True)}
        return {name: params for name, (params, _) in made.items()}, {name: state for name, (_, state) in made.items()}

    def encode(params: Params, state: State, x: Tensor, train: bool = False) -> tuple[Posterior, State]:
        checks.tensor("x", x, "B ...")
        out, new = run("encoder", params, state, x, train)
        q = posterior(out)
        if not isinstance(getattr(q, "loc", None), Tensor):
            raise BadType(f"the posterior head returned {checks.describe(q)}: it must be a distribution with a loc")
        if q.loc.shape != (len(x), latent):  # it might broadcast, silently
            raise BadValue(f"the posterior over z has shape {list(q.loc.shape)}: latent is {latent}, so [B, {latent}]")
        return q, {**state, "encoder": new}

    def decode(params: Params, state: State, z: Tensor, train: bool = False) -> tuple[Distribution, State]:
        if checks.tensor("z", z).ndim not in (2, 3) or z.shape[-1] != latent or (z.ndim == 3 and not len(z)):
            raise BadValue(f"z has shape {list(z.shape)}: it must be [B, {latent}] or [N, B, {latent}], with N >= 1")
        out, new = run("decoder", params, state, z, train)
        return _distribution("the likelihood head returned", likelihood(out)), {**state, "decoder": new}

    def prior_(params: Params, state: State, z: Tensor, train: bool = False) -> tuple[Distribution, State]:
        p, new = run("prior", params, state, checks.tensor("z", z), train)
        return _distribution("the prior returned", p), {**state, "prior": new}

    def run(name: str, params: Params, state: State, to: Tensor, train: bool) -> tuple[Any, State]:
        how = _over_samples if name == "decoder" and to.ndim == 3 else _once
        given = networks[name], _part("params", params, name), _part("state", state, name), to, train
        if torch.compiler.is_compiling():
            return how(*given)
        try:
            return how(*given)
        except (FuncvaeError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, IndexError, ValueError) as error:  # torch says what is wrong in one of these
            what = f"{checks.describe(to)} on {to.device}"
            raise BadValue(f"the {name} cannot take {what}: {checks.one_line(str(error))}") from error

    return VAE(init, encode, decode, prior_, latent)


def log_prob(p: Distribution, x: Tensor) -> Tensor:
    """The log-density [N, B] of x under p, summed over all axes after these two, in nats."""
    elementwise = _distribution("p is", p).log_prob(x)
    return elementwise.flatten(2).sum(-1) if elementwise.ndim > 2 else elementwise


def log_p_x_given_z(p: Distribution, x: Tensor) -> Tensor:
    """log p(x|z) [N, B] in nats, for p from decoding z [N, B, Z] and data x [B, ...].

    Raises:
        BadValue: the decoder's distribution is not over data of x's shape. (It might broadcast, silently.)
    """
    first = next(iter(tree.leaves(_distribution("p is", p))), None)
    decoded = checks.tensor("the first parameter of p", first, "N B ...").shape[1:]
    if decoded != checks.tensor("x", x, "B ...").shape:
        batches = f"in batches of {decoded[0]} and {len(x)}"
        raise BadValue(
            f"the decoder describes data of shape {list(decoded[1:])}, but each x is {list(x.shape[1:])}, {batches}"
        )
    return log_prob(p, x)


def log_weight(
    model: VAE, params: Params, state: State, x: Tensor, q: Distribution, z: Tensor, train: bool
) -> tuple[Tensor, State]:
    """log w = log p(x|z) + log p(z) - log q(z|x) [N, B], for z [N, B, Z] from q(z|x); and the state."""
    checks.tensor("z", z, "N B Z")
    check_model(model)
    p_x, state = model.decode(params, state, z, train)
    p_z, state = model.prior(params, state, z, train)
    return log_p_x_given_z(p_x, x) + _over_latents("prior", p_z, z) - _over_latents("posterior", q, z), state


class Observe(Protocol):
    """What the model sees of the data: such as a binarization, drawn anew each time.

    One that also takes `rows`, the indices [n] of a part of the batch, can be asked for that part alone.
    """

    def __call__(self, key: random.Key, x: Tensor) -> Tensor:
        """What the model sees of x [B, ...]."""
        ...


def as_is(key: random.Key, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """The `observe` that shows the model the data unchanged."""
    return x


def check_model(model: VAE) -> None:
    """Raises BadType unless this is a model."""
    if not isinstance(model, VAE):
        raise BadType(f"model is {checks.describe(model)}: it must be a VAE, as funcvae.vae or funcvae.models make it")


def check_trained(model: VAE, params: Params, state: State) -> None:
    """Raises BadType or BadValue unless this is a model, with parameters to be learned and a state."""
    check_model(model)
    for name in ("encoder", "decoder", "prior"):
        _part("params", params, name)
    devices = set()
    for what, whole in {"params": params, "state": state}.items():
        for leaf in tree.leaves(whole):
            devices.add(checks.tensor(f"a leaf of {what}", leaf, floating=whole is params).device)
    if len(devices) > 1:
        raise BadValue(f"params and state are on {' and '.join(sorted(map(str, devices)))}: they must be on one device")


def check_data(
    model: VAE, params: Params, state: State, data: Tensor, observe: Observe = as_is, *, name: str = "data"
) -> None:
    """Raises BadData, saying what is wrong, for data [n, ...] that the model cannot be trained on."""
    name = checks.one_line(checks.text("name", name), 60)
    check_trained(model, params, state)
    checks.function("observe", observe)
    if not isinstance(data, Tensor):
        raise BadType(f"{name} is {type(data).__name__}: it must be a tensor [n, ...]")
    checks.concrete(name, data)
    if data.is_complex():
        raise BadData(f"{name} is {data.dtype}: the data must be real numbers")
    if data.ndim == 0 or len(data) == 0:
        raise BadData(f"{name} is empty")
    finite = data.isfinite().flatten(1).all(1) if data.ndim > 1 else data.isfinite()
    if not finite.all():
        raise BadData(f"{name} holds NaN or infinite values, first in item {int(finite.logical_not().nonzero()[0])}")
    leaves = tree.leaves(params)
    if not leaves:
        raise BadValue("params has no leaves: init makes them")
    for leaf in leaves:
        checks.concrete("a leaf of params", leaf)
    key = random.key(CHECK_SEED, device=leaves[0].device)
    x = checks.tensor("what observe returned", observe(key, data[:2].to(key.device)), "B ...")
    if len(x) != len(data[:2]):
        raise BadValue(f"observe made {len(x)} items of {len(data[:2])}: it must leave their number as it is")
    try:
        q, _ = model.encode(params, state, x)
        p, _ = model.decode(params, state, q.loc.unsqueeze(0))
        log_p_x_given_z(p, x)
    except (RuntimeError, BadValue) as error:
        reason = checks.one_line(str(error).split("\n")[0])
        raise BadData(f"the model cannot take {name} of shape {list(data.shape[1:])} an item: {reason}") from None
    low, high = getattr(p, "support", (-np.inf, np.inf))
    for what, values in {name: data, f"observed {name}": x}.items():
        if values.numel() and (values.min() < low or values.max() > high):
            got = f"{float(values.min()):g} to {float(values.max()):g}"
            raise BadData(f"{what} ranges from {got}: a {type(p).__name__} likelihood needs [{low:g}, {high:g}]")


CHECK_SEED = 2**63 + 2  # no seed of a user's run: a key is used once


def _part(what: str, whole: Params, name: str) -> Any:
    """One network's part of the parameters or of the state."""
    if not isinstance(whole, dict):
        raise BadType(f"{what} is {checks.describe(whole)}: it must be a dict, as init makes it")
    if name not in whole:
        raise BadValue(f"{what} lacks {name!r}: it must have encoder, decoder and prior")
    return whole[name]


def _distribution(what: str, p: Distribution) -> Distribution:
    if not hasattr(p, "log_prob"):
        raise BadType(f"{what} {checks.describe(p)}: it must be a distribution, such as distributions.Normal")
    return p


def _once(net: Functional, params: Params, state: State, x: Tensor, train: bool) -> tuple[Any, State]:
    return net.apply(params, state, x, train=train)


def _over_samples(net: Functional, params: Params, state: State, z: Tensor, train: bool) -> tuple[Tensor, State]:
    """The network `vmap`ped over z's sample axis; its state averaged over the samples."""
    if len(z) == 1:  # the same without the transform's overhead
        out, new = net.apply(params, state, z[0], train=train)
        return tree.map(lambda t: t.unsqueeze(0), out), new
    out, new = torch.vmap(lambda z_n: net.apply(params, state, z_n, train=train))(z)
    return out, tree.map(lambda v: v.mean(0) if v.is_floating_point() else v[0], new)


def _over_latents(what: str, p: Distribution, z: Tensor) -> Tensor:
    """The log-density [N, B] of latents z [N, B, Z]."""
    value = log_prob(p, z)
    if value.shape != z.shape[:2]:
        raise BadValue(
            f"the {what} gives log-densities {list(value.shape)}: for this z they must be {list(z.shape[:2])}"
        )
    return value
