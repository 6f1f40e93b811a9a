"""The VAE: three networks and two heads as pure functions over parameter pytrees."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from funcvae import distributions, heads, priors, random, tree
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import ConcreteData, Data
from funcvae._support.pickling import by_call, remembered
from funcvae._support.reprs import short_repr
from funcvae.batching import over_samples
from funcvae.distributions import (
    Bernoulli,
    CouplingFlow,
    Delta,
    Distribution,
    FullNormal,
    Mixture,
    Normal,
    Posterior,
    RelaxedBernoulli,
    RelaxedCategorical,
    TopDown,
    TwoLayers,
)
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError
from funcvae.modules import KEY, Params, State, network

__all__ = [
    "CHECK_SEED", "VAE", "Decode", "Encode", "LogWeight", "Observe", "Trained", "as_floats", "as_is", "check_data",
    "check_items", "check_prior", "check_trained", "from_bytes", "joint", "log_p_x_given_z", "log_prob",
    "log_prob_terms", "log_weight", "noise_dtype", "running", "unchanged", "vae",
]  # fmt: skip


T = TypeVar("T")


class Encode(Protocol):
    """The recognition network, which maps data x to the posterior q(z|x)."""

    def __call__(self, params: Params, state: State, x: Data, train: bool = False) -> tuple[Posterior, State]:
        """The posterior q(z|x) of data x [B, ...], and the new state."""
        ...


class Decode(Protocol):
    """The decoder, or the prior: it maps latents z to p(x|z), or to p(z)."""

    def __call__(
        self, params: Params, state: State, z: Tensor, train: bool = False, condition: Data | None = None
    ) -> tuple[Distribution, State]:
        """The distribution p(x|z), or p(z), at latents z [B, Z] or [N, B, Z], and the new state.

        A conditional model also takes the condition c [B, ...]: the distributions are p(x|z, c) and p(z|c).
        """
        ...


def _whole(x: Data) -> Tensor:
    """The default of `modelled`: the likelihood is of the whole datum."""
    if not isinstance(x, Tensor):
        raise BadType("the data are a dict: give vae the function modelled, the part that the likelihood is of")
    return x


@short_repr
@by_call
class VAE(NamedTuple):
    """A latent-variable model p(z) p(x|z) with its recognition network q(z|x).

    `params` and `state` are {"encoder": {...}, "decoder": {...}, "prior": {...}}. Each function returns the new state.
    """

    init: Callable[[random.Key], tuple[Params, State]]
    """Makes (params, state) from a key."""
    encode: Encode
    """Maps (params, state, x [B, ...]) to q(z|x) and the new state."""
    decode: Decode
    """Maps (params, state, z [B, Z] or [N, B, Z]) to p(x|z) and the new state."""
    prior: Decode
    """Maps (params, state, z) to p(z) and the new state; it reads only the shape of z."""
    latent: int
    """Z, the number of latent dimensions."""
    check: Callable[[Params, State], None] = lambda params, state: None
    """Raises BadType or BadValue unless params and state are of this model."""
    frozen: frozenset[str] = frozenset()
    """The paths in the state of frozen parameters, such as "encoder/embed.weight". They are constants."""
    modelled: Callable[[Any], Tensor] = _whole
    """The part [B, ...] of the data that the likelihood is of."""
    condition: Callable[[Any], Data] | None = None
    """The part of the data that decoder and prior see beside z; None for a model that is not conditional."""

    def given(self, x: Data) -> dict[str, Any]:
        """The keyword arguments of `decode` and `prior` for data x: their condition, if the model has one."""
        return {"condition": _of_each("condition", self.condition, x)} if self.condition else {}

    def unchecked(self) -> "VAE":
        """The same model without checks of arguments, for a caller that has called `check_trained`."""
        return self._replace(
            encode=checks.unchecked(self.encode),
            decode=checks.unchecked(self.decode),
            prior=checks.unchecked(self.prior),
        )


@short_repr
class Trained(NamedTuple):
    """A model with its parameters and state. Write `*trained` where a function takes the three."""

    model: VAE
    """The model."""
    params: Params
    """Its parameters."""
    state: State
    """Its state: buffers, keys of random layers, and frozen parameters."""


@remembered
@checks.arguments
def vae(
    *,
    encoder: Callable[[], nn.Module],
    decoder: Callable[[], nn.Module],
    latent: Count,
    posterior: Callable[[Any], Posterior] = heads.normal_logvar,
    likelihood: heads.Head = heads.bernoulli,
    prior: Callable[[], nn.Module] = priors.standard_normal,
    modelled: Callable[[Any], Tensor] = _whole,
    condition: Callable[[Any], Data] | None = None,
) -> VAE:
    """Makes a VAE from factories of its networks.

    Data x are a tensor [B, ...], or a dict of tensors with one batch axis. With `condition=g`, c = g(x), the model is

        p(x|z, c) p(z|c),    q(z|x).

    Args:
        encoder: makes the module that maps x [B, ...], the whole datum, to the argument of `posterior`.
        decoder: makes the module that maps z [B, Z], or (z, c), to the argument of `likelihood`. It is `vmap`ped over
            the Monte-Carlo axis of z [N, B, Z], so the module does not see N (`funcvae.batching.over_samples`, also for
            modules that `vmap` cannot batch). In training mode BatchNorm normalises the batch of each sample
            separately, and its running statistics are averaged over N. In training mode, random layers, such as
            dropout, draw anew for each sample, from a key in the state; those of the encoder draw once for each datum.
        latent: Z, the number of latent dimensions.
        posterior: the head that makes q(z|x).
        likelihood: the head that makes p(x|z).
        prior: makes the module that maps z to the distribution p(z); standard normal unless given. A module whose
            `forward` takes two arguments maps (z, c) to p(z|c).
        modelled: the part [B, ...] of the data that the likelihood is of; all of it unless given. A likelihood that
            ignores missing pixels gets their mask as a part of it.
        condition: the part c of the data that decoder and prior see beside z: a tensor or a dict of tensors.

    Raises:
        BadType: a network is not given as a factory, or a head is not a function; or, from the functions of the model,
            a head or the prior does not return a distribution.
        BadValue: latent is below one; or, from the functions of the model, params or state is not of this model, or x
            or z has a wrong shape.
    """
    networks = {"encoder": network(encoder), "decoder": network(decoder), "prior": network(prior)}
    frozen = frozenset(f"{name}/{path}" for name, net in networks.items() for path in net.frozen)
    conditional = {"decoder": condition is not None, "prior": condition is not None and networks["prior"].inputs > 1}
    decode_samples = over_samples(networks["decoder"].apply, networks["decoder"].frozen)

    def check(params: Params, state: State, names: Iterable[str] = ("encoder", "decoder", "prior")) -> None:
        for name in names:
            networks[name].check(_part("params", params, name), _part("state", state, name))

    @checks.arguments
    def check_x(params: Params, state: State, x: Data, train: bool = False) -> None:
        check(params, state, ("encoder",))

    @checks.arguments
    def check_z(params: Params, state: State, z: Tensor, train: bool = False, condition: Data | None = None) -> None:
        check(params, state, ("decoder", "prior"))
        if checks.tensor("z", z).ndim not in (2, 3) or z.shape[-1] != latent or (z.ndim == 3 and not len(z)):
            raise BadValue(f"z has shape {list(z.shape)}: it must be [B, {latent}] or [N, B, {latent}], with N >= 1")
        if (condition is not None) != conditional["decoder"]:
            raise BadValue(
                "the model is conditional: give condition=, such as **model.given(x)"
                if condition is None
                else "the model takes no condition: leave it out, or give vae the function condition"
            )
        if condition is not None and examples.count(condition) != z.shape[-2]:
            raise BadValue(f"the condition has {examples.count(condition)} items: z has a batch of {z.shape[-2]}")

    @checks.arguments
    def init(key: random.Key) -> tuple[Params, State]:
        keys = random.split(key, len(networks))
        made = {name: net.init(k) for (name, net), k in zip(networks.items(), keys, strict=True)}
        return {name: params for name, (params, _) in made.items()}, {name: state for name, (_, state) in made.items()}

    @checks.after(check_x)
    def encode(params: Params, state: State, x: Data, train: bool = False) -> tuple[Posterior, State]:
        out, new = run("encoder", params, state, train, x)
        q = posterior(out)
        if not isinstance(getattr(_distribution("the posterior head returned", q), "loc", None), Tensor):
            raise BadType(f"the posterior head returned {checks.describe(q)}: it must be a distribution with a loc")
        must = [examples.count(x), latent]
        if list(q.loc.shape) != must:  # another shape might broadcast
            raise BadValue(f"the posterior over z has shape {list(q.loc.shape)}: latent is {latent}, so {must}")
        return q, {**state, "encoder": new}

    @checks.after(check_z)
    def decode(
        params: Params, state: State, z: Tensor, train: bool = False, condition: Data | None = None
    ) -> tuple[Distribution, State]:
        out, new = run("decoder", params, state, train, z, condition)
        return _distribution("the likelihood head returned", likelihood(out)), {**state, "decoder": new}

    @checks.after(check_z)
    def prior_(
        params: Params, state: State, z: Tensor, train: bool = False, condition: Data | None = None
    ) -> tuple[Distribution, State]:
        p, new = run("prior", params, state, train, z, condition)
        return _distribution("the prior returned", p), {**state, "prior": new}

    def run(name: str, params: Params, state: State, train: bool, to: Data, c: Data | None = None) -> tuple[Any, State]:
        sampled = name == "decoder" and isinstance(to, Tensor) and to.ndim == 3
        apply = decode_samples if sampled else networks[name].apply
        inputs = (to, c) if conditional.get(name) else (to,)
        if torch.compiler.is_compiling():
            return apply(params[name], state[name], *inputs, train=train)
        try:
            return apply(params[name], state[name], *inputs, train=train)
        except (FuncvaeError, torch.OutOfMemoryError):
            raise
        except _FAILURES as error:
            what = " and ".join(f"{checks.describe(t)} on {t.device}" for t in tree.leaves(inputs))
            raise BadValue(f"the {name} cannot take {what}: {_reason(error)}") from error

    return VAE(init, encode, decode, prior_, latent, check, frozen, modelled, condition)


def log_prob(p: Distribution, z: Tensor) -> Tensor:
    """The log-density [N, B] of latents z [N, B, Z] under p in nats.

    Raises:
        BadValue: `p.log_prob` does not return one number for each latent [N, B], or for each element of z.
    """
    return _summed(log_prob_terms(p, z))


def log_prob_terms(p: Distribution, z: Tensor) -> Tensor:
    """`p.log_prob(z)` for z [N, B, Z]: one term for each element of z, or their sum [N, B]; raises as `log_prob`."""
    return _checked(p, p.log_prob(z), z.shape)


def log_p_x_given_z(p: Distribution, x: Tensor) -> Tensor:
    """log p(x|z) [N, B] in nats, for p from decoding z [N, B, Z] and data x [B, ...].

    Raises:
        BadValue: the distribution is not over data of the shape of x, or `p.log_prob` does not return one number for
            each datum [N, B], or for each element of it [N, B, ...]. (Another shape might broadcast.)
    """
    decoded = checks.tensor("the first parameter of the distribution", tree.leaves(p)[0]).shape
    if decoded[1:] != checks.tensor("the modelled part of the data", x).shape:
        raise BadValue(
            f"the decoder describes data of shape {list(decoded[2:])} in a batch of {decoded[1]}: the data have shape "
            f"{list(x.shape[1:])} in a batch of {len(x)}"
        )
    x = x.float() if x.dtype == torch.bool else x  # torch cannot subtract from bool
    return _summed(_checked(p, p.log_prob(x), (decoded[0], *x.shape)))


class LogWeight(NamedTuple):
    """The terms of log-weights, each [N, B] in nats."""

    log_p_x: Tensor
    """log p(x|z)."""
    log_p_z: Tensor
    """log p(z)."""
    log_q: Tensor
    """log q(z|x)."""

    @property
    def log_w(self) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x)."""
        return self.log_p_x + self.log_p_z - self.log_q


