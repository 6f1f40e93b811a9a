"""Calls every public function with arguments of which some are hostile: python tests/fuzz/functions.py --cases 60000

A call passes if it succeeds or raises a `FuncvaeError` whose message is one line. Case i of seed s is always the same,
and `--case i` runs it alone and shows what it raised.
"""

import argparse
import importlib
import inspect
import math
import random as pyrandom
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

import funcvae as fv
from funcvae import (
    bounds,
    distributions,
    engine,
    errors,
    estimators,
    evaluate,
    heads,
    importance,
    models,
    module,
    noise,
    optim,
    pareto,
    pictures,
    plots,
    ppca,
    priors,
    random,
    train,
    tree,
    variance,
)  # fmt: skip
from funcvae.data import Dataset
from funcvae.models import recipe

vae = importlib.import_module("funcvae.vae")  # `fv.vae` is the function of that name

HUGE = (10**12, 2**62, 2**63, 10**30, 10**400)
SECONDS = 30  # a case that takes longer hangs


class World(NamedTuple):
    """A small model with what suits it."""

    model: fv.VAE
    params: Any
    state: Any
    x: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype


class _Digits(nn.Module):
    """Logits of images [1, 2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(z).unflatten(-1, (1, 2, 2))


@cache
def world(kind: str) -> World:
    """One of five small models; nobody may change what is in it."""
    if kind == "plane":
        model, x = models.gaussian2d_vae(2, 3), random.normal(random.key(1), (3, 2))
    elif kind == "linear":
        model, x = models.linear_vae(3, 1), random.normal(random.key(1), (3, 3), torch.float64)
    elif kind == "images":
        encoder = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4))  # noqa: E731
        model, x = vae.vae(encoder=encoder, decoder=_Digits, latent=2), torch.ones(3, 1, 2, 2)
    elif kind == "delta":
        model = vae.vae(encoder=lambda: nn.Linear(2, 2), decoder=lambda: nn.Linear(2, 2), latent=2,
                        posterior=heads.delta, likelihood=heads.normal_fixed(1.0))  # fmt: skip
        x = torch.zeros(3, 2)
    else:
        encoder = lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))  # noqa: E731
        model = vae.vae(encoder=encoder, decoder=lambda: nn.Linear(2, 4), latent=2, likelihood=heads.normal_logvar)
        x = random.normal(random.key(1), (3, 2))
    params, state = model.init(random.key(0))
    if x.dtype == torch.float64:
        params = tree.map(torch.Tensor.double, params)
    return World(model, params, state, x)


WORLDS = ("plane", "linear", "images", "delta", "batchnorm")

Rng = pyrandom.Random
Maker = Callable[[Rng, World], Any]


class Kind(NamedTuple):
    """What an argument may be: good values, and bad ones of its own besides the ones that are bad for all."""

    good: Maker
    bad: Maker | None = None
    junk: bool = True
    """Whether any odd object may stand for it too."""


def one_of(*values: Any) -> Maker:
    return lambda rng, w: rng.choice(values)


def calls(*makers: Callable[..., Any]) -> Maker:
    """One of several makers (rng, world) -> value."""
    return lambda rng, w: rng.choice(makers)(rng, w)


def _broken(*args: Any, **kwargs: Any) -> None:
    """A function that returns nothing of use."""


class Odd:
    """An object of no use, nor its class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def _strange_tensor(rng: Rng, w: World) -> torch.Tensor:
    shape = rng.choice([(), (0,), (1,), (2,), (3,), (3, 2), (2, 3), (0, 2), (3, 0), (1, 3, 2), (2, 3, 2), (2, 3, 1),
                        (3, 1, 2, 2), (2, 3, 1, 2, 2), (5, 7), (1, 1, 1, 1, 1, 1)])  # fmt: skip
    t = torch.ones(shape, dtype=rng.choice([torch.float32, torch.float64]))
    return strange(rng, t) if rng.random() < 0.7 else t


def strange(rng: Rng, t: torch.Tensor) -> torch.Tensor:
    """The tensor in another dtype, shape, layout or place, or with other values."""
    how = rng.randrange(16)
    dtypes = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float64, torch.float32,
              torch.int32, torch.uint8)  # fmt: skip
    if how == 0:
        return t.to("meta")
    if how == 1:
        return t.unsqueeze(0)
    if how == 2:
        return t[0] if t.ndim and len(t) else t
    if how == 3:
        return t[:0] if t.ndim else t
    if how == 4:
        return t[..., :0] if t.ndim else t
    if how == 5:
        return torch.cat([t, t], -1) if t.ndim else t
    if how == 6:
        return t.mT if t.ndim > 1 else t
    if how == 7:
        return (
            torch.full_like(t, rng.choice([math.nan, math.inf, -math.inf, 1e30, -1e30, -1, 0.5]))
            if t.is_floating_point()
            else t
        )
    if how == 8:
        return t.to_sparse() if t.ndim else t
    if how == 9:
        return t.detach().requires_grad_() if t.is_floating_point() else t
    if how == 10:
        return t[:1] if t.ndim else t
    if how == 11:
        return t.flatten()
    return t.to(rng.choice(dtypes))


def junk(rng: Rng, w: World) -> Any:
    how = rng.randrange(24)
    if how < 6:
        return _strange_tensor(rng, w)
    simple = (None, "x", "", b"x", 1.5, math.nan, math.inf, -math.inf, -1, 0, 1, True, *HUGE, -(10**30), 1e300, 1j,
              torch.float32, torch.int64, "cuda:99", range(3), slice(1))  # fmt: skip
    return rng.choice([*simple, [], (), {}, set(), [1], (2, 3), [None], ("a",), {"a": 1}, {"encoder": {}}, {1: None}, Odd(),
                       Odd, _broken, np.ones(3), np.array(["a"]), np.int64(2), np.float32(0.5), [[1, 2], [3]],
                       {"a": torch.ones(2)}, [torch.ones(2)], world("delta").model])  # fmt: skip


def bad_params(rng: Rng, w: World, which: str = "params") -> Any:
    """Parameters or state of which something is missing or wrong."""
    good = getattr(w, which)
    how = rng.randrange(9)
    nets = [name for name in good if good[name]]
    if how == 0:
        return {k: v for k, v in good.items() if k != rng.choice(list(good))}
    if how == 1:
        return {**good, rng.choice(list(good)): junk(rng, w)}
    if how == 2:
        return world(rng.choice(WORLDS)).__getattribute__(which)
    if how == 3:
        return {**good, "further": {}}
    if how == 4:
        return list(good.values())
    if not nets:
        return good
    net = rng.choice(nets)
    leaf = rng.choice(list(good[net]))
    if how == 5:
        return {**good, net: {k: v for k, v in good[net].items() if k != leaf}}
    if how == 6:
        return {**good, net: {**good[net], leaf: junk(rng, w)}}
    if how == 7:
        return {**good, net: {**good[net], "further": torch.ones(1)}}
    return {**good, net: {**good[net], leaf: strange(rng, good[net][leaf])}}


def of_tensor(good: Maker) -> Kind:
    return Kind(good, lambda rng, w: strange(rng, good(rng, w)))


def _log_w(rng: Rng, w: World) -> torch.Tensor:
    return random.normal(random.key(rng.randrange(99)), (rng.choice([1, 2, 4, 6]), 3), w.dtype)


def _broken_scheme(key: Any, n: Any, shape: Any, *, dtype: Any = None) -> Any:
    return torch.zeros(1)


def _key(rng: Rng, w: World) -> torch.Tensor:
    return random.key(rng.randrange(2**64))


