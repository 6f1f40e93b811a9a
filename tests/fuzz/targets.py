"""Targets of the fuzzing program: the public functions and the kinds of their arguments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import (
    BOUND,
    CLAIMS,
    CONDITION,
    COUNT,
    COUNT_2,
    DEVICE,
    DTYPE,
    EPS,
    ESTIMATOR,
    FEW,
    FLAG,
    HUGE,
    KEY,
    LOG_W,
    MODEL,
    NUMBER,
    PARAMS,
    PARTITION,
    POSITIVE,
    PROGRESS,
    SCHEME,
    SEED,
    SHAPE,
    SPEC,
    STATE,
    TEXT,
    TREE,
    UNIT,
    WEIGHTS,
    WORLDS,
    Kind,
    Odd,
    Rng,
    Theirs,
    World,
    X,
    Z,
    broken,
    calls,
    estimator,
    junk,
    like,
    log_w,
    of_tensor,
    one_of,
    strange,
    strange_tensor,
)
from torch import nn

import funcvae as fv
from funcvae import (
    bounds,
    compilation,
    distributed,
    distributions,
    estimators,
    evaluate,
    heads,
    models,
    modules,
    noise,
    optim,
    priors,
    random,
    train,
    tree,
)
from funcvae.distributed import collectives
from funcvae.evaluate import linear_gaussian
from funcvae.model import as_is, check_data, log_p_x_given_z, log_prob
from funcvae.models import recipe


class Target(NamedTuple):
    """A function and the kinds of its arguments."""

    name: str
    call: Callable[..., Any]
    kinds: dict[str, Kind]
    weight: float
    worlds: tuple[str, ...]


TARGETS: dict[str, Target] = {}


def target(
    name: str, call: Callable[..., Any], /, *, weight: float = 1.0,
    worlds: tuple[str, ...] = WORLDS, **kinds: Kind,
) -> None:  # fmt: skip
    """Adds a function to TARGETS."""
    assert name not in TARGETS, name
    TARGETS[name] = Target(name, call, kinds, weight, worlds)


# random, noise --------------------------------------------------------------------------------------------------------
target("random.key", random.key, seed=SEED, device=DEVICE)
target("random.split", random.split, key=KEY, num=COUNT)
target(
    "random.fold_in", random.fold_in, key=KEY, data=Kind(one_of(0, 3, 2**32 - 1, torch.tensor(3)), one_of(-1, 2**32))
)
AT = Kind(one_of(None, torch.arange(3), torch.tensor([[2], [0]])), strange_tensor)
target("random.bits", random.bits, key=KEY, shape=SHAPE, at=AT)
target("random.uniform", random.uniform, key=KEY, shape=SHAPE, dtype=DTYPE, minval=NUMBER, maxval=NUMBER, at=AT)
target("random.normal", random.normal, key=KEY, shape=SHAPE, dtype=DTYPE, at=AT)
P = Kind(one_of(0.5, 0, 1, torch.full((2, 3), 0.5), torch.tensor(0.5)), one_of(-1, 2, math.nan, torch.ones(7), "0.5"))
target("random.bernoulli", random.bernoulli, key=KEY, p=P, shape=Kind(one_of(None, (2, 3)), SHAPE.bad))
target("random.permutation", random.permutation, key=KEY,
       x=Kind(one_of(0, 1, 5, torch.ones(3, 2)), calls(strange_tensor, one_of(-1, *HUGE))))  # fmt: skip
ROWS = Kind(one_of(None, torch.tensor([2, 0]), torch.arange(0)), strange_tensor)
target(
    "random.flat_indices", lambda shape, first, second: random.flat_indices(shape, first, second),
    shape=Kind(SHAPE.good), first=ROWS, second=ROWS,
)  # fmt: skip
for scheme in (noise.iid, noise.mirrored, noise.moment_matched, noise.sobol):
    target(f"noise.{scheme.__name__}", scheme, key=KEY, n=COUNT_2, shape=SHAPE, dtype=DTYPE)
target("noise.numbered", noise.numbered, key=KEY, numbers=Kind(one_of(torch.arange(3), torch.arange(0)),
       calls(strange_tensor, one_of(-1, *HUGE))), shape=SHAPE, dtype=DTYPE)  # fmt: skip
target("noise.independent", noise.independent, scheme=Kind(lambda rng, w: lambda key, n, shape: None))
target("noise.is_independent", noise.is_independent, scheme=SCHEME)
GOOD_ROWS = Kind(ROWS.good, junk=False)  # their values are not checked
target(
    "noise.in_parts",
    lambda scheme, samples, rows, **draw: noise.in_parts(scheme)(shape=(3, 2), samples=samples, rows=rows, **draw),
    scheme=Kind(SCHEME.good, junk=False), key=KEY, n=Kind(one_of(4)), dtype=DTYPE, samples=GOOD_ROWS, rows=GOOD_ROWS,
)  # fmt: skip
target("noise.accepts", noise.accepts, f=SCHEME, name=TEXT)
target("noise.name_of", noise.name_of, scheme=SCHEME)
NAME = Kind(one_of(*noise.TABLE), one_of("sobl", "", "a\nb", "x" * 3000))
target("noise.parse", noise.parse, name=NAME)

# bounds, evaluate -----------------------------------------------------------------------------------------------------
target("bounds.elbo", bounds.elbo, log_w=LOG_W)
target("bounds.iwae", bounds.iwae, log_w=LOG_W)
target("bounds.renyi", lambda alpha, log_w: bounds.renyi(alpha)(log_w), alpha=NUMBER, log_w=LOG_W)
target("bounds.miwae", lambda m, log_w: bounds.miwae(m)(log_w), m=COUNT, log_w=LOG_W)
target("bounds.ciwae", lambda beta, log_w: bounds.ciwae(beta)(log_w), beta=UNIT, log_w=LOG_W)
target("bounds.tvo", lambda partition, log_w: bounds.tvo(partition)(log_w), partition=PARTITION, log_w=LOG_W)
target("bounds.groups", bounds.groups, log_w=LOG_W, m=COUNT)
target("bounds.softmax", bounds.softmax, log_w=LOG_W)
target("bounds.tempered_mean", bounds.tempered_mean, log_w=LOG_W, beta=NUMBER)
target("evaluate.likelihood", evaluate.likelihood, log_w=LOG_W)
RUNGS = Kind(
    one_of((1,), [1, 2], (2, 4)), one_of((), (0,), (-1, 2), (1.5,), ("a",), 3, (10**12,), (10**400,), "12", (None,))
)
target("evaluate.ladder", evaluate.ladder, log_w=LOG_W, samples=RUNGS)
target("evaluate.posterior_gap", evaluate.posterior_gap, log_w=LOG_W)
FOUND = Kind(lambda rng, w: evaluate.likelihood(log_w(rng, w)))
ITEMS = Kind(one_of(None, torch.arange(3)), calls(strange_tensor, one_of(torch.arange(1), torch.ones(3))))
target("evaluate.untrusted_message", evaluate.untrusted_message, found=FOUND, items=ITEMS)
DATA = of_tensor(one_of(random.normal(random.key(0), (6, 3)), random.normal(random.key(0), (2, 2), torch.float64)))
SIGMA2 = Kind(one_of(None, 0.5), POSITIVE.bad)
target("evaluate.linear_gaussian.eigenvalues", linear_gaussian.eigenvalues, x=DATA)
target("evaluate.ppca", evaluate.ppca, x=DATA, latent=COUNT, sigma2=SIGMA2)
_PPCA = evaluate.ppca(random.normal(random.key(0), (6, 3)), 1)
target("evaluate.PPCA.log_likelihood", _PPCA.log_likelihood, x=of_tensor(one_of(torch.ones(2, 3))))
target("evaluate.PPCA.posterior", _PPCA.posterior, x=of_tensor(one_of(torch.ones(2, 3))))

# distributions, heads, priors, optim, tree ----------------------------------------------------------------------------
OUT = Kind(lambda rng, w: rng.choice([torch.ones(3, 4), (torch.ones(3, 2), torch.ones(3, 2))]),
           lambda rng, w: rng.choice([(junk(rng, w), junk(rng, w)), (torch.ones(2),), (torch.ones(3, 2), torch.ones(4)),
                                      torch.ones(3), strange(rng, torch.ones(3, 4))]))  # fmt: skip
for head in (
    heads.normal_logvar,
    heads.normal_logsigma,
    heads.signed_normal,
    heads.bernoulli,
    heads.bernoulli_probs,
    heads.delta,
):
    target(f"heads.{head.__name__}", head, out=OUT)
target("heads.full_normal", heads.full_normal,
       out=Kind(one_of(torch.ones(3, 5), (torch.ones(3, 2), torch.ones(3, 3))), OUT.bad))  # fmt: skip
_LAYERS = ((torch.ones(2, 1), torch.ones(2)),)
_NETWORKS = [_LAYERS, (_LAYERS,), (), (torch.ones(2, 1),), ((torch.ones(2), torch.ones(2)),), None, ((None, None),)]
for head, good in ((heads.two_layers, _LAYERS), (heads.coupling_flow, (_LAYERS, _LAYERS))):
    size = 1 if head is heads.two_layers else 2
    target(f"heads.{head.__name__}", lambda loc, log_sigma, nets, head=head: head((loc, log_sigma, nets)),
           loc=of_tensor(one_of(torch.ones(3, size))), log_sigma=of_tensor(one_of(torch.ones(3, size))),
           nets=Kind(one_of(good), one_of(*(each for each in _NETWORKS if each is not good))))  # fmt: skip
target("heads.normal_fixed", lambda sigma, out: heads.normal_fixed(sigma)(out), sigma=POSITIVE, out=OUT)
LOGITS = Kind(one_of(torch.ones(3, 4), torch.ones(2, 3, 6), torch.ones(2)), OUT.bad)
CLASSES = Kind(one_of(2, np.int64(2)), one_of(0, 1, -1, 3, 2.0, True, 10**12, 2**63, 10**400))
MAYBE_CLASSES = Kind(one_of(None, 2), CLASSES.bad)
VARIABLES = Kind(one_of(1, 2), one_of(0, -1, 3, 10**7, 2**63))
target("heads.categorical", lambda classes, out: heads.categorical(classes)(out), classes=CLASSES, out=LOGITS)
target("heads.concrete", lambda temperature, classes, out: heads.concrete(temperature, classes)(out),
       temperature=POSITIVE, classes=MAYBE_CLASSES, out=LOGITS)  # fmt: skip
target("priors.standard_normal", lambda z: priors.standard_normal()(z), z=Z)
target("priors.mixture", lambda components, latent, z: priors.mixture(components, latent)()(z), components=COUNT_2,
       latent=Kind(one_of(2), COUNT.bad), z=Z)  # fmt: skip
target("priors.bernoulli", lambda z: priors.bernoulli()(z), z=Z)
target("priors.learned_bernoulli", lambda latent, z: priors.learned_bernoulli(latent)()(z), latent=VARIABLES, z=Z)
target("priors.categorical", lambda classes, z: priors.categorical(classes)()(z), classes=CLASSES, z=Z)
target("priors.learned_categorical", lambda classes, variables, z: priors.learned_categorical(classes, variables)()(z),
       classes=CLASSES, variables=VARIABLES, z=Z)  # fmt: skip
target("priors.concrete", lambda temperature, classes, z: priors.concrete(temperature, classes)()(z),
       temperature=POSITIVE, classes=MAYBE_CLASSES, z=Z)  # fmt: skip


def _updated(opt: optim.Optimizer, grads: Any, params: Any, first: Any) -> Any:
    return opt.update(grads, opt.init(first), params)


RATE = Kind(one_of(1e-3, 1, 0, lambda step: 0.1, lambda step: step.double()), one_of(-1, math.nan, math.inf, 10**400,
            "a", broken, lambda step: "a", lambda step: torch.ones(2),
            lambda step: torch.ones((), device="meta")))  # fmt: skip
BETAS = Kind(one_of((0, 0.9), [0.9, 0.999]), one_of((1, 0), (0.9,), 0.9, (0.9, -0.1), (math.nan, 0), ("0.9", 0)))
NOT_NEGATIVE = Kind(one_of(0, 1e-8), one_of(-1, math.nan, math.inf, "a"))
MASK = Kind(one_of(None, lambda path: "w" in path), one_of("w", True))
STEPS = torch.tensor([0, 1, 7])
target("optim.adam", lambda params, **options: optim.adam(**options).init(params), lr=RATE, betas=BETAS,
       eps=NOT_NEGATIVE, params=PARAMS)  # fmt: skip
target("optim.adamw", lambda params, **options: optim.adamw(**options).init(params), lr=RATE, betas=BETAS,
       eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE, mask=MASK, params=PARAMS)  # fmt: skip
target("optim.sgd", lambda params, **options: optim.sgd(**options).init(params), lr=RATE, momentum=NOT_NEGATIVE,
       dampening=NUMBER, nesterov=FLAG, params=PARAMS)  # fmt: skip
target("optim.Optimizer.update", lambda lr, **trees: _updated(optim.adam(lr), **trees), grads=PARAMS, params=PARAMS,
       first=PARAMS, lr=RATE)  # fmt: skip
_CLIP, _SGD = optim.clip_by_global_norm(1.0), optim.sgd(momentum=0.9)
target("optim.chain", lambda parts, params: _updated(optim.chain(*parts), params, params, params), params=PARAMS,
       parts=Kind(one_of([_SGD], [_CLIP, _SGD], (_CLIP, _CLIP, _SGD)), one_of([], [_CLIP], [_SGD, _SGD], [None, _SGD]),
                  junk=False))  # fmt: skip
target("optim.from_torch", lambda kind, lr, **trees: _updated(optim.from_torch(kind, lr), **trees), weight=0.3,
       kind=Kind(one_of(torch.optim.RMSprop, torch.optim.SGD), one_of(torch.optim.LBFGS, torch.optim.Muon, dict)),
       lr=RATE, grads=PARAMS, params=PARAMS, first=PARAMS)  # fmt: skip
GOOD_PARAMS = Kind(PARAMS.good, junk=False)  # a transform does not check its trees
target("optim.clip_by_global_norm",
       lambda max_norm, params: optim.clip_by_global_norm(max_norm).update(params, {}, params),
       max_norm=POSITIVE, params=GOOD_PARAMS)  # fmt: skip
target("optim.add_decayed_weights",
       lambda params, **options: optim.add_decayed_weights(**options).update(params, {}, params),
       weight_decay=NOT_NEGATIVE, mask=MASK, params=GOOD_PARAMS)  # fmt: skip
target("optim.constant", lambda value: optim.constant(value)(STEPS), value=NUMBER)
target("optim.linear", lambda **of: optim.linear(**of)(STEPS), start=NUMBER, end=NUMBER, steps=COUNT)
target("optim.cosine", lambda **of: optim.cosine(**of)(STEPS), start=NUMBER, end=NUMBER, steps=COUNT)
target("optim.warmup_cosine", lambda **of: optim.warmup_cosine(**of)(STEPS), peak=NUMBER, warmup=COUNT,
       steps=Kind(one_of(50), COUNT.bad), start=NUMBER, end=NUMBER)  # fmt: skip
target("optim.exponential", lambda **of: optim.exponential(**of)(STEPS), start=NUMBER, decay=NOT_NEGATIVE, steps=COUNT)
target("optim.piecewise", lambda values: optim.piecewise(values)(STEPS), values=Kind(one_of({0: 1, 5: 0.1}, {0: 0.1}),
       one_of({}, {1: 1}, {0: math.nan}, {0: "a"}, {0: 1, -1: 1}, {2**70: 1}, {0: 1, 0.5: 1}, [0.1])))  # fmt: skip
target("optim.repeat", lambda schedule, period: optim.repeat(schedule, period)(STEPS), period=COUNT,
       schedule=Kind(one_of(optim.constant(1), optim.linear(0, 1, 3)), one_of(0.1, None)))  # fmt: skip
OPT_SPEC = Kind(
    one_of(*optim.EXAMPLES.values(), "sgd"), one_of("adam:1", "sgd:-1", "sgd:a", "adamw:nan", "sgd:1:2", "", ":")
)
target("optim.parse", optim.parse, spec=OPT_SPEC, lr=RATE, eps=NOT_NEGATIVE)
SCHEDULE_SPEC = Kind(
    one_of("1e-3", "cosine:1e-3", *(form.split(" as in ")[1] for form in optim.SCHEDULES.values())),
    one_of("", ":", "nan", "linear", "linear:1", "linear:1:2:3:4", "linear:a:1", "cosine:1:0.5", "piecewise:0",
           "repeat", "repeat:a:1", "repeat:5", "repeat:0:1", "repeat:1:linear", "piecewise:1:1", "piecewise:0.5:1",
           "cosin:1", "exponential:1:-1", "repeat:5:" * 99 + "1", "constant:1e999", "a" * 3000, "a\nb"),
)  # fmt: skip
MAYBE_STEPS = Kind(one_of(None, 10**6), COUNT.bad)
target("optim.parse_schedule", optim.parse_schedule, spec=SCHEDULE_SPEC, steps=MAYBE_STEPS)
target("optim.needs_steps", optim.needs_steps, spec=SCHEDULE_SPEC)

target(
    "tree.map",
    lambda trees: tree.map(lambda *leaves: leaves[0], *trees),
    trees=Kind(
        lambda rng, w: [w.params] * rng.choice([1, 2]),
        lambda rng, w: rng.choice([[w.params, TREE.bad(rng, w)], [TREE.bad(rng, w)], [TREE.bad(rng, w), w.params]]),
        junk=False,
    ),
)
target(
    "tree.rows",
    lambda trees: tree.rows(*trees),
    trees=Kind(
        lambda rng, w: [w.params, w.params],
        lambda rng, w: rng.choice([[w.params, TREE.bad(rng, w)], [TREE.bad(rng, w), w.params]]),
        junk=False,
    ),
)
for f in (
    tree.leaves, tree.flatten, tree.structure, tree.named_leaves, tree.paths, tree.zeros_like, tree.norm, tree.sha256,
):  # fmt: skip
    target(f"tree.{f.__name__}", f, tree=TREE)
target("compilation.pays", compilation.pays, steps=COUNT, params=TREE, decoded=COUNT)
target("tree.from_named", tree.from_named, named=Kind(lambda rng, w: tree.named_leaves(w.params),
       lambda rng, w: {k: v for k, v in tree.named_leaves(w.params).items() if rng.random() < 0.9}),
       like=like(TREE))  # fmt: skip

# functional, vae ------------------------------------------------------------------------------------------------------
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


class _Net(nn.Module):
    """A network that marks its own errors as `Theirs`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))

    def forward(self, *inputs: Any) -> torch.Tensor:
        try:
            return self.layers(*inputs)
        except Exception as error:
            raise Theirs from error