def joint(
    model: VAE, params: Params, state: State, x: Data, z: Tensor, train: bool
) -> tuple[Tensor, Distribution, State]:
    """log p(x|z) [N, B] of z [N, B, Z], the prior p(z), and the new state."""
    given = model.given(x)
    p_x, state = model.decode(params, state, z, train, **given)
    p_z, state = model.prior(params, state, z, train, **given)
    return log_p_x_given_z(p_x, _of_each("modelled", model.modelled, x)), p_z, state


def log_weight(
    model: VAE, params: Params, state: State, x: Data, q: Distribution, z: Tensor, train: bool
) -> tuple[LogWeight, State]:
    """The log-weights of z [N, B, Z] from q(z|x), and the new state."""
    log_p_x, p_z, state = joint(model, params, state, x, z, train)
    return LogWeight(log_p_x, log_prob(p_z, z), log_prob(q, z)), state


class Observe(Protocol):
    """Turns data into the input of the model, for instance by a new random binarization in each step.

    A function that also takes `rows`, the indices [n] of a part of the batch, can return that part alone.
    """

    def __call__(self, key: random.Key, x: Any) -> Any:
        """The observation of data x [B, ...], of the same length."""
        ...


def as_is(key: random.Key, x: Data, rows: Tensor | None = None) -> Data:
    """Returns the data unchanged: the default `observe`."""
    return x


