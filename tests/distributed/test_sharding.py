"""Steps in shards, in one process, against the same step without shards.

Several processes are tested in tests/system/test_torchrun.py.
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import distributed, tree
from funcvae.distributed import Processes, sharding, split_evenly
from funcvae.errors import BadData, BadType, BadValue
from funcvae.estimators import parse
from funcvae.estimators.engine import share_of_state
from funcvae.models.recipe import binarize
from funcvae.train.settings import StepSettings
from funcvae.train.task import Task, check_shards
from tests.support.compiling import use_aot_eager
from tests.support.oracles import assert_close, double, tiny
from tests.support.specs import SEPARATE

SPLITS = {"rows": distributed.by_rows, "samples": distributed.by_samples}
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)


BATCH, SAMPLES = 11, 8
# A closed-form KL; one pull-back; two pull-backs; points that an estimator chooses, with one pull-back or two.
PATHS = ("elbo", "iwae", "dreg", "vimco", "piwae:2", "disarm_local", "rebar:0.7:0.6")
COUNTS = (1, 2, 3, 5, 7)  # only the first divides the batch


def test_unpack_inverts_pack():
    grads = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones((), dtype=torch.float64) / 3}
    old = {"mean": torch.zeros(2), "count": torch.tensor(7), "fixed": torch.tensor([0.1, -torch.inf])}
    new = {"mean": torch.tensor([0.5, -1.0]), "count": torch.tensor(8), "fixed": old["fixed"].clone()}
    model = fv.models.gaussian2d_vae()
    like = sharding.share_like(model, grads, old)
    means = torch.tensor([-2.5, -3.0, 0.5])
    flat = sharding.pack(grads, means, share_of_state(model, new, old, 1.0))
    assert flat.shape == (6 + 1 + 3 + (2 + 1) + (1 + 1) + (2 + 1) + 1,)  # each buffer with whether it has changed
    assert flat[-1] == 0
    assert_close(sharding.unpack(flat, like, old), (grads, means.double(), new), atol=0)
    thirds = sum(sharding.pack(grads, 0 * means, share_of_state(model, new, old, 1 / 3)) for _ in range(3))
    state = sharding.unpack(thirds, like, old)[2]
    assert state["count"] == 8, "three shares count one batch together"
    assert torch.equal(state["fixed"], old["fixed"]), "what has not changed keeps its bits"


def test_binarized_rows_equal_those_of_the_whole_batch():
    key, rows = fv.random.key(3), torch.tensor([4, 0, 2])
    x = fv.random.uniform(fv.random.key(4), (5, 1, 4, 4))
    assert torch.equal(binarize(key, x[rows], rows), binarize(key, x)[rows])
    assert not torch.equal(binarize(key, x[rows]), binarize(key, x)[rows]), "without the rows they differ"


# A step in shards, against the step without shards.


def sgd(rate=1.0):
    """Plain SGD, whose step is the gradient itself."""
    return fv.optim.Optimizer(
        lambda params: {},
        lambda grads, state, params: (tree.map(lambda p, g: p - rate * g, params, grads), state),
    )


def jittered(key, x):
    """An `observe` that needs the whole batch."""
    return x + 0.1 * fv.random.normal(key, tuple(x.shape), x.dtype)


def jittered_rows(key, x, rows=None):
    """The same, for a part of the batch too."""
    at = None if rows is None else fv.random.flat_indices(tuple(x.shape), rows)
    return x + 0.1 * fv.random.normal(key, tuple(x.shape), x.dtype, at=at)


def begun(opt, **options):
    """The initial state of a small model in float64, the model, and data."""
    model, params, state, _ = tiny(**options)
    ts = fv.train.init(model, opt, fv.random.key(0))._replace(params=params, state=double(state))
    ts = ts._replace(opt_state=opt.init(params))
    return ts, model, fv.random.normal(fv.random.key(7), (BATCH, 2), torch.float64)


BERNOULLI = {
    "encoder": lambda: nn.Linear(2, 2),
    "posterior": fv.heads.bernoulli,
    "prior": fv.priors.learned_bernoulli(2),
}


def one_step(estimator, opt, **options):
    """An epoch of one step: the new TrainState, the history, and what `replay` returns for the step."""
    ts, model, x = begun(opt, **(BERNOULLI if estimator.claims.posterior == "discrete" else {}))
    options = {"batch": BATCH, "samples": SAMPLES, "compile": False, "observe": jittered, **options}
    after, history = fv.train.fit(ts, model, estimator, opt, x, epochs=1, **options)
    return after, history, fv.train.replay(ts, 0, model, estimator, opt, x, **options)


def close(a, b, rtol=1e-10):
    for mine, theirs in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)


@every_split
@pytest.mark.parametrize(
    "spec", [spec if spec in PATHS else pytest.param(spec, marks=pytest.mark.slow) for spec in SEPARATE]
)
def test_a_step_in_shards_equals_the_step(spec, split):
    estimator = parse(spec)
    after, history, found = one_step(estimator, sgd())
    for count in COUNTS:
        cut_after, cut_history, cut_found = one_step(estimator, sgd(), shards=count, split=split)
        close(cut_after, after)
        for mine, theirs in zip(cut_history, history, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10)
        close(cut_found._asdict(), found._asdict())


@every_split
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("spec", ["elbo", "iwae", *(pytest.param(s, marks=pytest.mark.slow) for s in ("vimco", "rws"))])
def test_a_step_in_shards_and_in_chunks_equals_the_step(spec, chunk, split):
    estimator, opt = parse(spec), fv.optim.adam()
    after, _, found = one_step(estimator, opt)
    for count in (1, 3, 8):
        cut_after, _, cut_found = one_step(estimator, opt, shards=count, split=split, chunk=chunk)
        close(cut_after, after, 1e-9)
        close(cut_found._asdict(), found._asdict(), 1e-9)


@every_split
@pytest.mark.parametrize("spec", ["elbo", "dreg"])
def test_a_step_in_shards_applies_scale_offset_noise_and_partial_observation(spec, split):
    estimator, opt = parse(spec), sgd(0.01)
    options = {"scale": fv.train.summed, "offset": 0.5, "observe": jittered_rows}
    if spec == "elbo":
        options["noise"] = fv.noise.moment_matched
    after, history, found = one_step(estimator, opt, **options)
    cut_after, cut_history, cut_found = one_step(estimator, opt, shards=3, split=split, **options)
    close(cut_after, after)
    np.testing.assert_allclose(cut_history.loss, history.loss, rtol=1e-10)
    close(cut_found._asdict(), found._asdict())


@pytest.mark.parametrize("spec", ["elbo", "iwae", "vimco"])
def test_one_shard_by_rows_gives_the_bits_of_a_step_without_shards(spec):
    for opt in (sgd(), fv.optim.adam()):
        a, one, _ = one_step(parse(spec), opt)
        b, two, _ = one_step(parse(spec), opt, shards=1)
        assert all(map(torch.equal, tree.leaves(a), tree.leaves(b)))
        assert all(map(np.array_equal, one, two))


def test_shards_are_weighted_by_their_number_of_rows():
    """Of eleven rows in three shards, the last has three rows: its gradient has less weight than the others'."""
    estimator = parse("iwae")
    ts, model, x = begun(sgd())
    rows, keys = fv.train.batches(ts.key, BATCH, BATCH, 0)
    step = fv.train.make_step(model, estimator, sgd().update, samples=SAMPLES)
    whole, _ = step(ts, keys[0], x[rows[0]])
    grads = tree.map(lambda p, q: p - q, ts.params, whole.params)
    eps = fv.noise.iid(keys[0][0], SAMPLES, (BATCH, 2), dtype=x.dtype)
    x = x[rows[0]]
    pieces = [slice(piece.start, piece.stop) for piece in split_evenly(BATCH, 3)]
    of_each = [estimator(model, ts.params, ts.state, x[p], eps[:, p], train=True).grads for p in pieces]
    weighted = tree.map(
        lambda *g: sum(t * (p.stop - p.start) / BATCH for t, p in zip(g, pieces, strict=True)), *of_each
    )
    plain = tree.map(lambda *g: sum(g) / 3, *of_each)
    close(weighted, grads)
    with pytest.raises(AssertionError):
        close(plain, grads)


