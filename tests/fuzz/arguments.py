"""Valid and invalid arguments for the public functions."""

import math
import random as pyrandom
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import funcvae as fv
from funcvae import bounds, estimators, heads, models, noise, priors, random, tree

HUGE = (10**12, 2**62, 2**63, 10**30, 10**400)


class World(NamedTuple):
    """A small model with parameters, state and data."""

    model: fv.VAE
    params: Any
    state: Any
    x: Any

    @property
    def modelled(self) -> torch.Tensor:
        """The part of the data that the likelihood is of."""
        return self.model.modelled(self.x)

    @property
    def dtype(self) -> torch.dtype:
        return self.modelled.dtype


class _Digits(nn.Module):
    """A decoder of logits of images [1, 2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(z).unflatten(-1, (1, 2, 2))


class Theirs(Exception):
    """An error in a user's network, which the library passes on."""


class _ByClass(nn.Module):
    """A decoder of (z, class)."""

    def __init__(self) -> None:
        super().__init__()
        self.of_class, self.out = nn.Embedding(2, 2), nn.Linear(2, 2)

    def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        try:
            return self.out(z + self.of_class(c))
        except Exception as error:
            raise Theirs from error


class _OfPart(nn.Module):
    """An encoder of a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 4)

    def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        try:
            return self.out(data["x"])
        except Exception as error:
            raise Theirs from error


@cache
def world(kind: str) -> World:
    """One of seven small models. It is cached: do not modify it."""
    if kind == "plane":
        model, x = models.gaussian2d_vae(2, 3), random.normal(random.key(1), (3, 2))
    elif kind == "linear":
        model, x = models.linear_vae(3, 1), random.normal(random.key(1), (3, 3), torch.float64)
    elif kind == "images":
        encoder = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4))  # noqa: E731
        model, x = fv.vae(encoder=encoder, decoder=_Digits, latent=2), torch.ones(3, 1, 2, 2)
    elif kind == "bits":
        model = fv.vae(encoder=lambda: nn.Linear(3, 2), decoder=lambda: nn.Linear(2, 3), latent=2,
                       posterior=heads.bernoulli, prior=priors.learned_bernoulli(2))  # fmt: skip
        x = torch.ones(3, 3)
    elif kind == "delta":
        model = fv.vae(encoder=lambda: nn.Linear(2, 2), decoder=lambda: nn.Linear(2, 2), latent=2,
                        posterior=heads.delta, likelihood=heads.normal_fixed(1.0))  # fmt: skip
        x = torch.zeros(3, 2)
    elif kind == "classes":
        model = fv.vae(encoder=_OfPart, decoder=_ByClass, latent=2, modelled=lambda data: data["x"],
                       condition=lambda data: data["y"])  # fmt: skip
        x = {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 1])}
    else:
        encoder = lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))  # noqa: E731
        decoder = lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 4))  # noqa: E731
        model = fv.vae(encoder=encoder, decoder=decoder, latent=2, likelihood=heads.normal_logvar)
        x = random.normal(random.key(1), (3, 2))
    params, state = model.init(random.key(0))
    if kind == "linear":
        params = tree.map(torch.Tensor.double, params)
    return World(model, params, state, x)


WORLDS = ("plane", "linear", "images", "delta", "batchnorm", "bits", "classes")

Rng = pyrandom.Random
Maker = Callable[[Rng, World], Any]


class Kind(NamedTuple):
    """The valid values of an argument, and invalid values specific to it."""

    good: Maker
    bad: Maker | None = None
    junk: bool = True
    """Whether values of `junk` are tried as well."""


def one_of(*values: Any) -> Maker:
    return lambda rng, w: rng.choice(values)


def calls(*makers: Callable[..., Any]) -> Maker:
    """Calls one of several functions (rng, world) -> value."""
    return lambda rng, w: rng.choice(makers)(rng, w)


def broken(*args: Any, **kwargs: Any) -> None:
    """A function that returns None."""


class Odd:
    """No function accepts this class or its instances."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def strange_tensor(rng: Rng, w: World) -> torch.Tensor:
    shape = rng.choice([(), (0,), (1,), (2,), (3,), (3, 2), (2, 3), (0, 2), (3, 0), (1, 3, 2), (2, 3, 2), (2, 3, 1),
                        (3, 1, 2, 2), (2, 3, 1, 2, 2), (5, 7), (1, 1, 1, 1, 1, 1)])  # fmt: skip
    t = torch.ones(shape, dtype=rng.choice([torch.float32, torch.float64]))
    return strange(rng, t) if rng.random() < 0.7 else t


