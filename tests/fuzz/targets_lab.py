"""Targets of the fuzzing program: the variance lab and the figures."""

import math
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from arguments import (
    CONDITION,
    COUNT,
    ESTIMATOR,
    FEW,
    FLAG,
    KEY,
    MODEL,
    PARAMS,
    POSITIVE,
    PROGRESS,
    SCHEME,
    STATE,
    TEXT,
    Kind,
    Rng,
    World,
    X,
    broken,
    estimator,
    junk,
    of_tensor,
    one_of,
    strange,
    strange_tensor,
    world,
)
from matplotlib.figure import Figure
from targets import BATCH, NAME, OBSERVE, ON, SYSTEMS, target

from funcvae import estimators, figures, noise, random, train, variance
from funcvae.data import Dataset
from funcvae.figures import decoding, of_model, of_results

# variance -------------------------------------------------------------------------------------------------------------
GROUPS = Kind(one_of((), ("encoder/*",), ["all"]), one_of(("nobody",), "encoder", (1,), (None,), [[]], ("[",), ("\n",)))
LAB = {
    **ON,
    "key": KEY,
    "samples": FEW,
    "replicates": FEW,
    "chunk": Kind(one_of(None, 1, 2), BATCH.bad),
    "noise": SCHEME,
    "groups": GROUPS,
    "train": FLAG,
    "progress": PROGRESS,
}
ARMS = Kind(
    lambda rng, w: rng.choice(
        [{"a": estimator("iwae"), "b": (estimator("stl"), noise.mirrored)}, {"a": estimator("elbo")}]
    ),
    lambda rng, w: rng.choice(
        [
            {},
            {"a": junk(rng, w)},
            {1: estimator("iwae")},
            {"a": (estimator("iwae"),)},
            [estimator("iwae")],
            {"a": (estimator("iwae"), broken)},
            {"a": broken},
            {"a": (1, 2, 3)},
        ]
    ),
)
target(
    "variance.compare",
    variance.compare,
    weight=0.1,
    arms=ARMS,
    **LAB,
    reference=Kind(one_of(None, "a"), one_of("c", 1)),
    target_se=Kind(one_of(None, 1e9), one_of(0, -1, math.nan, "a")),
    timings=Kind(one_of(0, 1), one_of(-1, 2**63)),
)
target("variance.moments", variance.moments, weight=0.2, estimator=ESTIMATOR, **LAB)
target("variance.exact", variance.exact, weight=0.2, estimator=ESTIMATOR, **ON, samples=Kind(one_of(1, 2), FEW.bad),
       nodes=Kind(one_of(1, 2), one_of(0, -1, 10**12, 2**63)),
       tolerance=Kind(one_of(1e9, math.inf), one_of(0, -1, math.nan, "a")))  # fmt: skip
target(
    "variance.sources",
    lambda x, **rest: variance.sources(data=x, **rest),
    weight=0.1,
    estimator=ESTIMATOR,
    **{k: v for k, v in LAB.items() if k != "chunk"},
    batch=Kind(one_of(1, 2, 3), BATCH.bad),
    batches=FEW,
    observe=OBSERVE,
)


def _measure(value: Any, key: Any) -> Any:
    return {"a": variance.Measured(2.0 * value, 0.1, 1.0, 3.0), "b": variance.Measured(1.0, 0.0, 1.0, 1.0)}


MEASURE = Kind(
    one_of(_measure),
    one_of(
        broken,
        lambda v, k: {"a": 1.0},
        lambda v, k: [1],
        lambda v, k: {},
        lambda v, k: {v: _measure(1, k)["a"]},
        lambda v, k: {"a": variance.Measured("a", None, 1, 1)},
    ),
)
VALUES = Kind(
    one_of((1, 2), [1.0, 4.0, 16.0], (1,)),
    one_of(
        (),
        (1, 1),
        (0, -1),
        ("a",),
        (None,),
        (math.nan,),
        (math.nan, math.inf),
        3,
        ([],),
        (10**400, 1),
        (10**30, 1),
        "12",
        torch.ones(2),
        np.array([1, 2]),
    ),
)
target("variance.sweep", variance.sweep, measure=MEASURE, values=VALUES, key=KEY, over=TEXT, progress=PROGRESS)
MEASURED = Kind(lambda rng, w: [variance.Measured(rng.choice([1.0, 2.0, 0.0]), 0.1, 0.5, 3.0) for _ in range(2)],
                lambda rng, w: rng.choice([[], [1, 2], [variance.Measured(math.nan, math.inf, 1, 1)] * 2,
                                           [variance.Measured(junk(rng, w), junk(rng, w), 1, 1)] * 2]))  # fmt: skip