@every_split
def test_the_short_last_batch_may_have_fewer_rows_than_shards(split):
    """Eleven rows in batches of eight or nine, in seven shards: the last batch has three or two rows."""
    estimator, opt = parse("iwae"), fv.optim.adam()
    ts, model, x = begun(opt)
    for batch in (8, 9):
        options = {"epochs": 2, "batch": batch, "samples": SAMPLES, "compile": False}
        after, history = fv.train.fit(ts, model, estimator, opt, x, **options)
        cut_after, cut_history = fv.train.fit(ts, model, estimator, opt, x, shards=7, split=split, **options)
        close(cut_after, after, 1e-8)
        assert len(history.loss) == 4
        np.testing.assert_allclose(cut_history.loss, history.loss, rtol=1e-8)


@pytest.mark.parametrize(
    ("split", "count", "batch", "backend"),
    [
        (distributed.by_samples, 2, 12, "aot_eager"),
        *(
            pytest.param(split, count, batch, "inductor", marks=pytest.mark.slow)
            for split in (distributed.by_rows, distributed.by_samples)
            for count, batch in ((2, 12), (3, 8))  # 3: shards of several sizes
        ),
    ],
)
def test_a_compiled_run_in_shards_agrees_with_the_eager_one_and_repeats_to_the_bit(
    monkeypatch, split, count, batch, backend
):
    """The fast case checks the graphs with aot_eager; the slow ones compile them with inductor, twice."""
    if backend == "aot_eager":
        use_aot_eager(monkeypatch)
    model, opt, estimator = fv.models.gaussian2d_vae(hidden=4), fv.optim.adam(1e-2), parse("iwae")
    ts, x = fv.train.init(model, opt, fv.random.key(0)), fv.random.normal(fv.random.key(7), (12, 2))
    train = partial(
        fv.train.fit, ts, model, estimator, opt, x, epochs=2, batch=batch, samples=4, shards=count, split=split, test=x
    )
    _, eager = train(compile=False)
    torch._dynamo.reset()
    one, compiled = train(compile=True)
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-4)
    np.testing.assert_allclose(compiled.test_bound, eager.test_bound, rtol=1e-4)
    if backend == "inductor":
        two, again = train(compile=True)
        assert all(map(np.array_equal, compiled, again))
        assert all(map(torch.equal, tree.leaves(one), tree.leaves(two)))