_NET = modules.functional(_Net)
_NET_PARAMS, _NET_STATE = _NET.init(random.key(0))


def _flat(good: dict[str, Any]) -> Kind:
    def bad(rng: Rng, w: World) -> Any:
        leaf = rng.choice(list(good))
        return rng.choice(
            [
                {},
                {**good, leaf: junk(rng, w)},
                {**good, leaf: strange(rng, good[leaf])},
                {**good, "more": good[leaf]},
                {k: v for k, v in good.items() if k != leaf},
            ]
        )

    return Kind(one_of(good), bad)


def _functional(factory: Any, key: Any) -> Any:
    net = modules.functional(factory)
    return net.apply(*net.init(key), torch.ones(3, 2, device=key.device), train=True)


target("functional", _functional, weight=0.3, factory=FACTORY, key=KEY)
target("Functional.init", _NET.init, weight=0.3, key=KEY)
target(
    "Functional.apply",
    lambda params, state, inputs, train: _NET.apply(params, state, *inputs, train=train),
    params=_flat(_NET_PARAMS),
    state=_flat(_NET_STATE),
    train=FLAG,
    inputs=Kind(
        one_of((torch.ones(3, 2),)),
        lambda rng, w: rng.choice([(), (junk(rng, w),), (torch.ones(3, 2),) * 2, (strange(rng, torch.ones(3, 2)),)]),
        junk=False,
    ),
)