target("variance.slope", variance.slope, values=Kind(one_of((1, 2), [2.0, 5.0]), VALUES.bad), measured=MEASURED)
_SWEEP = variance.sweep(_measure, (1, 2, 4), random.key(0))
target(
    "variance.Sweep.only",
    lambda names: _SWEEP.only(*names),
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

# figures ------------------------------------------------------------------------------------------------------


def array(*shape: int, low: float = 0.1) -> Kind:
    """Floats of the given shape, as an array, lists or a tensor."""

    def good(rng: Rng, w: World) -> Any:
        values = np.sort(np.array([rng.uniform(low, 1) for _ in range(math.prod(shape))])).reshape(shape)
        return rng.choice([values, values.tolist(), torch.from_numpy(values)])

    def bad(rng: Rng, w: World) -> Any:
        values = torch.linspace(low, 1, math.prod(shape)).reshape(shape)
        odd = [
            np.array(["a"] * 3),
            np.full(shape, np.nan),
            np.full(shape, 1e-320),
            -np.ones(shape),
            np.zeros(shape),
            np.ones(shape, complex),
            np.full(shape, None),
            np.full(shape, np.inf),
            np.ones(shape, bool),
            np.ones(shape, "datetime64[s]"),
            np.full(shape, 1e16),
            np.ones((*shape, 1)),
            "x",
            [[1], [1, 2]],
        ]
        return rng.choice(odd) if rng.random() < 0.6 else strange(rng, values)

    return Kind(good, bad)


def figure(name: str, call: Callable[..., Any], /, weight: float = 0.02, **kinds: Kind) -> None:
    """Adds a function that returns a figure."""

    def drawn(**kwargs: Any) -> Any:
        made = call(**kwargs)
        assert isinstance(made, Figure)
        return made

    target(name, drawn, weight=weight, **kinds)


def maybe(kind: Kind) -> Kind:
    return Kind(lambda rng, w: rng.choice([None, kind.good(rng, w)]), kind.bad)


TITLE = Kind(TEXT.good)
PAIR = Kind(one_of(("z1", "z2"), ["a", "b"]), one_of(("a",), ("a", "b", "c"), (1, 2), "ab", (None, None)))
EXTENT = Kind(one_of(None, (0, 1, 0, 1), (-1.0, 1.0, 0.0, 2.0)), one_of((1, 0, 0, 1), (0, 1, 0), ("a", "b", "c", "d"),
              (0, math.inf, 0, 1), (math.nan,) * 4, "abcd", (None,) * 4))  # fmt: skip
NAMES = Kind(one_of(["a", "b", "c"], ("x", "y", "z")), one_of(["a"], "abc", [1, 2, 3], [None] * 3, []))
TRUSTED = maybe(array(3))
figure("figures.image_grid", figures.image_grid, images=array(2, 2, 1, 3, 3), extent=EXTENT, axes=PAIR, title=TITLE)
figure("figures.sample_grid", figures.sample_grid, images=array(3, 1, 3, 3),
       rows=Kind(one_of((), ["a"], ("a", "b", "c")), one_of("abc", [1], [None], ["a", "b"], 3)),
       title=TITLE)  # fmt: skip
figure(
    "figures.reconstructions",
    figures.reconstructions,
    originals=array(2, 3, 2, 2),
    reconstructed=array(2, 3, 2, 2),
    title=TITLE,
)
ENDS = Kind(
    lambda rng, w: rng.choice([None, (np.ones((1, 3, 3)), np.zeros((1, 3, 3)))]),
    lambda rng, w: rng.choice(
        [(np.ones((1, 3, 3)),), (1, 2), "ab", (np.ones((1, 3, 3)), None), (np.ones((3, 3, 3)),) * 2]
    ),
)
figure("figures.interpolation", figures.interpolation, images=array(3, 1, 3, 3), ends=ENDS, names=PAIR,
       title=TITLE)  # fmt: skip
figure("figures.traversal", figures.traversal, images=array(3, 2, 1, 3, 3), rows=NAMES, values=array(2), title=TITLE)
LABELS = Kind(
    one_of(None, [0, 1, 0, 2], ["a", "b", "a", "a"], np.array([0.5, 1.5, 2.5, 0.1])),
    one_of(
        [1],
        [None] * 4,
        [{}] * 4,
        [1, "a", None, 2.0],
        torch.ones(4, device="meta"),
        [math.nan] * 4,
        [math.inf, 0.5, 1, 2],
        [1j] * 4,
        ["a", "b", "c"],
        np.ones(4, "datetime64[s]"),
        [True, False, True, True],
    ),
)
CLASS_NAMES = Kind(one_of((), ["a"], ("a", "b", "c")), one_of("ab", [1], [None], ["$", "\n", ""], {"a": 1}, 3))
figure("figures.latent_scatter", figures.latent_scatter, z=array(4, 2), labels=LABELS, classes=CLASS_NAMES,
       prior=maybe(array(2)), axes=PAIR, title=TITLE)  # fmt: skip
COV = Kind(one_of(np.eye(2), [[1.0, 0.5], [0.5, 2.0]], None), array(2, 2).bad)
figure("figures.densities", figures.densities, true=array(5, 2), learned=array(4, 2), mean=maybe(array(2)), cov=COV,
       names=PAIR, title=TITLE)  # fmt: skip
figure(
    "figures.evolution",
    figures.evolution,
    weight=0.01,
    step=array(2),
    samples=array(2, 3, 2),
    true=array(4, 2),
    mean=maybe(array(2)),
    cov=COV,
    title=TITLE,
)
target("figures.evolution_frames", figures.evolution_frames, weight=0.01, step=array(2), samples=array(2, 3, 2),
       true=array(4, 2), mean=maybe(array(2)), cov=COV, frames=Kind(one_of(1, 2), COUNT.bad), title=TITLE)  # fmt: skip
figure(
    "figures.training_curves",
    figures.training_curves,
    step=array(3),
    bound=array(3),
    test_step=array(2),
    test_bound=array(2),
    terms=Kind(one_of(None, {}, {"KL": [1.0, 2.0, 3.0]}), one_of({"KL": [1]}, {1: [1, 2, 3]}, [1], "KL")),
    grad_norm=maybe(array(3)),
    steps_per_epoch=maybe(POSITIVE),
    unit=TITLE,
    name=TITLE,
    title=TITLE,
)
_ONE_RUN = ("a", [1, 2], [0.5, 0.6])
RUNS = Kind(one_of([_ONE_RUN], [("a", [1, 2], [0.5, 0.6]), ("b", [2], [0.7])]),
            one_of([], [_ONE_RUN[:2]], [(1, [1], [1])], [("a", [1, 2], [1])], [("a", [1], [math.nan])],
                   "ab"))  # fmt: skip
figure("figures.run_curves", figures.run_curves, runs=Kind(one_of([_ONE_RUN] * 2), RUNS.bad),
       steps_per_epoch=Kind(one_of(None, [10, 10], [10, 20.5]), one_of([1], [0, 1], [math.nan] * 2, "ab", 3)),
       unit=TITLE, name=TITLE, title=TITLE)  # fmt: skip
figure(
    "figures.bound_ladder",
    figures.bound_ladder,
    samples=Kind(one_of([1, 10, 100]), array(3).bad),
    bound=array(3),
    se=array(3),
    title=TITLE,
)
figure(
    "figures.latent_use",
    figures.latent_use,
    kl=array(3),
    active=Kind(one_of([True, False, True]), array(3).bad),
    threshold=Kind(one_of(0.01, 1), one_of("a", None)),
    title=TITLE,
)
_RATIOS = figures.Ratios(*np.ones((5, 3)))
RATIOS = Kind(
    one_of({"encoder": _RATIOS}, {"encoder": _RATIOS, "decoder": _RATIOS}),
    one_of({}, {"encoder": 1}, [1], {"encoder": _RATIOS._replace(ratio=[1.0])}, {"e": _RATIOS._replace(low="ab")}),
)
figure(
    "figures.variance_ratios",
    figures.variance_ratios,
    names=NAMES,
    groups=NAMES,
    networks=RATIOS,
    noise=maybe(NAMES),
    title=TITLE,
)
figure(
    "figures.variance_by_layer",
    figures.variance_by_layer,
    names=NAMES,
    groups=NAMES,
    layers=Kind(one_of(["l1", "l2"]), NAMES.bad),
    ratio=array(3, 2),
    title=TITLE,
)
_COURSE = figures.Course(*np.ones((2, 3, 3)), np.ones(3))
COURSES = Kind(
    one_of({"encoder": {"a": _COURSE}}, {"encoder": {"a": _COURSE, "b": _COURSE}, "decoder": {"a": _COURSE}}),
    one_of({}, {"encoder": {}}, {"encoder": 1}, {"encoder": {"a": 1}}, {"e": {"a": _COURSE._replace(snr=[1.0])}}),
)
_AT = Kind(one_of([1, 4, 16], np.array([1.0, 2.0, 3.0])), array(3).bad)
figure("figures.variance_against_samples", figures.variance_against_samples, samples=_AT, networks=COURSES, title=TITLE)
figure("figures.variance_along_training", figures.variance_along_training, step=_AT, networks=COURSES, title=TITLE)
figure(
    "figures.log_weights",
    figures.log_weights,
    log_w=array(4, 3),
    ess=array(3),
    k_hat=array(3),
    names=maybe(NAMES),
    title=TITLE,
)
figure(
    "figures.variance_cost",
    figures.variance_cost,
    names=NAMES,
    seconds=array(3),
    variance=array(3),
    low=array(3),
    high=array(3),
    slower=maybe(array(3)),
    trusted=TRUSTED,
    noise=maybe(NAMES),
    groups=maybe(NAMES),
    title=TITLE,
)
SERIES = Kind(
    lambda rng, w: {"a": (array(3).good(rng, w), array(3).good(rng, w))},
    lambda rng, w: rng.choice(
        [
            {},
            {"a": 1},
            {"a": (1,)},
            {1: ([1, 2, 3], [0, 0, 0])},
            {"a": (array(3).bad(rng, w), [1, 1, 1])},
            {"a": ([1, 2, 3], array(3).bad(rng, w))},
            {"a": ([1, 2], [1, 2])},
        ]
    ),
)
SLOPES = Kind(
    one_of(None, {"a": (1.0, 0.1)}, {}),
    one_of(
        {"b": (1, 1)},
        {"a": 1},
        {"a": ("x", "y")},
        {"a": (math.nan, math.inf)},
        {"a": (1.0, -1.0)},
        {"a": (1,)},
        [1],
        {"a": (None, None)},
    ),
)
figure(
    "figures.scaling",
    figures.scaling,
    values=array(3),
    series=SERIES,
    slopes=SLOPES,
    xlabel=TITLE,
    ylabel=TITLE,
    title=TITLE,
)
_OVER = figures.OverSeeds([1, 4], [1.0, 2.0], [0.5, math.nan], [1.5, math.nan], [[1.0, 2.0], [2.0, math.nan]])


def _panels_with(rng: Rng, w: World) -> Any:
    odd = {rng.choice(_OVER._fields): rng.choice([junk(rng, w), [1.0], [math.inf, 1.0], [-1, 0], [3, 2], "ab", None])}
    return {"a": {"b": _OVER._replace(**odd)}}


PANELS = Kind(
    one_of({"a": {"b": _OVER}}, {"a": {"b": _OVER, "c": _OVER}, "d": {"b": _OVER}}),
    lambda rng, w: rng.choice([{}, {"a": {}}, {"a": [1]}, {3: {}}, _panels_with(rng, w)]),
)
figure(
    "figures.over_seeds",
    figures.over_seeds,
    panels=PANELS,
    ylabel=TITLE,
    yscale=Kind(one_of("linear", "log"), TEXT.bad),
    title=TITLE,
)

FOLDER = tempfile.TemporaryDirectory(prefix="funcvae-fuzz-")
PATH = Kind(
    lambda rng, w: f"{FOLDER.name}/a.{rng.choice(['png', 'gif'])}",
    one_of(
        "a.txt",
        "",
        f"{FOLDER.name}/a.png/b.png",
        "/proc/nowhere/a.gif",
        f"{FOLDER.name}/{'a' * 300}.png",
    ),
)
target(
    "figures.save", figures.save, weight=0.02, figure=Kind(lambda rng, w: Figure(figsize=(1, 1))), path=PATH, over=FLAG
)
target("figures.save_gif", figures.save_gif, weight=0.05, images=array(2, 1, 3, 3), path=PATH,
       size=Kind(one_of(4, 8), one_of(0, -1, 10**12, 1.5, math.nan)),
       seconds=Kind(one_of(1, 0.5), POSITIVE.bad), back=FLAG, over=FLAG)  # fmt: skip

SEES = {"model": MODEL, "params": PARAMS, "state": STATE}
PIXELS = Kind(one_of(of_model.as_is), one_of(broken, lambda x: x.flatten(), lambda x: 3))
target("figures.decoding.latents", decoding.latents, **SEES, x=X)
target(
    "figures.decoding.decoded",
    decoding.decoded,
    **SEES,
    z=of_tensor(lambda rng, w: torch.ones(3, w.model.latent, dtype=w.dtype)),
    condition=CONDITION,
)
target("figures.decoding.reconstructed", decoding.reconstructed, **SEES, x=X, key=maybe(KEY))
target("figures.decoding.samples", decoding.samples, **SEES, key=KEY, n=COUNT, drawn=FLAG,
       condition=CONDITION)  # fmt: skip


def _item(rng: Rng, w: World) -> Any:
    return {name: part[0] for name, part in w.x.items()} if isinstance(w.x, dict) else w.x[0]


ITEM = Kind(_item, lambda rng, w: strange(rng, w.modelled[0]))
target("figures.decoding.pair", decoding.pair, first=ITEM, second=ITEM)
target("figures.decoding.interpolated", decoding.interpolated, **SEES, first=ITEM, second=ITEM, steps=FEW)
PLANE = of_tensor(one_of(torch.eye(3, 2), torch.eye(4, 3), torch.ones(2, 1)))
target("figures.decoding.latent_plane", decoding.latent_plane, z=PLANE)
SPAN = Kind(one_of(None, (-3, 3), [0.0, 0.5]), one_of((3, -3), (1,), (0, math.inf), (math.nan, 1), "ab", ("a", "b"), 3))
target(
    "figures.decoding.decoded_grid",
    decoding.decoded_grid,
    weight=0.3,
    worlds=("plane", "images"),
    **SEES,
    z=of_tensor(one_of(torch.eye(3, 2))),
    span=SPAN,
    n=FEW,
)
target(
    "figures.decoding.traversed",
    decoding.traversed,
    **SEES,
    item=Kind(
        lambda rng, w: {name: part[:1] for name, part in w.x.items()} if isinstance(w.x, dict) else w.x[:1], X.bad
    ),
    rows=Kind(one_of([0], (0, 0)), one_of([], [99], [-1], ["a"], 0, [0.5])),
    values=Kind(one_of([0.0], (-1, 2.5)), one_of([], [math.nan], ["a"], 3, [None])),
)
figure(
    "figures.of_model.latent_scatter",
    of_model.latent_scatter,
    **SEES,
    x=X,
    labels=Kind(one_of(None, torch.arange(3)), strange_tensor),
    classes=CLASS_NAMES,
    name=TITLE,
)
DRAW = {"pixels": PIXELS, "name": TITLE}
target(
    "figures.of_model.latent_grid", of_model.latent_grid, weight=0.02, worlds=("images", "plane"), **SEES, x=X,
    span=SPAN, n=FEW, **DRAW
)  # fmt: skip
target(
    "figures.of_model.latent_traversal", of_model.latent_traversal, weight=0.02, worlds=("images", "plane"), **SEES,
    x=X, rows=FEW, span=Kind(one_of((-3, 3)), SPAN.bad), n=FEW, **DRAW
)  # fmt: skip
target(
    "figures.of_model.reconstructions",
    of_model.reconstructions,
    weight=0.02,
    worlds=("images", "plane"),
    **SEES,
    x=X,
    key=maybe(KEY),
    **DRAW,
)
target(
    "figures.of_model.interpolation",
    of_model.interpolation,
    weight=0.02,
    worlds=("images", "plane"),
    **SEES,
    first=ITEM,
    second=ITEM,
    steps=FEW,
    names=PAIR,
    **DRAW,
)
target(
    "figures.of_model.image_samples",
    of_model.image_samples,
    weight=0.02,
    worlds=("images", "plane"),
    **SEES,
    key=KEY,
    n=COUNT,
    drawn=FLAG,
    condition=CONDITION,
    rows=CLASS_NAMES,
    **DRAW,
)
_POINTS = Dataset("points", torch.eye(5, 2), torch.eye(4, 2), None, None)
DATASET = Kind(one_of(_POINTS))
figure(
    "figures.of_model.point_samples",
    of_model.point_samples,
    **SEES,
    key=KEY,
    n=COUNT,
    dataset=DATASET,
    drawn=FLAG,
    name=TITLE,
)
figure(
    "figures.of_results.evolution", of_results.evolution, weight=0.01, kept=array(2, 3, 2), dataset=DATASET, name=TITLE
)
target("figures.of_results.evolution_frames", of_results.evolution_frames, weight=0.01, kept=array(2, 3, 2),
       dataset=DATASET, name=TITLE)  # fmt: skip
HISTORY = Kind(one_of(train.History(*np.ones((5, 4)), np.ones(2))),
               one_of(train.History(*np.ones((6, 0))), train.History(*np.ones((6, 2, 2)))))  # fmt: skip
figure("figures.of_results.training", of_results.training, history=HISTORY, steps_per_epoch=maybe(POSITIVE),
       name=TITLE, title=TITLE)  # fmt: skip
figure("figures.of_results.several_runs", of_results.several_runs,
       runs=Kind(lambda rng, w: [("a", HISTORY.good(rng, w)), ("b", HISTORY.good(rng, w))],
                 lambda rng, w: rng.choice([[], [("a", HISTORY.bad(rng, w))], [("a", 3)], [("a",)], "ab", 3])),
       name=TITLE, title=TITLE)  # fmt: skip
target(
    "figures.of_results.of_comparison",
    of_results.of_comparison,
    weight=0.003,
    found=Kind(lambda rng, w: _comparison()),
    name=TITLE,
)
target(
    "figures.of_results.of_samples",
    of_results.of_samples,
    weight=0.003,
    found=Kind(lambda rng, w: [_comparison()], one_of([], [1], 3)),
    name=TITLE,
)
target(
    "figures.of_results.variance_along_training",
    of_results.variance_along_training,
    weight=0.1,
    rows=Kind(one_of([], [{"step": 1, "variance/a/encoder": 1.0}]), one_of(3, [3], ["ab"], [None])),
    name=TITLE,
)
figure(
    "figures.of_results.of_scaling",
    of_results.of_scaling,
    found=Kind(one_of(_SWEEP), one_of(_SWEEP._replace(values=[]), _SWEEP._replace(series={}))),
    ylabel=TITLE,
    title=TITLE,
)
target(
    "figures.of_results.of_run",
    of_results.of_run,
    weight=0.003,
    worlds=("images", "plane"),
    **SEES,
    system=Kind(SYSTEMS),
    dataset=DATASET,
    x=X,
    key=KEY,
    name=TITLE,
)