KEY = of_tensor(_key)
SEED = Kind(lambda rng, w: rng.randrange(2**64))
DEVICE = Kind(one_of(None, "cpu", torch.device("cpu"), "meta"), one_of("", "nowhere", "cuda:99", "cpu:7", 99))
COUNT = Kind(one_of(1, 2, 3, 4, np.int64(2)), one_of(0, -1, True, 10**12, 2**63, torch.tensor(2)))
COUNT_2 = Kind(one_of(2, 4), one_of(0, 1, -1, 3, 10**12, 2**63))
FEW = Kind(one_of(2, 3), one_of(0, 1, -1, 10**12, 2**63))
SHAPE = Kind(
    one_of((), (3,), (2, 3), (2, 0), torch.Size([2])),
    one_of([2, 3], 3, (-1,), (2, -3), (10**12,), (10**6, 10**6), (2**63,), (2.0,), ("a",), (None,), (10**400,),
           torch.ones(2), (True,), (2**32, 2**32), (0, 10**12), (2,) * 70),
)  # fmt: skip
DTYPE = Kind(
    one_of(torch.float32, torch.float64), one_of(torch.float16, torch.int64, torch.complex64, "float32", float)
)
NUMBER = Kind(
    one_of(0.0, 0.5, 1.0, 1, -1.0, 2, np.float64(0.5)), one_of(*HUGE, math.nan, math.inf, -math.inf, 1e300, "0.5")
)
UNIT = Kind(one_of(0.0, 0.25, 0.5), one_of(1, 1.0, -0.1, 1.1, math.nan, math.inf, "0.5", torch.tensor(0.5)))
POSITIVE = Kind(one_of(0.5, 1, 2.0), one_of(0, -1, math.nan, math.inf, 1e-320, 1e300, 10**400, "1"))
TEXT = Kind(
    one_of("a", "encoder", "some title", "two\nlines", ""), one_of("$\\frac{", "a" * 3000, "\0", "\ud800", "日本")
)
FLAG = Kind(one_of(True, False), one_of(0, 1))
FUNCTION = Kind(one_of(lambda *args, **kwargs: None))
MODEL = Kind(lambda rng, w: w.model, lambda rng, w: world(rng.choice(WORLDS)).model)
PARAMS = Kind(lambda rng, w: w.params, bad_params)
STATE = Kind(lambda rng, w: w.state, lambda rng, w: bad_params(rng, w, "state"))
X = of_tensor(lambda rng, w: w.x)
EPS = of_tensor(lambda rng, w: random.normal(random.key(3), (rng.choice([1, 2, 4]), len(w.x), w.model.latent), w.dtype))
Z = of_tensor(
    lambda rng, w: random.normal(random.key(3), (*rng.choice([(3,), (1, 3), (2, 3)]), w.model.latent), w.dtype)
)
LOG_W = of_tensor(_log_w)
PARTITION = Kind(one_of((0, 1), (0, 0.5, 1), [0.0, 0.1, 1.0]), one_of((), (0,), (1, 0), (0, math.nan, 1), (0, "a", 1),
                 (0, 0.5, 0.5, 1), 0.5, (0, None), ((0, 1), 1), "01"))  # fmt: skip
SCHEME = Kind(
    one_of(noise.iid, noise.mirrored, noise.sobol, noise.moment_matched), one_of(_broken_scheme, _broken, Odd(), "iid")
)
SPEC = Kind(one_of(*estimators.EXAMPLES.values()), one_of("dreg:1", "renyi", "renyi:1", "miwae:0", "miwae:1.5", "tvo:0",
            "tvo:0:nan:1", "ovis:a", "", ":", "::::", "elbo ", "miwae:" + "9" * 5000, "renyi:1e999", "beta_elbo:inf",
            "ＥＬＢＯ", "beta_elbo:٣", "miwae:1_0", "a" * 3000, "a\nb"))  # fmt: skip


@cache
def _estimator(spec: str) -> fv.Estimator:
    return estimators.parse(spec)


ESTIMATOR = Kind(lambda rng, w: _estimator(rng.choice([*estimators.EXAMPLES.values()])),
                 one_of("iwae", estimators.iwae, _broken, Odd()))  # fmt: skip


def _weights_good(log_w: torch.Tensor) -> fv.Weights:
    v = log_w.softmax(0)
    return fv.Weights(v, -v, v)


WEIGHTS = Kind(
    one_of(_weights_good),
    one_of(_broken, lambda f: f, lambda f: (f, f), lambda f: fv.Weights(None, f, f), lambda f: fv.Weights(f[0], f, f),
           lambda f: fv.Weights(f, f, f.long())),
)  # fmt: skip
BOUND = Kind(one_of(bounds.iwae, bounds.elbo), one_of(_broken, lambda f: 1.0, lambda f: f, lambda f: f.sum()))
CLAIMS = Kind(lambda rng, w: _estimator("iwae").claims, one_of("L_K", fv.Claims(None, None, None, None, "what")))
PROGRESS = Kind(one_of(lambda *done: None))
TREE = Kind(
    lambda rng, w: rng.choice([w.params, [torch.ones(2)], {"a": torch.zeros(2, 2)}, torch.ones(()), (torch.ones(1), {})]),
    lambda rng, w: rng.choice([{}, [], None, {"a": None}, [1, "b"], {"a": torch.ones(2).long()}, {"a": _strange_tensor(rng, w)},
                               {1: torch.ones(2)}, {("a", "b"): torch.ones(2)}, [[[[[]]]]], {"a": Odd()}]),
)  # fmt: skip


def like(tree_: Kind, which: str = "params") -> Kind:
    return Kind(lambda rng, w: getattr(w, which), tree_.bad)


class Target(NamedTuple):
    """A function and what it takes."""

    name: str
    call: Callable[..., Any]
    kinds: dict[str, Kind]
    star: str | None
    weight: float
    worlds: tuple[str, ...]


TARGETS: dict[str, Target] = {}


def target(
    name: str, call: Callable[..., Any], /, *, star: str | None = None, weight: float = 1.0,
    worlds: tuple[str, ...] = WORLDS, **kinds: Kind,
) -> None:  # fmt: skip
    """Adds a function; `star` names the argument that is to be spread as *args."""
    assert name not in TARGETS, name
    TARGETS[name] = Target(name, call, kinds, star, weight, worlds)


# random, noise --------------------------------------------------------------------------------------------------------
target("random.key", random.key, seed=SEED, device=DEVICE)
target("random.split", random.split, key=KEY, num=COUNT)
target(
    "random.fold_in", random.fold_in, key=KEY, data=Kind(one_of(0, 3, 2**32 - 1, torch.tensor(3)), one_of(-1, 2**32))
)
target("random.bits", random.bits, key=KEY, shape=SHAPE)
target("random.uniform", random.uniform, key=KEY, shape=SHAPE, dtype=DTYPE, minval=NUMBER, maxval=NUMBER)
target("random.normal", random.normal, key=KEY, shape=SHAPE, dtype=DTYPE)
P = Kind(one_of(0.5, 0, 1, torch.full((2, 3), 0.5), torch.tensor(0.5)), one_of(-1, 2, math.nan, torch.ones(7), "0.5"))
target("random.bernoulli", random.bernoulli, key=KEY, p=P, shape=Kind(one_of(None, (2, 3)), SHAPE.bad))
target("random.permutation", random.permutation, key=KEY,
       x=Kind(one_of(0, 1, 5, torch.ones(3, 2)), calls(_strange_tensor, one_of(-1, *HUGE))))  # fmt: skip
target("random.checked", random.checked, key=KEY)
for scheme in (noise.iid, noise.mirrored, noise.moment_matched, noise.sobol):
    target(f"noise.{scheme.__name__}", scheme, key=KEY, n=COUNT_2, shape=SHAPE, dtype=DTYPE)