def _vae(key: Any, x: Any, z: Any, **made: Any) -> Any:
    model = fv.vae(**made)
    params, state = model.init(key)
    q, state = model.encode(params, state, x)
    p, state = model.decode(params, state, z)
    return log_p_x_given_z(p, x), log_prob(q, z)


HEAD = Kind(
    one_of(heads.normal_logvar, heads.normal_logsigma),
    one_of(
        broken,
        heads.normal_fixed,
        "bernoulli",
        lambda out: out,
        heads.delta,
        heads.bernoulli,
        lambda out: distributions.Normal(1.0, out),
    ),
)
target(
    "vae",
    _vae,
    weight=0.3,
    encoder=FACTORY,
    decoder=FACTORY,
    prior=Kind(one_of(priors.standard_normal), FACTORY.bad),
    latent=Kind(one_of(2), COUNT.bad),
    posterior=HEAD,
    likelihood=HEAD,
    key=KEY,
    x=of_tensor(one_of(torch.ones(3, 2))),
    z=of_tensor(one_of(torch.ones(1, 3, 2))),
)
MODEL_ARGS = {"params": PARAMS, "state": STATE}
GOOD_MODEL = Kind(lambda rng, w: w.model, junk=False)
target("VAE.init", lambda model, key: model.init(key), weight=0.3, model=GOOD_MODEL, key=KEY)
target("VAE.encode", lambda model, **kwargs: model.encode(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, x=X, train=FLAG)
target("VAE.decode", lambda model, **kwargs: model.decode(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, z=Z, train=FLAG,
       condition=CONDITION)  # fmt: skip
target("VAE.prior", lambda model, **kwargs: model.prior(**kwargs), model=GOOD_MODEL, **MODEL_ARGS, z=Z, train=FLAG,
       condition=CONDITION)  # fmt: skip


# estimators ----------------------------------------------------------------------------------------------------------
CALL = {"model": MODEL, "params": PARAMS, "state": STATE, "x": X, "eps": EPS}
SOME = Kind(lambda rng, w: rng.choice([*estimators.EXAMPLES.values()]), junk=False)
target(
    "estimators.Estimator.__call__",
    lambda spec, **call: estimator(spec)(**call),
    weight=3,
    spec=SOME,
    **CALL,
    train=FLAG,
)
target("estimators.Estimator.bound", lambda spec, **call: estimator(spec).bound(**call), spec=SOME, **CALL)
target(
    "estimators.Estimator.claims_under",
    lambda spec, noise: estimator(spec).claims_under(noise),
    spec=SOME,
    noise=SCHEME,
)


def _weighted(call: Any, **made: Any) -> Any:
    return estimators.weighted(**made)(*call, train=True)


GOOD_CALL = Kind(lambda rng, w: (w.model, w.params, w.state, w.x, EPS.good(rng, w)), junk=False)
target("estimators.weighted", _weighted, weights=WEIGHTS, bound=BOUND, claims=CLAIMS, name=Kind(one_of("mine", None)),
       two_pulls=FLAG, call=GOOD_CALL)  # fmt: skip


def _several(rng: Rng, w: World) -> Any:
    return [estimator(spec) for spec in rng.sample([*estimators.EXAMPLES.values()], 2)]


SEVERAL = Kind(_several, lambda rng, w: [estimator("iwae"), rng.choice([junk(rng, w), broken])])
target("estimators.together", estimators.together, estimators=SEVERAL, **CALL, train=FLAG)
target(
    "estimators.surrogate",
    lambda estimator, **call: estimators.surrogate(estimator)(**call),
    estimator=ESTIMATOR,
    **CALL,
    train=FLAG,
)


for factory in (
    estimators.elbo,
    estimators.elbo_mc,
    estimators.stl,
    estimators.iwae,
    estimators.iwae_stl,
    estimators.dreg,
    estimators.score,
    estimators.rloo,
    estimators.vimco,
    estimators.vimco_am,
    estimators.vimco_star,
    estimators.rws,
    estimators.rws_dreg,
):
    target(f"estimators.{factory.__name__}", lambda factory=factory, **call: factory()(**call), weight=0.2,
           **CALL, train=FLAG)  # fmt: skip
ARGUMENT = {"beta_elbo": NUMBER, "free_bits": NUMBER, "renyi": NUMBER, "vr_iwae_dreg": UNIT, "ovis": UNIT,
            "miwae": COUNT, "ciwae": UNIT, "piwae": COUNT, "tvo": PARTITION, "quadratic_cv": NUMBER}  # fmt: skip
for name, kind in ARGUMENT.items():
    factory = estimators.TABLE[name]
    target(f"estimators.{name}", lambda argument, call, factory=factory: factory(argument)(*call, train=True),
           weight=0.5, argument=kind, call=GOOD_CALL)  # fmt: skip
for factory in (
    estimators.arm, estimators.disarm, estimators.disarm_local, estimators.straight_through, estimators.reinmax,
    estimators.local_expectation,
):  # fmt: skip
    target(f"estimators.{factory.__name__}", lambda factory=factory, **call: factory()(**call), weight=0.2,
           worlds=("bits",), **CALL, train=FLAG)  # fmt: skip
target("estimators.rebar",
       lambda eta, temperature, call: estimators.rebar(eta, temperature)(*call, train=True), weight=0.5,
       worlds=("bits",), eta=NUMBER, temperature=POSITIVE, call=GOOD_CALL)  # fmt: skip


def _path_and_score(f: torch.Tensor, like: torch.Tensor | None = None) -> fv.Weights:
    weight = torch.ones_like(f if like is None else like)
    return fv.Weights(weight, weight, torch.ones_like(f))


def _from_points(call: Any, evaluate: bool, **made: Any) -> Any:
    mine = estimators.from_points(**made)
    return mine.bound(*call) if evaluate else mine(*call, train=True)


def _twice(q: Any, eps: torch.Tensor) -> torch.Tensor:
    return torch.stack([q.sample(eps), q.sample(-eps)], 1).flatten(0, 1)


target(
    "estimators.from_points",
    _from_points,
    worlds=("plane", "bits"),
    points=Kind(one_of(lambda q, eps: q.sample(eps), _twice), one_of(broken, lambda q, eps: eps[0], lambda q, eps: 3)),
    weights=Kind(
        one_of(lambda f, seen: _path_and_score(f), lambda f, seen: _path_and_score(f, seen.z)),
        one_of(broken, lambda f, seen: (f, f), lambda f, seen: fv.Weights(f, f, seen.z)),
    ),
    bound=BOUND,
    claims=CLAIMS,
    name=Kind(one_of("mine", None)),
    two_pulls=FLAG,
    closed=Kind(one_of(None, lambda q, p: -distributions.kl(q, p).sum(-1)), one_of(broken, lambda q, p: q.loc)),
    pulls=Kind(one_of(estimators.log_w, estimators.log_p_x), one_of(broken, lambda terms: 3)),
    call=GOOD_CALL,
    evaluate=Kind(one_of(True, False), junk=False),
)
target("estimators.parse", estimators.parse, spec=SPEC)
SCHEDULED = Kind(calls(SPEC.good, one_of("beta_elbo:linear:0:1:9", "free_bits:linear:1:0")), SPEC.bad)
target("estimators.parse_scheduled", estimators.parse_scheduled, spec=SCHEDULED, steps=MAYBE_STEPS)
target("estimators.parse_final", estimators.parse_final, spec=SCHEDULED, steps=COUNT)
target("estimators.needs_steps", estimators.needs_steps, spec=SCHEDULED)
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

OPT = Kind(lambda rng, w: optim.adam(1e-3), one_of(optim.adam, optim.Optimizer(broken, broken)))
TRAIN_STATE = Kind(
    lambda rng, w: _trained(w),
    lambda rng, w: _trained(w)._replace(**{rng.choice(train.TrainState._fields): junk(rng, w)}),
)
OBSERVE = Kind(one_of(as_is), one_of(broken, lambda key, x: x[:1], lambda key, x: x.long(), lambda key, x: 3))
SCALE = Kind(one_of(train.per_example, train.summed), one_of(broken, lambda b: "a", lambda b: math.nan))


def _trained(w: World) -> Any:
    return train.init(w.model, optim.adam(), random.key(5))._replace(
        params=w.params, state=w.state, opt_state=optim.adam().init(w.params)
    )


SHARDS = Kind(one_of(None, 1, 2), one_of(0, -1, 10**12, "2", 1.5))
SPLIT = Kind(one_of(distributed.by_rows, distributed.by_samples), one_of("rows", None, 3), junk=False)
PROCESSES = Kind(one_of(collectives.SINGLE), one_of(collectives, distributed.Processes))
target(
    "distributed.split_evenly",
    distributed.split_evenly,
    n=Kind(one_of(0, 7), one_of(-1, "a")),
    parts=Kind(one_of(1, 3), one_of(0, -1)),
)
target("distributed.Processes", distributed.Processes, rank=Kind(one_of(0), COUNT.bad), size=Kind(one_of(1), COUNT.bad),
       store=Kind(one_of(None)))  # fmt: skip
target("train.init", train.init, weight=0.3, model=MODEL, opt=OPT, key=KEY)
target("model.check_data", check_data, model=MODEL, **MODEL_ARGS, data=X, observe=OBSERVE)


def trusted(kind: Kind) -> Kind:
    """The good values of a kind, for an argument that is not checked."""
    return Kind(kind.good, junk=False)


def _step(ts: Any, keys: Any, x: Any, **made: Any) -> Any:
    return train.make_step(**made)(ts, keys, x)


target(
    "train.make_step",
    _step,
    weight=0.5,
    model=MODEL,
    estimator=ESTIMATOR,
    update=Kind(lambda rng, w: optim.adam().update),
    samples=FEW,
    observe=trusted(OBSERVE),
    noise=SCHEME,
    scale=trusted(SCALE),
    offset=NUMBER,
    ts=trusted(TRAIN_STATE),
    keys=Kind(lambda rng, w: random.split(random.key(3)), junk=False),
    x=trusted(X),
)
target(
    "train.fit",
    lambda data, **rest: train.fit(train=data, **rest),
    weight=0.3,
    ts=TRAIN_STATE,
    model=MODEL,
    estimator=ESTIMATOR,
    opt=OPT,
    data=X,
    test=X,
    epochs=Kind(one_of(1, 2), one_of(0, -1, "a", 1.5, None), junk=False),
    batch=BATCH,
    samples=FEW,
    observe=OBSERVE,
    noise=SCHEME,
    scale=SCALE,
    offset=NUMBER,
    save_every=Kind(one_of(0, 1)),
    history=Kind(
        one_of(None, train.History(*np.zeros((6, 0)))),
        one_of(train.History(1, 2, 3, 4, 5, 6), train.History(*[[]] * 6), train.History(*np.zeros((6, 2, 2)))),
    ),
    log=PROGRESS,
    watch=PROGRESS,
    save=PROGRESS,
    stop=Kind(one_of(lambda: False, lambda: True, train.interrupt())),
    until=Kind(one_of(None, lambda test_bounds: True)),
    best=Kind(one_of(None, train.keep_best())),
    shards=SHARDS,
    split=SPLIT,
    processes=PROCESSES,
)
target(
    "train.test_bound",
    train.test_bound,
    weight=0.3,
    model=MODEL,
    estimator=ESTIMATOR,
    ts=TRAIN_STATE,
    test=X,
    key=KEY,
    batch=BATCH,
    samples=FEW,
    observe=OBSERVE,
    noise=SCHEME,
)

target(
    "train.early_stopping",
    lambda bounds, **options: train.early_stopping(**options)(bounds),
    patience=COUNT,
    min_delta=NOT_NEGATIVE,
    bounds=Kind(one_of(np.zeros(0), np.ones(3), np.array([1.0, math.nan])), junk=False),
)

# models ---------------------------------------------------------------------------------------------------------------
LATENT = Kind(one_of(1, 2), one_of(0, -1, 1.5, True, "2", 10**400), junk=False)
target("models.gaussian2d_vae", models.gaussian2d_vae, weight=0.2, latent=LATENT, hidden=LATENT)
target("models.linear_vae", models.linear_vae, weight=0.2, inputs=LATENT, latent=LATENT, sigma2=SIGMA2)
PIXEL_MEAN = Kind(one_of(None, torch.ones(1, 28, 28)), strange_tensor)
target("models.burda_vae", models.burda_vae, weight=0.1, latent=LATENT, mean=PIXEL_MEAN)
target("models.burda2_vae", models.burda2_vae, weight=0.1, first=LATENT, second=LATENT, mean=PIXEL_MEAN)
UNITS = Kind(one_of((), (2,), [1, 2]), one_of((0,), (-1,), 2, None, (1.5,), "2"))
target("models.sbn_vae", models.sbn_vae, weight=0.1, latent=LATENT, hidden=UNITS, mean=PIXEL_MEAN)
target("models.mnist_ae", models.mnist_ae, weight=0.05, latent=LATENT)
target("models.mnist_vae", models.mnist_vae, weight=0.05, latent=LATENT)
target("models.mnist_bn_vae", models.mnist_bn_vae, weight=0.05, latent=LATENT, alpha=POSITIVE)
ACTIVATION = Kind(one_of(nn.ReLU, nn.Identity), one_of(nn.ReLU(), nn.Linear, broken))
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
target("models.burda.burda_schedule", lambda n: models.burda.burda_schedule(n)(torch.tensor(3)), weight=0.3,
       n=Kind(COUNT.good, one_of(0, -1, True, torch.tensor(2)), junk=False))  # fmt: skip
SYSTEMS = one_of(*models.SYSTEMS.values())
target(
    "models.Recipe.optimizer",
    lambda which, n, lr: which.recipe.optimizer(n, lr),
    which=Kind(SYSTEMS, junk=False),
    n=COUNT,
    lr=RATE,
)

# Functions left out, and why ------------------------------------------------------------------------------------------
LEFT_OUT = {
    "batching.from_sample": "the part of estimators.in_chunks that numbers the samples of a chunk",
    "batching.of_points": "the part of the engine that numbers the points of a chunk",
    "batching.over_samples": "the part of model.vae that applies the decoder",
    "batching.vmap_or_loop": "the part of the lab that repeats a gradient",
    "distributions.is_reparameterised": "takes the posterior of a checked model",
    "distributions.kl": "trusts its arguments, as part of a step",
    "distributions.layers_of": "part of an encoder, so it does not check its argument",
    "estimators.log_p_x": "part of a step, so it does not check its argument",
    "estimators.log_w": "see estimators.log_p_x",
    "distributed.by_rows": "takes settings that train.fit checks",
    "distributed.by_samples": "see distributed.by_rows",
    "distributed.process_group": "connects processes: see test_rendezvous.py and test_torchrun.py",
    "distributed.rank": "has no arguments",
    "distributed.world_size": "has no arguments",
    "estimators.in_chunks": "returns an estimator; tests/laws calls it",
    "figures.decoding.ascending": "a check that other functions call",
    "figures.decoding.check_condition": "a check that other functions call",
    "figures.of_model.as_is": "the identity",
    "figures.of_model.first_of_class": "takes labels of a data set, which are checked when it is loaded",
    "figures.of_model.is_normal": "a check that other functions call",
    "figures.of_model.item_name": "a line of text about a data set",
    "figures.of_model.rows_by_class": "takes labels of a data set, which are checked when it is loaded",
    "figures.of_model.true_gaussian": "looks up a name",
    "from_module": "takes a module; tests/test_interop.py has its errors",
    "to_module": "see from_module",
    "model.as_floats": "part of a step, so it does not check its arguments",
    "model.as_is": "the identity",
    "model.check_items": "a part of model.check_data",
    "model.check_trained": "a check that other functions call",
    "model.from_bytes": "see model.as_floats",
    "model.joint": "see model.log_p_x_given_z",
    "model.log_p_x_given_z": "part of a step, so it does not check its arguments",
    "model.log_prob": "see model.log_p_x_given_z",
    "model.log_prob_terms": "see model.log_p_x_given_z",
    "model.check_prior": "takes the distributions of a checked model",
    "model.log_weight": "see model.log_p_x_given_z",
    "model.noise_dtype": "part of a step, so it does not check its argument",
    "model.running": "part of a step, so it does not check its arguments",
    "model.unchanged": "a check that other functions call",
    "modules.advance": "the part of batching and sharding that replaces keys",
    "modules.for_part": "the part of batching and sharding that derives keys",
    "modules.network": "the part of functional that model.vae uses",
    "tree.like": "does not check its arguments, which come from the lab",
    "train.fit_task": "train.fit calls it",
    "train.interrupt": "has no arguments",
    "train.keep_best": "has no arguments",
    "train.mapped": "applies a function to the items of a Dataset",
    "train.per_example": "a constant",
    "train.replay_task": "train.replay calls it",
    "train.summed": "converts an int to a float",
    "runs.comparison_report": "takes a result of variance.compare",
    "runs.evaluation_figures": "takes a result of runs.evaluation_report",
    "runs.evaluation_report": "takes a result of runs.load",
    "runs.evaluation_table": "takes a result of runs.evaluation_report",
    "runs.samples_report": "takes a result of runs.load",
    "runs.samples_table": "takes a result of runs.samples_report",
    "runs.never_stop": "a constant",
    "runs.initial_run": "calls runs.configure and data.load",
    "runs.load_data": "takes a result of runs.configure",
    "runs.replay": "see runs.verify",
    "runs.resume": "see runs.verify",
    "runs.new_run_folder": "has no wrong arguments",
    "runs.train": "see runs.configure",
    "runs.run": "trains with a result of runs.configure",
    "runs.runs_table": "takes results of runs.summarize",
    "runs.side_by_side": "takes results of runs.summarize",
    "runs.train_grid": "trains with a result of runs.parse_grid",
    "runs.variance_report": "takes a result of variance.compare",
    "runs.verify": "takes a run folder, like runs.load; files.py damages its files",
    "runs.with_defaults": "see runs.configure",
    "runs.worker_share": "has no arguments",
}