def as_floats(key: random.Key, x: Data, rows: Tensor | None = None) -> Data:
    """Returns `from_bytes` of each tensor: an `observe` for images that are stored as bytes."""
    return examples.each(from_bytes, x)


def from_bytes(x: Tensor) -> Tensor:
    """Bytes (uint8) divided by 255, as float32; data of another dtype unchanged."""
    if x.dtype != torch.uint8:
        return x
    wide = x.double() if x.is_cuda else x.float()  # CUDA multiplies float32 by a rounded inverse of 255
    return wide.div_(255).float()


@checks.arguments
def check_trained(model: VAE, params: Params, state: State) -> None:
    """Raises BadType or BadValue unless these are a model with its parameters and state, all on one device."""
    model.check(params, state)
    devices = set()
    for what, whole in {"params": params, "state": state}.items():
        for leaf in tree.leaves(whole):
            devices.add((checks.floats if whole is params else checks.tensor)(f"a leaf of {what}", leaf).device)
    if len(devices) > 1:
        raise BadValue(f"params and state are on {' and '.join(sorted(map(str, devices)))}: they must be on one device")


@checks.arguments
def check_data(
    model: VAE, params: Params, state: State, data: ConcreteData, observe: Observe = as_is, *, name: str = "data"
) -> None:
    """Raises BadData unless the model can be trained on these data [n, ...]. Encodes and decodes a few of them.

    Raises BadValue if the latents of posterior and prior take different values, as with a Bernoulli posterior and a
    normal prior.
    """
    checks.unchecked(check_trained)(model, params, state)
    check_items(model.unchecked(), params, state, data, observe, name=name)