target("noise.independent", noise.independent, scheme=Kind(lambda rng, w: lambda key, n, shape: None))
target("noise.is_independent", noise.is_independent, scheme=SCHEME)
target("noise.name_of", noise.name_of, scheme=SCHEME)
NAME = Kind(one_of(*noise.TABLE), one_of("sobl", "", "a\nb", "x" * 3000))
target("noise.parse", noise.parse, name=NAME)

# bounds, importance, pareto, ppca -------------------------------------------------------------------------------------
target("bounds.elbo", bounds.elbo, log_w=LOG_W)
target("bounds.iwae", bounds.iwae, log_w=LOG_W)
target("bounds.renyi", lambda alpha, log_w: bounds.renyi(alpha)(log_w), alpha=NUMBER, log_w=LOG_W)
target("bounds.miwae", lambda m, log_w: bounds.miwae(m)(log_w), m=COUNT, log_w=LOG_W)
target("bounds.ciwae", lambda beta, log_w: bounds.ciwae(beta)(log_w), beta=UNIT, log_w=LOG_W)
target("bounds.tvo", lambda partition, log_w: bounds.tvo(partition)(log_w), partition=PARTITION, log_w=LOG_W)
target("bounds.groups", bounds.groups, log_w=LOG_W, m=COUNT)
target("bounds.rising", bounds.rising, partition=PARTITION)
target("bounds.tempered_mean", bounds.tempered_mean, log_w=LOG_W, beta=NUMBER)
target("importance.likelihood", importance.likelihood, log_w=LOG_W)
RUNGS = Kind(
    one_of((1,), [1, 2], (2, 4)), one_of((), (0,), (-1, 2), (1.5,), ("a",), 3, (10**12,), (10**400,), "12", (None,))
)
target("importance.ladder", importance.ladder, log_w=LOG_W, samples=RUNGS)
target("importance.posterior_gap", importance.posterior_gap, log_w=LOG_W)
target("importance.check_rungs", importance.check_rungs, samples=RUNGS)
target("importance.standard_error", importance.standard_error, values=LOG_W)
FOUND = Kind(lambda rng, w: importance.likelihood(_log_w(rng, w)))
ITEMS = Kind(one_of(None, torch.arange(3)), calls(_strange_tensor, one_of(torch.arange(1), torch.ones(3))))
target("importance.distrust", importance.distrust, found=FOUND, items=ITEMS)
BAD = of_tensor(one_of(torch.tensor([False, True, False])))
target("importance.first_item", importance.first_item, bad=BAD, items=ITEMS)
target("pareto.k_hat", pareto.k_hat, log_w=LOG_W)
target("pareto.threshold", pareto.threshold, samples=COUNT)
DATA = of_tensor(one_of(random.normal(random.key(0), (6, 3)), random.normal(random.key(0), (2, 2), torch.float64)))
SIGMA2 = Kind(one_of(None, 0.5), POSITIVE.bad)
target("ppca.eigenvalues", ppca.eigenvalues, x=DATA)
target("ppca.ppca", ppca.ppca, x=DATA, latent=COUNT, sigma2=SIGMA2)
_PPCA = ppca.ppca(random.normal(random.key(0), (6, 3)), 1)
target("ppca.PPCA.log_likelihood", _PPCA.log_likelihood, x=of_tensor(one_of(torch.ones(2, 3))))
target("ppca.PPCA.posterior", _PPCA.posterior, x=of_tensor(one_of(torch.ones(2, 3))))

# distributions, heads, priors, optim, tree ----------------------------------------------------------------------------
LEAF = of_tensor(one_of(torch.ones(3, 2), torch.ones(()), torch.full((2,), 0.5)))