def strange(rng: Rng, t: torch.Tensor) -> torch.Tensor:
    """The tensor with another dtype, shape, layout, device or values."""
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
        return strange_tensor(rng, w)
    simple = (None, "x", "", b"x", 1.5, math.nan, math.inf, -math.inf, -1, 0, 1, True, *HUGE, -(10**30), 1e300, 1j,
              torch.float32, torch.int64, "cuda:99", range(3), slice(1))  # fmt: skip
    return rng.choice(
        [
            *simple,
            [],
            (),
            {},
            set(),
            [1],
            (2, 3),
            [None],
            ("a",),
            {"a": 1},
            {"encoder": {}},
            {1: None},
            Odd(),
            Odd,
            broken,
            np.ones(3),
            np.array(["a"]),
            np.int64(2),
            np.float32(0.5),
            [[1, 2], [3]],
            {"a": torch.ones(2)},
            [torch.ones(2)],
            world("delta").model,
        ]
    )


def bad_params(rng: Rng, w: World, which: str = "params") -> Any:
    """Parameters or state with a missing, wrong or extra entry."""
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


def log_w(rng: Rng, w: World) -> torch.Tensor:
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


def _strange_data(rng: Rng, w: World) -> Any:
    if not isinstance(w.x, dict):
        return strange(rng, w.x)
    part = rng.choice(["x", "y", "z", ""])
    if not part:
        return rng.choice([{}, {"x": w.x["x"]}, w.x["x"]])
    return {**w.x, part: strange(rng, w.x.get(part, w.x["x"]))}


X = Kind(lambda rng, w: w.x, _strange_data)
CONDITION = Kind(lambda rng, w: w.model.given(w.x).get("condition"), lambda rng, w: strange(rng, torch.ones(3).long()))
EPS = of_tensor(
    lambda rng, w: random.normal(random.key(3), (rng.choice([1, 2, 4]), len(w.modelled), w.model.latent), w.dtype)
)
Z = of_tensor(
    lambda rng, w: random.normal(random.key(3), (*rng.choice([(3,), (1, 3), (2, 3)]), w.model.latent), w.dtype)
)
LOG_W = of_tensor(log_w)
PARTITION = Kind(one_of((0, 1), (0, 0.5, 1), [0.0, 0.1, 1.0]), one_of((), (0,), (1, 0), (0, math.nan, 1), (0, "a", 1),
                 (0, 0.5, 0.5, 1), 0.5, (0, None), ((0, 1), 1), "01"))  # fmt: skip
SCHEME = Kind(
    one_of(noise.iid, noise.mirrored, noise.sobol, noise.moment_matched), one_of(_broken_scheme, broken, Odd(), "iid")
)
SPEC = Kind(one_of(*estimators.EXAMPLES.values()), one_of("dreg:1", "renyi", "renyi:1", "miwae:0", "miwae:1.5", "tvo:0",
            "tvo:0:nan:1", "ovis:a", "", ":", "::::", "elbo ", "miwae:" + "9" * 5000, "renyi:1e999", "beta_elbo:inf",
            "ＥＬＢＯ", "beta_elbo:٣", "miwae:1_0", "a" * 3000, "a\nb"))  # fmt: skip


@cache
def estimator(spec: str) -> fv.Estimator:
    return estimators.parse(spec)


ESTIMATOR = Kind(lambda rng, w: estimator(rng.choice([*estimators.EXAMPLES.values()])),
                 one_of("iwae", estimators.iwae, broken, Odd()))  # fmt: skip


def _weights_good(log_w: torch.Tensor) -> fv.Weights:
    v = log_w.softmax(0)
    return fv.Weights(v, -v, v)


WEIGHTS = Kind(
    one_of(_weights_good),
    one_of(broken, lambda f: f, lambda f: (f, f), lambda f: fv.Weights(None, f, f), lambda f: fv.Weights(f[0], f, f),
           lambda f: fv.Weights(f, f, f.long())),
)  # fmt: skip
BOUND = Kind(one_of(bounds.iwae, bounds.elbo), one_of(broken, lambda f: 1.0, lambda f: f, lambda f: f.sum()))
CLAIMS = Kind(lambda rng, w: estimator("iwae").claims, one_of("L_K", fv.Claims(None, None, None, None, "what")))
PROGRESS = Kind(one_of(lambda *done: None))
TREE = Kind(
    lambda rng, w: rng.choice(
        [w.params, [torch.ones(2)], {"a": torch.zeros(2, 2)}, torch.ones(()), (torch.ones(1), {})]
    ),
    lambda rng, w: rng.choice(
        [
            {},
            [],
            None,
            {"a": None},
            [1, "b"],
            {"a": torch.ones(2).long()},
            {"a": strange_tensor(rng, w)},
            {1: torch.ones(2)},
            {("a", "b"): torch.ones(2)},
            [[[[[]]]]],
            {"a": Odd()},
        ]
    ),
)


def like(tree_: Kind, which: str = "params") -> Kind:
    return Kind(lambda rng, w: getattr(w, which), tree_.bad)


def shown(value: Any) -> str:
    """A description of an argument in one line."""
    if isinstance(value, torch.Tensor):
        values = "" if value.is_meta or value.layout != torch.strided else f" {value.flatten()[:3].tolist()}"
        return f"{value.dtype} {list(value.shape)} {value.device}{values}"
    if isinstance(value, int) and abs(value) > 10**50:
        return "a huge int"
    return repr(value).replace("\n", " ")[:160]