@checks.arguments
def check_items(
    model: VAE, params: Params, state: State, data: ConcreteData, observe: Observe = as_is, *, name: str = "data"
) -> None:
    """`check_data` for a model with checked params and state."""
    if not examples.count(data):
        raise BadData(f"{name} is empty: it must be [n, ...] with n >= 1")
    few, ranges = examples.head(data, 2), dict[str, Tensor]()
    for part, x in examples.tensors(data).items():
        of = examples.named(name, part)
        if x.is_complex():
            raise BadData(f"{of} is {x.dtype}: the data must be real numbers")
        if (item := examples.not_finite(x)) is not None:
            raise BadData(f"{of} has NaN or infinite values, first in item {item}")
    if isinstance(data, Tensor) and data.is_floating_point() and model.modelled is _whole:
        ranges[name] = data
    elif isinstance(data, Tensor) and data.numel():
        # observe may decode whole numbers: only what it makes of them must be in the likelihood's range
        each = data.reshape(len(data), -1)
        few = torch.cat([data[:2], data[[int(each.amin(1).long().argmin()), int(each.amax(1).long().argmax())]]])
    leaves = tree.leaves((params, state))  # a frozen model's parameters are in the state
    if not leaves:
        raise BadValue("params and state have no leaves: use those that init returns")
    key = random.key(CHECK_SEED, device=checks.concrete("a leaf of params", leaves[0]).device)
    x = unchanged("observe", lambda x: observe(key, x), examples.each(lambda t: t.to(key.device), few))
    examples.of_each("observe", examples.checked("the result of observe", x), examples.count(few))
    try:
        given, modelled = model.given(x), _of_each("modelled", model.modelled, x)
    except FuncvaeError:
        raise
    except (LookupError, TypeError, AttributeError) as error:
        kind = "a tensor; for a dict of labels, see Dataset.labelled" if isinstance(x, Tensor) else f"a dict of {[*x]}"
        raise BadValue(f"modelled or condition cannot take the data, {kind}: {_reason(error)}") from None
    if observe is as_is and model.modelled is not _whole:
        ranges[name] = model.modelled(data)
    try:
        q, _ = model.encode(params, state, x)
        z = unchanged("sample of the posterior", q.sample, torch.ones_like(q.loc).unsqueeze(0))
        p, _ = model.decode(params, state, z, **given)
        unchanged("log_prob of the likelihood", lambda x: log_p_x_given_z(p, x), modelled)
        if not isinstance(q, Delta):
            unchanged("log_prob of the posterior", q.log_prob, z)
        prior, _ = model.prior(params, state, z, **given)
        unchanged("log_prob of the prior", prior.log_prob, z)
    except (RuntimeError, BadValue) as error:
        shapes = examples.each(lambda part: list(part.shape[1:]), data)
        reason = checks.one_line(str(error).split("\n")[0])
        if modelled.dtype == torch.uint8:
            reason += "; bytes need observe=model.as_floats in training, and model.from_bytes(x) elsewhere"
        raise BadData(f"the model cannot take {name} with items of shape {shapes}: {reason}") from None
    check_prior(q, prior)
    if not hasattr(q, "values"):  # the decoder of discrete latents may take no others
        warn_of_probabilities(p, lambda: model.decode(params, state, 100 * z, **given)[0])
    low, high = getattr(p, "support", (-np.inf, np.inf))
    for what, values in {**ranges, f"observed {name}": modelled}.items():
        if values.numel() and (values.min() < low or values.max() > high):
            span = f"{float(values.min()):g} to {float(values.max()):g}"
            raise BadData(f"{what} ranges from {span}: a {type(p).__name__} likelihood requires [{low:g}, {high:g}]")