def _on(method: str, made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value, **fields: getattr(made(**fields), method)(value)


for name in ("Normal", "SignedNormal"):
    for method in ("log_prob", "sample"):
        made = _on(method, getattr(distributions, name))
        target(f"distributions.{name}.{method}", made, loc=LEAF, sigma=LEAF, value=LEAF)
for method in ("log_prob", "sample"):
    target(f"distributions.Bernoulli.{method}", _on(method, distributions.Bernoulli), logits=LEAF, value=LEAF)
    target(f"distributions.Delta.{method}", _on(method, distributions.Delta), loc=LEAF, value=LEAF)


def _distribution(rng: Rng, w: World) -> Any:
    a, b = torch.zeros(3, 2), torch.ones(3, 2)
    return rng.choice([distributions.Normal(a, b), distributions.SignedNormal(a, b), distributions.Delta(a),
                       distributions.Bernoulli(a)])  # fmt: skip


def _bad_distribution(rng: Rng, w: World) -> Any:
    return distributions.Normal(junk(rng, w), rng.choice([torch.ones(3, 2), junk(rng, w)]))


DISTRIBUTION = Kind(_distribution, _bad_distribution)
target("distributions.kl", distributions.kl, q=DISTRIBUTION, p=DISTRIBUTION)
OUT = Kind(lambda rng, w: rng.choice([torch.ones(3, 4), (torch.ones(3, 2), torch.ones(3, 2))]),
           lambda rng, w: rng.choice([(junk(rng, w), junk(rng, w)), (torch.ones(2),), (torch.ones(3, 2), torch.ones(4)),
                                      torch.ones(3), strange(rng, torch.ones(3, 4))]))  # fmt: skip
for head in (heads.normal_logvar, heads.normal_logsigma, heads.signed_normal, heads.bernoulli, heads.delta):
    target(f"heads.{head.__name__}", head, out=OUT)
target("heads.normal_fixed", lambda sigma, out: heads.normal_fixed(sigma)(out), sigma=POSITIVE, out=OUT)
target("priors.standard_normal", lambda z: priors.standard_normal()(z), z=Z)


def _adam(grads: Any, params: Any, first: Any, how: str, **options: Any) -> Any:
    opt = optim.adam(**options)
    state = opt.init(first)
    if how == "update_":
        params = tree.map(torch.clone, tree.checked(params))
    return getattr(opt, how)(grads, state, params)


RATE = Kind(one_of(1e-3, 1, 0, lambda step: 0.1, lambda step: step.double()), one_of(-1, math.nan, math.inf, 10**400,
            "a", _broken, lambda step: "a", lambda step: torch.ones(2), lambda step: torch.ones((), device="meta")))  # fmt: skip
DECAY = Kind(one_of(0, 0.9), one_of(1, 1.0, -0.1, math.nan, "0.9", 10**400))
target("optim.adam", lambda params, **options: optim.adam(**options).init(params), lr=RATE, b1=DECAY, b2=DECAY,
       eps=Kind(one_of(0, 1e-8), one_of(-1, math.nan, math.inf, "a")), params=PARAMS)  # fmt: skip
target("optim.Optimizer.update", _adam, grads=PARAMS, params=PARAMS, first=PARAMS, lr=RATE,
       how=Kind(one_of("update", "update_"), junk=False))  # fmt: skip

target("tree.map", tree.map, star="trees", f=Kind(one_of(lambda *leaves: leaves[0]), one_of(None, 3, "x"), junk=False),
       trees=Kind(lambda rng, w: [w.params] * rng.choice([1, 2]),
                  lambda rng, w: rng.choice([[], [w.params, TREE.bad(rng, w)], [TREE.bad(rng, w)], [TREE.bad(rng, w), w.params]]),
                  junk=False))  # fmt: skip
for f in (tree.leaves, tree.structure, tree.named_leaves, tree.zeros_like, tree.norm, tree.sha256):
    target(f"tree.{f.__name__}", f, tree=TREE)
target("tree.from_named", tree.from_named, named=Kind(lambda rng, w: tree.named_leaves(w.params),
       lambda rng, w: {k: v for k, v in tree.named_leaves(w.params).items() if rng.random() < 0.9}), like=like(TREE))  # fmt: skip
target("tree.like", tree.like, leaves=Kind(lambda rng, w: tree.leaves(w.params),
       lambda rng, w: [strange(rng, leaf) if rng.random() < 0.2 else leaf for leaf in tree.leaves(w.params)]),
       tree=like(TREE))  # fmt: skip

# module, vae ----------------------------------------------------------------------------------------------------------
_LINEAR = nn.Linear(2, 2)
FACTORY = Kind(
    one_of(lambda: nn.Linear(2, 4), lambda: nn.BatchNorm1d(2), nn.Identity),
    one_of(
        _LINEAR,
        lambda: _LINEAR,
        nn.Linear,
        lambda: None,
        lambda x: x,
        lambda: torch.ones(2),
        lambda: nn.Dropout(0.5),
        Odd,
    ),
)


class Theirs(Exception):
    """What a user's own network raises, which is not ours to explain."""


class _Net(nn.Module):
    """A network that tells its own errors from the library's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))

    def forward(self, *inputs: Any) -> torch.Tensor:
        try:
            return self.layers(*inputs)
        except Exception as error:
            raise Theirs from error


_NET = module.functional(_Net)
_NET_PARAMS, _NET_STATE = _NET.init(random.key(0))


def _flat(good: dict[str, Any]) -> Kind:
    def bad(rng: Rng, w: World) -> Any:
        leaf = rng.choice(list(good))
        return rng.choice([{}, {**good, leaf: junk(rng, w)}, {**good, leaf: strange(rng, good[leaf])}, {**good, "more": good[leaf]},
                           {k: v for k, v in good.items() if k != leaf}])  # fmt: skip

    return Kind(one_of(good), bad)


def _functional(factory: Any, key: Any) -> Any:
    net = module.functional(factory)
    return net.apply(*net.init(key), torch.ones(3, 2, device=key.device), train=True)


target("module.functional", _functional, weight=0.3, factory=FACTORY, key=KEY)
target("module.Functional.init", _NET.init, weight=0.3, key=KEY)
target("module.Functional.apply", _NET.apply, star="inputs", params=_flat(_NET_PARAMS), state=_flat(_NET_STATE), train=FLAG,
       inputs=Kind(one_of((torch.ones(3, 2),)), lambda rng, w: rng.choice([(), (junk(rng, w),), (torch.ones(3, 2),) * 2,
                                                                          (strange(rng, torch.ones(3, 2)),)]), junk=False))  # fmt: skip


def _vae(key: Any, x: Any, z: Any, **made: Any) -> Any:
    model = vae.vae(**made)
    params, state = model.init(key)
    q, state = model.encode(params, state, x)
    p, state = model.decode(params, state, z)
    return vae.log_likelihood(p, x), vae.log_prob(q, z)


HEAD = Kind(one_of(heads.normal_logvar, heads.normal_logsigma), one_of(_broken, heads.normal_fixed, "bernoulli", lambda out: out,
            heads.delta, heads.bernoulli, lambda out: distributions.Normal(out, None), lambda out: distributions.Normal(1.0, out)))  # fmt: skip
target("vae.vae", _vae, weight=0.3, encoder=FACTORY, decoder=FACTORY, prior=Kind(one_of(priors.standard_normal), FACTORY.bad),
       latent=Kind(one_of(2), COUNT.bad), posterior=HEAD, likelihood=HEAD, key=KEY, x=of_tensor(one_of(torch.ones(3, 2))),
       z=of_tensor(one_of(torch.ones(1, 3, 2))))  # fmt: skip
MODEL_ARGS = {"params": PARAMS, "state": STATE}
GOOD_MODEL = Kind(lambda rng, w: w.model, junk=False)
target("vae.VAE.init", lambda model, key: model.init(key), weight=0.3, model=GOOD_MODEL, key=KEY)
target(
    "vae.VAE.encode", lambda model, **kwargs: model.encode(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, x=X, train=FLAG
)
target(
    "vae.VAE.decode", lambda model, **kwargs: model.decode(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, z=Z, train=FLAG
)
target("vae.VAE.prior", lambda model, **kwargs: model.prior(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, z=Z, train=FLAG)


def _decoded(rng: Rng, w: World) -> Any:
    z = torch.zeros(2, len(w.x), w.model.latent, dtype=w.dtype)
    return w.model.decode(w.params, w.state, z)[0]


DECODED = Kind(_decoded, _bad_distribution)
target("vae.log_prob", vae.log_prob, p=DECODED, x=X)
target("vae.log_likelihood", vae.log_likelihood, p=DECODED, x=X)

# engine, estimators ---------------------------------------------------------------------------------------------------
CALL = {"model": MODEL, "params": PARAMS, "state": STATE, "x": X, "eps": EPS}
SOME = Kind(lambda rng, w: rng.choice([*estimators.EXAMPLES.values()]), junk=False)
target(
    "engine.Estimator.__call__", lambda spec, **call: _estimator(spec)(**call), weight=3, spec=SOME, **CALL, train=FLAG
)
target("engine.Estimator.bound", lambda spec, **call: _estimator(spec).bound(**call), spec=SOME, **CALL)
target(
    "engine.Estimator.claims_under", lambda spec, noise: _estimator(spec).claims_under(noise), spec=SOME, noise=SCHEME
)


def _weighted(call: Any, **made: Any) -> Any:
    return engine.weighted(**made)(*call, train=True)


GOOD_CALL = Kind(lambda rng, w: (w.model, w.params, w.state, w.x, EPS.good(rng, w)), junk=False)
target("engine.weighted", _weighted, weights=WEIGHTS, bound=BOUND, claims=CLAIMS, name=Kind(one_of("mine", None)),
       two_pulls=FLAG, call=GOOD_CALL)  # fmt: skip
target("engine.analytic_kl", lambda call, **made: engine.analytic_kl(**made)(*call, train=True), name=TEXT, beta=NUMBER,
       claims=CLAIMS, call=GOOD_CALL)  # fmt: skip


def _several(rng: Rng, w: World) -> Any:
    return [_estimator(spec) for spec in rng.sample([*estimators.EXAMPLES.values()], 2)]


SEVERAL = Kind(_several, lambda rng, w: [_estimator("iwae"), rng.choice([junk(rng, w), _broken])])
target("engine.together", engine.together, estimators=SEVERAL, **CALL, train=FLAG)
target("engine.surrogate", lambda estimator, **call: engine.surrogate(estimator)(**call), estimator=ESTIMATOR, **CALL,
       train=FLAG)  # fmt: skip


def _posterior(rng: Rng, w: World) -> Any:
    return w.model.encode(w.params, w.state, w.x)[0]


target("engine.log_weight", engine.log_weight, model=MODEL, **MODEL_ARGS, x=X, q=Kind(_posterior, _bad_distribution), z=EPS,
       train=FLAG)  # fmt: skip
for factory in (estimators.elbo, estimators.elbo_mc, estimators.stl, estimators.iwae, estimators.iwae_stl, estimators.dreg,
                estimators.score, estimators.rloo, estimators.vimco, estimators.rws):  # fmt: skip
    target(f"estimators.{factory.__name__}", lambda factory=factory, **call: factory()(**call), weight=0.2,
           **CALL, train=FLAG)  # fmt: skip
ARGUMENT = {"beta_elbo": NUMBER, "renyi": NUMBER, "vr_iwae_dreg": UNIT, "ovis": UNIT, "miwae": COUNT, "ciwae": UNIT,
            "piwae": COUNT, "tvo": PARTITION}  # fmt: skip
for name, kind in ARGUMENT.items():
    factory = estimators.TABLE[name]
    target(f"estimators.{name}", lambda argument, call, factory=factory: factory(argument)(*call, train=True),
           weight=0.5, argument=kind, call=GOOD_CALL)  # fmt: skip
target("estimators.parse", estimators.parse, spec=SPEC)
target("estimators.weights_of", estimators.weights_of, name=Kind(one_of(*estimators.TABLE), NAME.bad))
target("estimators.others_mean", estimators.others_mean, f=LOG_W)
target("estimators.others_logsumexp", estimators.others_logsumexp, f=LOG_W)

# evaluate, train ------------------------------------------------------------------------------------------------------
ON = {"model": MODEL, "params": PARAMS, "state": STATE, "x": X}
BATCH = Kind(one_of(1, 2, 500), one_of(0, -1, 10**12, 2**63, 10**400))
target(
    "evaluate.log_weights",
    evaluate.log_weights,
    **ON,
    key=KEY,
    samples=COUNT,
    chunk=BATCH,
    progress=PROGRESS,
    items=ITEMS,
)
target("evaluate.log_likelihood", evaluate.log_likelihood, **ON, key=KEY, samples=COUNT, chunk=BATCH, progress=PROGRESS)
target("evaluate.bound_ladder", evaluate.bound_ladder, **ON, key=KEY, samples=RUNGS, chunk=BATCH)
target("evaluate.active_units", evaluate.active_units, **ON, threshold=NUMBER, batch=BATCH)
target("evaluate.kl_per_dimension", evaluate.kl_per_dimension, **ON, batch=BATCH)
target("evaluate.reconstruction_error", evaluate.reconstruction_error, **ON, key=KEY, samples=COUNT, batch=BATCH)
target("evaluate.squared_error", evaluate.squared_error, **ON, batch=BATCH)

OPT = Kind(
    lambda rng, w: optim.adam(1e-3), one_of(optim.adam, optim.Optimizer(_broken, _broken), optim.Optimizer(None, None))
)
TRAIN_STATE = Kind(
    lambda rng, w: _trained(w),
    lambda rng, w: _trained(w)._replace(**{rng.choice(train.TrainState._fields): junk(rng, w)}),
)
OBSERVE = Kind(one_of(train.as_is), one_of(_broken, lambda key, x: x[:1], lambda key, x: x.long(), lambda key, x: 3))
SCALE = Kind(one_of(train.per_example, train.summed), one_of(_broken, lambda b: "a", lambda b: math.nan))


def _trained(w: World) -> Any:
    return train.init(w.model, optim.adam(), random.key(5))._replace(
        params=w.params, state=w.state, opt_state=optim.adam().init(w.params)
    )


target("train.init", train.init, weight=0.3, model=MODEL, opt=OPT, key=KEY)
target("train.check_data", train.check_data, model=MODEL, **MODEL_ARGS, data=X, observe=OBSERVE, name=TEXT)


def _step(ts: Any, keys: Any, x: Any, **made: Any) -> Any:
    return train.make_step(**made)(ts, keys, x)


target("train.make_step", _step, weight=0.5, model=MODEL, estimator=ESTIMATOR, update=Kind(lambda rng, w: optim.adam().update),
       samples=FEW, observe=OBSERVE, noise=SCHEME, scale=SCALE, offset=NUMBER, ts=TRAIN_STATE,
       keys=of_tensor(lambda rng, w: random.split(random.key(3))), x=X)  # fmt: skip
target("train.fit", lambda data, **rest: train.fit(train=data, **rest), weight=0.3, ts=TRAIN_STATE, model=MODEL, estimator=ESTIMATOR, opt=OPT, data=X,
       test=X, epochs=Kind(one_of(1, 2), one_of(0, -1, "a", 1.5, None), junk=False), batch=BATCH, samples=FEW, observe=OBSERVE,
       noise=SCHEME, scale=SCALE, offset=NUMBER, save_every=Kind(one_of(0, 1)))  # fmt: skip
target("train.test_bound", train.test_bound, weight=0.3, model=MODEL, estimator=ESTIMATOR, ts=TRAIN_STATE, test=X, key=KEY,
       batch=BATCH, samples=FEW, observe=OBSERVE, noise=SCHEME)  # fmt: skip

# models ---------------------------------------------------------------------------------------------------------------
LATENT = Kind(one_of(1, 2), COUNT.bad)
target("models.gaussian2d_vae", models.gaussian2d_vae, weight=0.2, latent=LATENT, hidden=LATENT)
target("models.linear_vae", models.linear_vae, weight=0.2, inputs=LATENT, latent=LATENT, sigma2=SIGMA2)
target(
    "models.burda_vae",
    models.burda_vae,
    weight=0.1,
    latent=LATENT,
    mean=Kind(one_of(None, torch.ones(1, 28, 28)), _strange_tensor),
)
target("models.mnist_ae", models.mnist_ae, weight=0.05, latent=LATENT)
target("models.mnist_vae", models.mnist_vae, weight=0.05, latent=LATENT)
target("models.mnist_bn_vae", models.mnist_bn_vae, weight=0.05, latent=LATENT, alpha=POSITIVE)
ACTIVATION = Kind(one_of(nn.ReLU, nn.Identity), one_of(nn.ReLU(), nn.Linear, _broken))
target(
    "models.mnist_sigma_vae",
    models.mnist_sigma_vae,
    weight=0.1,
    latent=LATENT,
    activation=ACTIVATION,
    output=ACTIVATION,
)
target("models.cifar_resnet_vae", models.cifar_resnet_vae, weight=0.004, latent=LATENT, height=LATENT, width=LATENT)
IMAGES = of_tensor(one_of(torch.full((2, 3, 4, 4), 0.5)))
target("models.recipe.binarize", recipe.binarize, weight=0.3, key=KEY, x=IMAGES)
target("models.recipe.to_tanh_range", recipe.to_tanh_range, weight=0.3, key=KEY, x=IMAGES)
target("models.recipe.from_tanh_range", recipe.from_tanh_range, weight=0.3, x=IMAGES)
target("models.cifar.standardize", models.cifar.standardize, weight=0.3, key=KEY, x=IMAGES)
target("models.cifar.to_pixels", models.cifar.to_pixels, weight=0.3, x=IMAGES)
target("models.burda.burda_schedule", lambda n, step: models.burda.burda_schedule(n)(step), weight=0.3, n=COUNT,
       step=of_tensor(one_of(torch.tensor(3))))  # fmt: skip
RECIPES = one_of(*models.RECIPES.values())
target(
    "models.Recipe.optimizer",
    lambda which, n, lr: which.optimizer(n, lr),
    which=Kind(RECIPES, junk=False),
    n=COUNT,
    lr=RATE,
)

# variance -------------------------------------------------------------------------------------------------------------
GROUPS = Kind(one_of((), ("encoder/*",), ["all"]), one_of(("nobody",), "encoder", (1,), (None,), [[]], ("[",), ("\n",)))
LAB = {**ON, "key": KEY, "samples": FEW, "replicates": FEW, "chunk": Kind(one_of(None, 1, 2), BATCH.bad), "noise": SCHEME,
       "groups": GROUPS, "train": FLAG, "progress": PROGRESS}  # fmt: skip
ARMS = Kind(
    lambda rng, w: rng.choice([{"a": _estimator("iwae"), "b": (_estimator("stl"), noise.mirrored)}, {"a": _estimator("elbo")}]),
    lambda rng, w: rng.choice([{}, {"a": junk(rng, w)}, {1: _estimator("iwae")}, {"a": (_estimator("iwae"),)}, [_estimator("iwae")],
                               {"a": (_estimator("iwae"), _broken)}, {"a": _broken}, {"a": (1, 2, 3)}]),
)  # fmt: skip
target("variance.compare", variance.compare, weight=0.1, arms=ARMS, **LAB, reference=Kind(one_of(None, "a"), one_of("c", 1)),
       target_se=Kind(one_of(None, 1e9), one_of(0, -1, math.nan, "a")), timings=Kind(one_of(0, 1), one_of(-1, 2**63)))  # fmt: skip
target("variance.moments", variance.moments, weight=0.2, estimator=ESTIMATOR, **LAB)
target("variance.exact", variance.exact, weight=0.2, estimator=ESTIMATOR, **ON, samples=Kind(one_of(1, 2), FEW.bad),
       nodes=Kind(one_of(1, 2), one_of(0, -1, 257, 256, 10**12, 2**63)))  # fmt: skip
target("variance.sources", lambda x, **rest: variance.sources(data=x, **rest), weight=0.1, estimator=ESTIMATOR,
       **{k: v for k, v in LAB.items() if k != "chunk"}, batch=Kind(one_of(1, 2, 3), BATCH.bad), batches=FEW, observe=OBSERVE)  # fmt: skip


def _measure(value: Any, key: Any) -> Any:
    return {"a": variance.Measured(2.0 * value, 0.1, 1.0, 3.0), "b": variance.Measured(1.0, 0.0, 1.0, 1.0)}


MEASURE = Kind(one_of(_measure), one_of(_broken, lambda v, k: {"a": 1.0}, lambda v, k: [1], lambda v, k: {}, lambda v, k: {v: _measure(1, k)["a"]},
               lambda v, k: {"a": variance.Measured("a", None, 1, 1)}))  # fmt: skip
VALUES = Kind(one_of((1, 2), [1.0, 4.0, 16.0], (1,)), one_of((), (1, 1), (0, -1), ("a",), (None,), (math.nan,), (math.nan, math.inf),
              3, ([],), (10**400, 1), (10**30, 1), "12", torch.ones(2), np.array([1, 2])))  # fmt: skip
target("variance.sweep", variance.sweep, measure=MEASURE, values=VALUES, key=KEY, over=TEXT, progress=PROGRESS)
MEASURED = Kind(lambda rng, w: [variance.Measured(rng.choice([1.0, 2.0, 0.0]), 0.1, 0.5, 3.0) for _ in range(2)],
                lambda rng, w: rng.choice([[], [1, 2], [variance.Measured(math.nan, math.inf, 1, 1)] * 2,
                                           [variance.Measured(junk(rng, w), junk(rng, w), 1, 1)] * 2]))  # fmt: skip
target("variance.slope", variance.slope, values=Kind(one_of((1, 2), [2.0, 5.0]), VALUES.bad), measured=MEASURED)
_SWEEP = variance.sweep(_measure, (1, 2, 4), random.key(0))
target(
    "variance.Sweep.only",
    _SWEEP.only,
    star="names",
    names=Kind(one_of(("a",), ("a", "b"), ()), one_of(("c",), (1,), (None,), ([],), ("",)), junk=False),
)


@cache
def _comparison() -> variance.Comparison:
    w = world("plane")
    arms = {"iwae": estimators.iwae(), "dreg": estimators.dreg()}
    return variance.compare(arms, w.model, w.params, w.state, w.x, random.key(0), samples=2, replicates=8, timings=1)


target("variance.Comparison.row", lambda name: _comparison().row(name), name=Kind(one_of("iwae", "dreg"), NAME.bad))
target(
    "variance.Compared.cost",
    lambda group: _comparison().row("iwae").cost(group),
    group=Kind(one_of("all", "encoder"), NAME.bad),
)

# plots, pictures ------------------------------------------------------------------------------------------------------


def array(*shape: int, low: float = 0.1) -> Kind:
    """Floats of a shape, as an array, lists or a tensor."""

    def good(rng: Rng, w: World) -> Any:
        values = np.sort(np.array([rng.uniform(low, 1) for _ in range(math.prod(shape))])).reshape(shape)
        return rng.choice([values, values.tolist(), torch.from_numpy(values)])

    def bad(rng: Rng, w: World) -> Any:
        values = torch.linspace(low, 1, math.prod(shape)).reshape(shape)
        odd = [np.array(["a"] * 3), np.full(shape, np.nan), np.full(shape, 1e308), np.full(shape, 1e-320), -np.ones(shape),
               np.zeros(shape), np.ones(shape, complex), np.full(shape, None), np.full(shape, np.inf), np.ones(shape, bool),
               np.ones(shape, "datetime64[s]"), np.full(shape, 1e16), np.ones((*shape, 1)), "x", [[1], [1, 2]]]  # fmt: skip
        return rng.choice(odd) if rng.random() < 0.6 else strange(rng, values)

    return Kind(good, bad)


def figure(name: str, call: Callable[..., Any], /, weight: float = 0.02, **kinds: Kind) -> None:
    """A function that returns a figure, which is drawn now and then."""

    def drawn(**kwargs: Any) -> Any:
        made = call(**kwargs)
        assert isinstance(made, Figure)
        return made

    target(name, drawn, weight=weight, **kinds)


def maybe(kind: Kind) -> Kind:
    return Kind(lambda rng, w: rng.choice([None, kind.good(rng, w)]), kind.bad)


TITLE = TEXT
PAIR = Kind(one_of(("z1", "z2"), ["a", "b"]), one_of(("a",), ("a", "b", "c"), (1, 2), "ab", (None, None)))
EXTENT = Kind(one_of(None, (0, 1, 0, 1), (-1.0, 1.0, 0.0, 2.0)), one_of((1, 0, 0, 1), (0, 1, 0), ("a", "b", "c", "d"),
              (0, math.inf, 0, 1), (math.nan,) * 4, (0, 1e-320, 0, 1), (0, 1e308, -1e308, 1e308), "abcd", (None,) * 4))  # fmt: skip
NAMES = Kind(
    one_of(["a", "b", "c"], ("x", "y", "z")), one_of(["a"], "abc", [1, 2, 3], [None] * 3, ["a", "b", "\0"], [])
)
TRUSTED = maybe(array(3))
figure("plots.image_grid", plots.image_grid, images=array(2, 2, 1, 3, 3), extent=EXTENT, axes=PAIR, title=TITLE)
figure("plots.sample_grid", plots.sample_grid, images=array(3, 1, 3, 3), title=TITLE)
figure(
    "plots.reconstructions",
    plots.reconstructions,
    originals=array(2, 3, 2, 2),
    reconstructed=array(2, 3, 2, 2),
    title=TITLE,
)
ENDS = Kind(lambda rng, w: rng.choice([None, (np.ones((1, 3, 3)), np.zeros((1, 3, 3)))]),
            lambda rng, w: rng.choice([(np.ones((1, 3, 3)),), (1, 2), "ab", (np.ones((1, 3, 3)), None), (np.ones((3, 3, 3)),) * 2]))  # fmt: skip
figure("plots.interpolation", plots.interpolation, images=array(3, 1, 3, 3), ends=ENDS, title=TITLE)
LABELS = Kind(one_of(None, [0, 1, 0, 2], ["a", "b", "a", "a"], np.array([0.5, 1.5, 2.5, 0.1])),
              one_of([1], [None] * 4, [{}] * 4, [1, "a", None, 2.0], torch.ones(4, device="meta"), [math.nan] * 4, [math.inf, 0.5, 1, 2],
                     [1j] * 4, [1e300, 1.5, 2, 3], ["a", "b", "c"], np.ones(4, "datetime64[s]"), [True, False, True, True], ["$\\frac{"] * 4))  # fmt: skip
figure("plots.latent_scatter", plots.latent_scatter, z=array(4, 2), labels=LABELS, axes=PAIR, title=TITLE)
figure("plots.densities", plots.densities, true=array(5, 2), learned=array(4, 2), mean=maybe(array(2)),
       cov=Kind(one_of(np.eye(2), [[1.0, 0.5], [0.5, 2.0]], None), array(2, 2).bad), names=PAIR, title=TITLE)  # fmt: skip
figure(
    "plots.evolution",
    plots.evolution,
    weight=0.01,
    step=array(2),
    samples=array(2, 3, 2),
    true=array(4, 2),
    title=TITLE,
)
figure("plots.training_curves", plots.training_curves, step=array(3), bound=array(3), test_step=array(2), test_bound=array(2),
       grad_norm=maybe(array(3)), unit=TEXT, name=TEXT, title=TITLE)  # fmt: skip
figure(
    "plots.bound_ladder",
    plots.bound_ladder,
    samples=Kind(one_of([1, 10, 100]), array(3).bad),
    bound=array(3),
    se=array(3),
    title=TITLE,
)
figure(
    "plots.latent_use",
    plots.latent_use,
    kl=array(3),
    active=Kind(one_of([True, False, True]), array(3).bad),
    title=TITLE,
)
figure("plots.variance_bars", plots.variance_bars, names=NAMES, variance=array(3), low=array(3), high=array(3), trusted=TRUSTED,
       unit=TEXT, title=TITLE)  # fmt: skip
figure("plots.variance_by_layer", plots.variance_by_layer, names=NAMES, layers=Kind(one_of(["l1", "l2"]), NAMES.bad),
       variance=array(3, 2), reference=Kind(one_of(None, 0, 2), one_of(-1, 3)), title=TITLE)  # fmt: skip
figure("plots.variance_cost", plots.variance_cost, names=NAMES, seconds=array(3), variance=array(3), low=array(3), high=array(3),
       trusted=TRUSTED, title=TITLE)  # fmt: skip
SERIES = Kind(lambda rng, w: {"a": (array(3).good(rng, w), array(3).good(rng, w))},
              lambda rng, w: rng.choice([{}, {"a": 1}, {"a": (1,)}, {1: ([1, 2, 3], [0, 0, 0])}, {"a": (array(3).bad(rng, w), [1, 1, 1])},
                                         {"a": ([1, 2, 3], array(3).bad(rng, w))}, {"a": ([1, 2], [1, 2])}]))  # fmt: skip
SLOPES = Kind(one_of(None, {"a": (1.0, 0.1)}, {}), one_of({"b": (1, 1)}, {"a": 1}, {"a": ("x", "y")}, {"a": (math.nan, math.inf)},
              {"a": (1e300, 1e-320)}, {"a": (1.0, -1.0)}, {"a": (1,)}, [1], {"a": (None, None)}))  # fmt: skip
figure("plots.sweep", plots.sweep, values=array(3), series=SERIES, slopes=SLOPES, xlabel=TEXT, ylabel=TEXT, title=TITLE)

FOLDER = tempfile.TemporaryDirectory(prefix="funcvae-fuzz-")
PATH = Kind(lambda rng, w: f"{FOLDER.name}/a.{rng.choice(['png', 'gif'])}", one_of("a.txt", "", f"{FOLDER.name}/a.png/b.png", f"{FOLDER.name}/a\0.png",
            "/proc/nowhere/a.gif", f"{FOLDER.name}/{'a' * 300}.png"))  # fmt: skip
target("plots.save", plots.save, weight=0.02, figure=Kind(lambda rng, w: Figure(figsize=(1, 1))), path=PATH)
target("plots.save_gif", plots.save_gif, weight=0.05, images=array(2, 1, 3, 3), path=PATH,
       size=Kind(one_of(4, 8), one_of(0, -1, 10**12, 1.5, math.nan)), seconds=Kind(one_of(1, 0.5), POSITIVE.bad))  # fmt: skip

SEES = {"model": MODEL, "params": PARAMS, "state": STATE}
PIXELS = Kind(one_of(pictures.as_is), one_of(_broken, lambda x: x.flatten(), lambda x: 3))
target("pictures.latents", pictures.latents, **SEES, x=X)
target(
    "pictures.decoded",
    pictures.decoded,
    **SEES,
    z=of_tensor(lambda rng, w: torch.ones(3, w.model.latent, dtype=w.dtype)),
)
target("pictures.reconstructed", pictures.reconstructed, **SEES, x=X, key=KEY)
target("pictures.samples", pictures.samples, **SEES, key=KEY, n=COUNT, drawn=FLAG)
ITEM = of_tensor(lambda rng, w: w.x[0])
target("pictures.interpolated", pictures.interpolated, **SEES, first=ITEM, second=ITEM, steps=FEW)
PLANE = of_tensor(one_of(torch.eye(3, 2), torch.eye(4, 3), torch.ones(2, 1)))
target("pictures.latent_plane", pictures.latent_plane, z=PLANE)
target(
    "pictures.decoded_grid",
    pictures.decoded_grid,
    weight=0.3,
    worlds=("plane", "images"),
    **SEES,
    z=of_tensor(one_of(torch.eye(3, 2))),
)
figure(
    "pictures.latent_scatter",
    pictures.latent_scatter,
    **SEES,
    x=X,
    labels=Kind(one_of(None, torch.arange(3)), _strange_tensor),
    name=TEXT,
)
DRAW = {"pixels": PIXELS, "name": TEXT}
target("pictures.latent_grid", pictures.latent_grid, weight=0.02, worlds=("images", "plane"), **SEES, x=X, **DRAW)
target(
    "pictures.reconstructions",
    pictures.reconstructions,
    weight=0.02,
    worlds=("images", "plane"),
    **SEES,
    x=X,
    key=KEY,
    **DRAW,
)
target("pictures.interpolation", pictures.interpolation, weight=0.02, worlds=("images", "plane"), **SEES, first=ITEM, second=ITEM,
       steps=FEW, **DRAW)  # fmt: skip
target("pictures.image_samples", pictures.image_samples, weight=0.02, worlds=("images", "plane"), **SEES, key=KEY, n=COUNT,
       drawn=FLAG, **DRAW)  # fmt: skip
_POINTS = Dataset("points", torch.eye(5, 2), torch.eye(4, 2), None, None)
DATASET = Kind(one_of(_POINTS))
figure(
    "pictures.point_samples", pictures.point_samples, **SEES, key=KEY, n=COUNT, dataset=DATASET, drawn=FLAG, name=TEXT
)
figure("pictures.evolution", pictures.evolution, weight=0.01, kept=array(2, 3, 2), dataset=DATASET, name=TEXT)
HISTORY = Kind(one_of(train.History(np.ones(4), np.ones(4), np.ones(4), np.ones(2))),
               one_of(train.History(*np.ones((4, 0))), train.History(1, 2, 3, 4), train.History(None, None, None, None),
                      train.History(*np.ones((4, 2, 2)))))  # fmt: skip
figure("pictures.training", pictures.training, history=HISTORY, name=TEXT, title=TEXT)
target(
    "pictures.of_comparison", pictures.of_comparison, weight=0.003, found=Kind(lambda rng, w: _comparison()), name=TEXT
)
figure("pictures.of_sweep", pictures.of_sweep, found=Kind(one_of(_SWEEP), one_of(_SWEEP._replace(values=[]), _SWEEP._replace(series={}))),
       ylabel=TEXT, title=TEXT)  # fmt: skip
target(
    "pictures.of_run",
    pictures.of_run,
    weight=0.003,
    worlds=("images", "plane"),
    **SEES,
    recipe=Kind(RECIPES),
    dataset=DATASET,
    x=X,
    key=KEY,
)

# What is left out, and why ------------------------------------------------------------------------------------------------
LEFT_OUT = {
    "distributions.Distribution": "a protocol",
    "distributions.Posterior": "a protocol",
    "engine.Claims": "a record", "engine.Draw": "a record", "engine.Estimate": "a record", "engine.Pass": "a record",
    "engine.Weights": "a record", "module.Functional": "a record, whose functions are here",
    "engine.Estimator": "its calls are here",
    "importance.Estimated": "a record", "importance.Likelihood": "a record", "importance.Untrusted": "a warning",
    "evaluate.ActiveUnits": "a record",
    "optim.AdamState": "a record", "optim.Optimizer": "a record, whose functions are here",
    "ppca.PPCA": "its methods are here", "vae.VAE": "a record, whose functions are here",
    "variance.Arm": "a type", "variance.Bias": "a record", "variance.Compared": "a record", "variance.Comparison": "a record",
    "variance.Exact": "a record", "variance.Group": "a record", "variance.Importance": "a record", "variance.Measured": "a record",
    "variance.Moments": "a record", "variance.Slope": "a record", "variance.Sources": "a record", "variance.Split": "a record",
    "variance.Sweep": "a record",
    "models.Recipe": "a record, whose method is here", "models.RECIPES": "a table", "plots.PALETTE": "a constant",
    "distributions.Normal": "a record, whose methods are here", "distributions.SignedNormal": "as Normal",
    "distributions.Bernoulli": "as Normal", "distributions.Delta": "as Normal",
    "pictures.as_is": "the identity",
    "bounds.checked": "a check that every bound makes first", "tree.checked": "a check that optim and sha256 make first",
    "vae.check": "a check that every estimator makes first", "engine.check_estimator": "a check that the lab makes first",
}  # fmt: skip
MODULES = (random, noise, bounds, distributions, heads, priors, optim, module, tree, vae, engine, estimators, evaluate, importance,
           pareto, ppca, pictures)  # fmt: skip


def public() -> set[str]:
    """Every public function and class, as "module.name": what a module defines, or a package lists in `__all__`."""
    found = set()
    for at in MODULES:
        short = at.__name__.removeprefix("funcvae.")
        found |= {f"{short}.{name}" for name, value in vars(at).items() if not name.startswith("_")
                  and getattr(value, "__module__", None) == at.__name__ and (inspect.isfunction(value) or inspect.isclass(value))}  # fmt: skip
    for package in (models, plots, variance):
        found |= {f"{package.__name__.removeprefix('funcvae.')}.{name}" for name in package.__all__}
    return found


def uncovered() -> set[str]:
    """Public names that are neither fuzzed nor left out for a reason."""
    return public() - set(TARGETS) - set(LEFT_OUT)


class Outcome(NamedTuple):
    """What one case came to."""

    target: str
    result: str
    """"success", the error's class, or "FAILURE"."""
    failure: str = ""
    error: BaseException | None = None


def drawn(targets: list[Target], seed: int, case: int) -> tuple[Target, tuple[Any, ...], dict[str, Any]]:
    """The function and the arguments of a case."""
    rng = pyrandom.Random(f"{seed}/{case}")
    (which,) = rng.choices(targets, [t.weight for t in targets])
    w = world(rng.choice(which.worlds))
    names = list(which.kinds)
    hostile = set(rng.sample(names, min(len(names), rng.choices((0, 1, 2), (1, 6, 2))[0])))
    kwargs = {}
    for name, kind in which.kinds.items():
        if name not in hostile or (kind.bad is None and not kind.junk):
            kwargs[name] = kind.good(rng, w)
        elif kind.bad is None or (kind.junk and rng.random() < 0.4):
            kwargs[name] = junk(rng, w)
        else:
            kwargs[name] = kind.bad(rng, w)
    return which, tuple(kwargs.pop(which.star)) if which.star else (), kwargs


def run(which: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """Calls the function: success, an error of funcvae's in one line, or a failure."""
    if which.star:  # what comes before *args goes by position too
        names = list(which.kinds)
        before = names[: names.index(which.star)]
        args = (*(kwargs.pop(name) for name in before if name != "train"), *args)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", importance.Untrusted)  # what it is for
            which.call(*args, **kwargs)
    except errors.FuncvaeError as error:
        message = str(error)
        if not message.strip() or "\n" in message or len(message) > 2000:
            return Outcome(
                which.name, "FAILURE", f"the message of {type(error).__name__} is not one line: {message!r:.300}", error
            )
        return Outcome(which.name, type(error).__name__, "", error)
    except Theirs:
        return Outcome(which.name, "the network's own")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(
            which.name,
            "FAILURE",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''!r:.300}",
            error,
        )
    finally:
        signal.alarm(0)
    return Outcome(which.name, "success")


class Hangs(BaseException):
    """A case that takes too long."""


def _hangs(*args: Any) -> None:
    raise Hangs(f"takes more than {SECONDS} seconds")


def shown(value: Any) -> str:
    """An argument, on one line."""
    if isinstance(value, torch.Tensor):
        values = "" if value.is_meta or value.layout != torch.strided else f" {value.flatten()[:3].tolist()}"
        return f"{value.dtype} {list(value.shape)} {value.device}{values}"
    if isinstance(value, int) and abs(value) > 10**50:
        return "a huge int"
    return repr(value).replace("\n", " ")[:160]


def fuzz(
    cases: int, seed: int, only: str = "", bar: bool = True, first: int = 0, stop_after: int = 10**9
) -> tuple[list[tuple[int, Outcome]], Counter, dict]:
    """Runs cases; returns the failures, and counts by outcome and by function."""
    targets = [t for t in TARGETS.values() if only in t.name]
    failures, results, functions = [], Counter(), defaultdict(Counter)
    signal.signal(signal.SIGALRM, _hangs)
    for case in tqdm(range(first, first + cases), disable=not bar, unit="case", smoothing=0.05):
        outcome = run(*drawn(targets, seed, case))
        results[outcome.result] += 1
        functions[outcome.target][outcome.result] += 1
        if outcome.result == "FAILURE":
            failures.append((case, outcome))
            if len(failures) >= stop_after:
                break
    return failures, results, functions


def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one alone, and show what it raises")
    parser.add_argument("--only", default="", help="only functions whose name has this in it")
    parser.add_argument("--show", type=int, default=10, help="failures to show")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.case is not None:
        which, args, kwargs = drawn([t for t in TARGETS.values() if options.only in t.name], options.seed, options.case)
        print(which.name, *map(shown, args), *(f"\n    {k} = {shown(v)}" for k, v in kwargs.items()))
        outcome = run(which, args, kwargs)
        if outcome.error is not None:
            traceback.print_exception(outcome.error)
        print(outcome.result, outcome.failure)
        return int(outcome.result == "FAILURE")
    begin = time.perf_counter()
    failures, results, functions = fuzz(options.cases, options.seed, options.only)
    seconds = time.perf_counter() - begin
    width = max(map(len, functions))
    for name in sorted(functions):
        print(f"{name:{width}}  " + ", ".join(f"{result} {n:,}" for result, n in functions[name].most_common()))
    total = sum(results.values())
    print(f"\n{total:,} cases in {seconds:.0f} s, {total / seconds:.0f} a second, seed {options.seed}: "
          + ", ".join(f"{result} {n:,}" for result, n in results.most_common()))  # fmt: skip
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    missing = uncovered()
    if missing:
        print("not fuzzed:", ", ".join(sorted(missing)))
    seen: Counter = Counter()
    for case, outcome in failures:
        seen[outcome.target] += 1
        if seen[outcome.target] <= 2 and seen.total() <= 1000 and options.show > 0:
            options.show -= 1
            again = f"--seed {options.seed} --case {case}" + (f" --only {options.only}" if options.only else "")
            print(f"FAILURE {outcome.target}: {outcome.failure}\n    python tests/fuzz/functions.py {again}")
    return int(bool(failures or missing))


if __name__ == "__main__":
    sys.exit(main())