@every_split
def test_binarized_digits_train_in_shards(split):
    """Bernoulli pixels with `binarize`, which can draw only the rows of a shard."""
    x = fv.random.uniform(fv.random.key(1), (7, 1, 28, 28))
    model, opt = fv.models.burda_vae(latent=2), sgd(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    options = {"epochs": 1, "batch": 7, "samples": 3, "observe": binarize, "compile": False}
    whole, history = fv.train.fit(ts, model, parse("iwae"), opt, x, **options)
    cut_, cut_history = fv.train.fit(ts, model, parse("iwae"), opt, x, shards=3, split=split, **options)
    close(cut_.params, whole.params, 1e-5)
    np.testing.assert_allclose(cut_history.loss, history.loss, rtol=1e-5)


def test_a_stopped_run_in_shards_continues_to_the_same_bits():
    ts, model, x = begun(fv.optim.adam())
    train = partial(
        fv.train.fit, model=model, estimator=parse("iwae"), opt=fv.optim.adam(), train=x, batch=4, samples=2,
        shards=3, compile=False,
    )  # fmt: skip
    whole, history = train(ts, epochs=2)
    steps = iter(range(1, 99))
    half, past = train(ts, epochs=2, stop=lambda: next(steps) >= 4)
    assert half.step == 4
    ended, joined = train(half, epochs=1, history=past)
    assert all(map(torch.equal, tree.leaves(ended), tree.leaves(whole)))
    np.testing.assert_array_equal(joined.loss, history.loss)


# Replay.


@every_split
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize(("made", "step"), [(0, 0), (0, 2), (1, 4)])
def test_replay_of_a_step_in_shards_equals_the_runs_step_to_the_bit(made, step, chunk, split):
    opt, estimator = fv.optim.adam(1e-2), parse("iwae")
    start, model, x = begun(opt)
    options = {"batch": 4, "samples": 3, "shards": 3, "split": split, "chunk": chunk, "compile": False,
               "observe": jittered}  # fmt: skip
    states, rows = {0: start}, []
    fv.train.fit(
        start, model, estimator, opt, x, epochs=2, **options, log=rows.append,
        watch=lambda step, ts: states.update({step: tree.map(torch.clone, ts)}),
    )  # fmt: skip
    found = fv.train.replay(states[made], step, model, estimator, opt, x, **options)
    assert all(map(torch.equal, tree.leaves(found.after), tree.leaves(states[step + 1])))
    row = next(row for row in rows if "loss" in row and row["step"] == step)
    assert found.metrics._asdict() == {name: row[name] for name in found.metrics._fields}
    visited, keys = fv.train.batches(start.key, BATCH, 4, step // 3)
    noise_key, observe_key = keys[step % 3]
    assert torch.equal(found.rows, visited[step % 3])
    assert torch.equal(found.x, jittered(observe_key, x[found.rows]))
    torch.testing.assert_close(found.eps, fv.noise.iid(noise_key, 3, (len(found.rows), 2), dtype=x.dtype))
    out = estimator(model, states[step].params, states[step].state, found.x, found.eps, train=True)
    close((found.log_w, found.bound, found.grads), (out.log_w, out.bound, out.grads))
    assert float(found.bound.mean()) == pytest.approx(row["bound"], rel=1e-12)
    assert float(tree.norm(found.grads)) == pytest.approx(row["grad_norm"], rel=1e-12)


# BatchNorm.


def normed():
    """An encoder with BatchNorm, whose momentum is not the default."""
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Tanh(), nn.Linear(4, 4))


def running(state, x, pieces):
    """The running statistics of torch's own BatchNorm after each shard, averaged with the shards' sizes as weights."""
    total = {}
    for piece in pieces:
        norm = nn.BatchNorm1d(4, momentum=0.3).double()
        norm.running_mean.copy_(state["1.running_mean"])
        norm.running_var.copy_(state["1.running_var"])
        norm(x[piece.start : piece.stop])
        for name in ("running_mean", "running_var"):
            total[name] = total.get(name, 0) + getattr(norm, name) * len(piece) / len(x)
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_running_statistics_by_rows_are_the_average_over_the_shards(count):
    opt = sgd(0.0)  # so that the layer before does not change
    ts, model, x = begun(opt, encoder=normed, posterior=fv.heads.normal_logvar)
    assert ts.state["encoder"]["1.running_mean"].dtype == torch.float64
    made, states = [], [ts.state["encoder"]]
    fv.train.fit(
        ts, model, parse("iwae"), opt, x, batch=11, epochs=2, samples=2, shards=count, compile=False,
        watch=lambda step, ts: states.append(tree.map(torch.clone, ts.state["encoder"])), log=made.append,
    )  # fmt: skip
    params = ts.params["encoder"]
    for epoch in range(2):
        (rows,), _ = fv.train.batches(ts.key, 11, 11, epoch)
        h = x[rows] @ params["0.weight"].T + params["0.bias"]
        expected = running(states[epoch], h, split_evenly(11, count))
        for name, value in expected.items():
            torch.testing.assert_close(states[epoch + 1][f"1.{name}"], value, rtol=1e-12, atol=1e-12)
        if count > 1:  # they differ from those of the whole batch
            whole = running(states[epoch], h, [range(11)])
            assert not torch.allclose(states[epoch + 1]["1.running_var"], whole["running_var"], rtol=1e-6)
        assert states[epoch + 1]["1.num_batches_tracked"] == epoch + 1


@every_split
def test_each_step_counts_one_batch_also_the_short_last_one(split):
    opt = fv.optim.adam()
    ts, model, x = begun(opt, encoder=normed, posterior=fv.heads.normal_logvar)
    x = torch.cat([x, x[:1] + 1])  # twelve rows: batches of eight and four, in two shards each
    after, _ = fv.train.fit(
        ts, model, parse("iwae"), opt, x, batch=8, epochs=3, samples=2, shards=2, split=split, compile=False
    )
    assert after.state["encoder"]["1.num_batches_tracked"] == 6
    assert after.state["encoder"]["1.num_batches_tracked"].dtype == torch.int64


def test_with_batchnorm_the_number_of_shards_matters_by_rows_only():
    opt = fv.optim.adam()
    ts, model, x = begun(opt, encoder=normed, posterior=fv.heads.normal_logvar)

    def bounds(**options):
        options = {"batch": 11, "epochs": 2, "samples": 4, "compile": False, **options}
        return fv.train.fit(ts, model, parse("iwae"), opt, x, **options)[1].bound

    whole = bounds()
    assert not np.allclose(bounds(shards=2), whole, rtol=1e-4)
    assert not np.allclose(bounds(shards=2), bounds(shards=3), rtol=1e-4)
    for count in (2, 3):  # the encoder sees all rows
        np.testing.assert_allclose(bounds(shards=count, split=distributed.by_samples), whole, rtol=1e-10)


# Errors.


def refused(message, error=BadValue, **options):
    opt = fv.optim.adam()
    ts, model, x = begun(opt)
    options = {"batch": BATCH, "samples": 4, "compile": False, **options}
    with pytest.raises(error, match=message):
        fv.train.fit(ts, model, parse("iwae"), opt, x, **options)


@pytest.mark.parametrize("split", [fv.distributed.by_rows, fv.distributed.by_samples])
def test_noise_that_would_broadcast_over_the_data_is_refused(split):
    def shared(key, n, shape, *, dtype):
        return fv.noise.iid(key, n, (1, *shape[1:]), dtype=dtype)

    parts = fv.noise.independent(
        lambda key, n, shape, *, dtype, samples=None, rows=None: shared(key, n, shape, dtype=dtype)
    )
    refused(r"eps has shape \[4, 1, 2\]: it must be \[4, 2, 2\]", noise=parts, shards=2, split=split)


def test_more_shards_than_rows_or_samples_are_refused():
    refused(r"shards is 12, but each batch has only 11 rows: use at most 11$",
            shards=12)  # fmt: skip
    refused("each batch has only 11 rows: use at most 11", shards=12, batch=500)
    refused("each batch has only 2 rows", shards=3, batch=2)
    refused(
        r"shards is 5, but each datum has only 4 samples: use at most 4$",
        shards=5, split=distributed.by_samples,
    )  # fmt: skip


def test_more_processes_than_shards_or_rows_or_samples_are_refused():
    three = Processes()
    three.size = 3  # as if three were connected
    _, model, _ = begun(fv.optim.adam())

    def check(batch, samples, count, split):
        settings = StepSettings(batch=batch, samples=samples, shards=count, split=split)
        check_shards(Task(model, parse("iwae"), fv.optim.adam(), torch.zeros(99, 2), settings, three), {})

    with pytest.raises(BadValue, match="there are 3 processes, but each batch has only 2 rows"):
        check(2, 9, None, distributed.by_rows)
    with pytest.raises(BadValue, match="there are 3 processes, but each datum has only 1 samples: use at most"):
        check(9, 1, None, distributed.by_samples)
    with pytest.raises(BadValue, match=r"there are 3 processes, but shards is 2: use at most 2$"):
        check(9, 9, 2, distributed.by_rows)
    with pytest.raises(BadValue, match=r"there are 3 processes, but shards is 1: use at most 1$"):
        check(9, 9, 1, distributed.by_samples)
    check(9, 9, None, distributed.by_rows)
    check(9, 9, 5, distributed.by_rows)
    check(2, 9, 5, distributed.by_samples)  # rows are not split


@pytest.mark.parametrize(("value", "error"), [(0, BadValue), (-1, BadValue), (1.5, BadType), ("2", BadType)])
def test_the_number_of_shards_must_be_a_positive_whole_number(value, error):
    refused("shards is", error, shards=value)


def test_a_wrong_kind_of_split_or_processes_is_refused():
    refused("split is 'rows': it must be a function", BadType, shards=2, split="rows")
    refused("split is 'rows'", BadType, split="rows")
    for value in (3, None, "x"):
        refused("processes is .*: it must be a Processes", BadType, processes=value)
        refused(
            "processes is .*: it must be a Processes",
            BadType,
            processes=value,
            shards=2,
        )


def test_a_shard_of_one_row_is_refused_with_batchnorm():
    opt = fv.optim.adam()
    ts, model, x = begun(opt, encoder=normed, posterior=fv.heads.normal_logvar)

    def train(ts=ts, model=model, **options):
        fv.train.fit(ts, model, parse("iwae"), opt, x, samples=6, compile=False, **options)

    with pytest.raises(BadData, match="11 items in batches of 11 and 6 shards leave a shard of a single item"):
        train(batch=11, shards=6)
    with pytest.raises(BadData, match="11 items in batches of 8 and 3 shards leave a shard of a single item"):
        train(batch=8, shards=3)  # of the last batch, of three
    with pytest.raises(BadData, match="11 items in batches of 5 leave a batch of a single item"):
        train(batch=5, shards=6, split=distributed.by_samples)
    train(batch=8, shards=6, split=distributed.by_samples)
    train(batch=11, shards=5)
    plain_ts, plain, _ = begun(opt)
    train(plain_ts, plain, batch=11, shards=11)