def warn_of_probabilities(p: Distribution, far: Callable[[], Distribution]) -> None:
    """Warns if the logits of a likelihood look like probabilities from a final sigmoid.

    Small logits of an untrained network may lie between 0 and 1, too, but those of `far` latents do not.
    """

    def are_like_probabilities(p: Distribution) -> bool:
        return isinstance(p, Bernoulli) and p.logits.numel() > 100 and bool(0 <= p.logits.min() < p.logits.max() <= 1)

    if are_like_probabilities(p) and are_like_probabilities(far()):
        warnings.warn(
            "the decoder returns numbers between 0 and 1, which heads.bernoulli takes as logits: for a network that "
            "ends in a sigmoid, give likelihood=heads.bernoulli_probs", stacklevel=4,
        )  # fmt: skip


def _of_each(name: str, f: Callable[[Any], T], x: Data) -> T:
    """f(x), one item for each datum; another number of items might broadcast."""
    part = f(x)
    if not torch.compiler.is_compiling():
        examples.of_each(name, examples.checked(f"the result of {name}", part), examples.count(x))
    return part


_FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)  # of a network that gets a wrong input


def _reason(error: Exception) -> str:
    return checks.one_line(repr(error) if isinstance(error, KeyError) else str(error))


def check_prior(q: Posterior, p: Distribution) -> None:
    """Raises BadValue if log p(z) - log q(z|x) compares a density with a probability, or is over different values."""
    of_q, of_p = _values(q), _values(p)
    if of_q == of_p or None in (of_q, of_p) or (of_q, of_p) == ("(0, 1)", "numbers"):
        return
    density, listed = "a prior with a density, such as priors.standard_normal", "a prior with the same values()"
    fit = _PRIORS.get(type(q).__name__, listed if hasattr(q, "values") else density)
    both = f"the posterior is a {type(q).__name__} and the prior a {type(p).__name__}"
    raise BadValue(f"{both}, so their latents take different values: use {fit}")


def _values(of: Distribution) -> Any:
    """The values of latents: a list, or the name of a set of numbers; None if they are not known."""
    if hasattr(of, "values"):
        return of.values().tolist()
    if isinstance(of, RelaxedCategorical):
        return f"simplex of {of.logits.shape[-1]} classes"
    if isinstance(of, RelaxedBernoulli):
        return "(0, 1)"
    return "numbers" if isinstance(of, Normal | FullNormal | Mixture | TwoLayers | TopDown | CouplingFlow) else None


_PRIORS = {
    "Bernoulli": "priors.bernoulli or priors.learned_bernoulli",
    "Categorical": "priors.categorical or priors.learned_categorical, with as many classes",
    "RelaxedBernoulli": "priors.concrete",
    "RelaxedCategorical": "priors.concrete, with as many classes",
}


def unchanged(name: str, f: Callable[..., T], *args: Data) -> T:
    """f of copies; raises BadValue if f changes its arguments in place, which would change the caller's tensors."""
    if torch.compiler.is_compiling():
        return f(*args)
    with torch.inference_mode(False):  # where tensors count their changes
        copies = [examples.each(torch.clone, x) for x in args]
    before = _versions(copies)
    error = BadValue(f"{name} changes its argument in place: write it without operators such as sub_ or +=")
    try:
        return f(*copies)
    except RuntimeError as raised:
        if "would mutate a captured Tensor" in str(raised):  # by vjp
            raise error from None
        raise
    finally:
        if _versions(copies) != before:
            raise error


def _versions(copies: list[Data]) -> list[int]:
    return [part._version for copy in copies for part in examples.tensors(copy).values()]


CHECK_SEED = 2**63 + 2
"""The seed of keys that only checks use; no run can have it."""


def noise_dtype(params: Params) -> torch.dtype:
    """The dtype of the noise, whatever that of the data: the dtype of the parameters, or float32 without parameters."""
    leaves = tree.leaves(params)
    return leaves[0].dtype if leaves else torch.float32


def _part(what: str, whole: Params, name: str) -> Any:
    """The part of the parameters or of the state that belongs to one network."""
    if name not in checks.mapping(what, whole):
        raise BadValue(f"{what} lacks {name!r}: it must have encoder, decoder and prior")
    return whole[name]


def _distribution(what: str, p: Any) -> Any:
    if isinstance(p, torch.distributions.Distribution):  # its sample is not a function of noise, nor is it a pytree
        name = type(p.base_dist if isinstance(p, torch.distributions.Independent) else p).__name__
        ours = f"funcvae.distributions.{name}"
        if not hasattr(distributions, name):
            ours = "NamedTuple of tensors with log_prob, sample(eps) and mean, as in funcvae.distributions"
        raise BadType(f"{what} a torch.distributions.{name}: it must be a {ours}")
    if not hasattr(p, "log_prob"):
        raise BadType(f"{what} {checks.describe(p)}: it must be a distribution, such as distributions.Normal")
    return p


def running(model: VAE, state: State) -> dict[str, Tensor]:
    """The buffers of a state by path: the part that a forward pass can change, except for the keys of networks."""
    leaves = tree.named_leaves(state).items()
    return {path: leaf for path, leaf in leaves if path not in model.frozen and path.split("/")[-1] != KEY}


def _checked(p: Distribution, log_densities: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Raises BadValue unless log-densities are [N, B, ...], or [N, B] if they are sums: others might broadcast."""
    if log_densities.shape not in (shape, shape[:2]):
        raise BadValue(
            f"log_prob of the {type(p).__name__} has shape {list(log_densities.shape)}: it must be {list(shape)}, or "
            f"{list(shape[:2])} if it sums over a datum"
        )
    return log_densities


def _summed(log_densities: Tensor) -> Tensor:
    """Sums log-densities [N, B, ...] to [N, B]."""
    return log_densities.flatten(2).sum(-1) if log_densities.ndim > 2 else log_densities
