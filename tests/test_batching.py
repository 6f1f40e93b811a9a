"""Networks that `vmap` cannot batch have the numbers of a loop, and of the same function written for `vmap`."""

import warnings

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import compilation, tree
from funcvae.batching import Unbatched, over_samples
from funcvae.estimators import parse
from funcvae.train import fit, init

KEY = fv.random.key(3)
N, B, Z, D = 4, 3, 2, 5
X = fv.random.bernoulli(fv.random.key(4), 0.4, (8, D)).float()
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore::funcvae.evaluate.Untrusted")


class Recurrent(nn.Module):
    """A recurrent layer along the elements of each row."""

    def __init__(self, kind, size, out):
        super().__init__()
        self.r, self.out = kind(1, 3, batch_first=True), nn.Linear(3, out)

    def forward(self, z):
        return self.out(self.r(z.unsqueeze(-1))[0][:, -1])


class WrittenLSTM(Recurrent):
    """The same function as an LSTM's, by operators that `vmap` can batch."""

    def forward(self, z):
        h = c = z.new_zeros(len(z), 3)
        r = self.r
        for t in range(z.shape[1]):
            gates = z[:, t : t + 1] @ r.weight_ih_l0.T + r.bias_ih_l0 + h @ r.weight_hh_l0.T + r.bias_hh_l0
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class Masked(nn.Sequential):
    """A layer of ReLUs, by a boolean mask."""

    def __init__(self, size, out):
        super().__init__(nn.Linear(size, 4), nn.Linear(4, out))

    def forward(self, z):
        h = self[0](z)
        h[h < 0] = 0
        return self[1](h)


class Rectified(Masked):
    """The same function, which `vmap` can batch."""

    def forward(self, z):
        return self[1](self[0](z).relu())


class Normalised(Masked):
    """Couples the rows in training mode, and has running statistics."""

    def __init__(self, size, out):
        super().__init__(size, out)
        self.append(nn.BatchNorm1d(out))

    def forward(self, z):
        return self[2](super().forward(z))


class Gated(Masked):
    """Couples the rows by a term whose factor is zero at first."""

    def __init__(self, size, out):
        super().__init__(size, out)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return super().forward(z) + self.gate * z.mean()


class Compared(Masked):
    """Couples the rows by a comparison alone, which hides NaN."""

    def forward(self, z):
        return super().forward(z) * torch.where(z.sum() > 50, 2.0, 1.0)


class Numbered(Masked):
    """A row of the output depends on the row's position."""

    def forward(self, z):
        return super().forward(z) + torch.arange(len(z), dtype=z.dtype).unsqueeze(1)


class Counted(Masked):
    """The new state depends on the number of rows."""

    def __init__(self, size, out):
        super().__init__(size, out)
        self.register_buffer("rows", torch.tensor(0))

    def forward(self, z):
        self.rows += len(z)
        return super().forward(z)


class Sequence(nn.LSTM):
    """Takes the rows for the steps of one sequence, so that a row depends on those before it."""

    def forward(self, z):
        return super().forward(z)[0]


def spectral(size, out):
    return nn.utils.parametrizations.spectral_norm(nn.Linear(size, out))


def lstm(size, out):
    return Recurrent(nn.LSTM, size, out)


ONE, EACH = "in one call", "one after another"
KINDS = {  # what vmap cannot batch, and how its samples run in evaluation and training mode
    "lstm": (lstm, ONE, ONE),
    "gru": (lambda *sizes: Recurrent(nn.GRU, *sizes), ONE, ONE),
    "mask": (Masked, ONE, ONE),
    "spectral_norm": (spectral, None, ONE),
    "batch_norm": (Normalised, ONE, EACH),
    "gate": (Gated, EACH, EACH),
    "comparison": (Compared, EACH, EACH),
    "position": (Numbered, EACH, EACH),
    "count": (Counted, EACH, EACH),
    "sequence": (Sequence, EACH, EACH),
}
TWINS = {"lstm": (lstm, lambda *sizes: WrittenLSTM(nn.LSTM, *sizes)), "mask": (Masked, Rectified)}
by_twins = pytest.mark.parametrize("pair", TWINS.values(), ids=TWINS)


def double(tree_):
    return tree.map(lambda t: t.double() if t.is_floating_point() else t, tree_)


def assert_close(a, b, tolerance=1e-10):
    for x, y in tree.rows(a, b):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_equal_a_loop_over_them_and_states_are_averaged(kind, train):
    factory, *ways = KINDS[kind]
    net = fv.functional(lambda: factory(Z, D))
    params, state = double(net.init(KEY))
    z = fv.random.normal(KEY, (N, B, Z), torch.float64)
    text = " and ".join(
        f"{how} in {mode} mode" for how, mode in zip(ways, ("evaluation", "training"), strict=True) if how
    )
    sampled, calls = over_samples(counting := Counting(net.apply)), {ONE: 1, EACH: N, None: 1}[ways[train]]
    with pytest.warns(Unbatched, match=f"vmap cannot batch the decoder: its samples run {text} \\(.*\\)$"):
        out, new = sampled(params, state, z, train=train)
    each = [net.apply(params, state, z_n, train=train) for z_n in z]
    assert_close(out, torch.stack([y for y, _ in each]))
    for name, value in new.items():
        values = torch.stack([s[name] for _, s in each])
        assert_close(value, values.mean(0) if value.is_floating_point() else values[0])
    counting.calls = 0
    sampled(params, state, z, train=train)  # neither tries nor warns again
    assert counting.calls == calls


class Counting:
    def __init__(self, apply):
        self.apply, self.calls = apply, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.apply(*args, **kwargs)


def test_vmap_is_the_first_choice():
    net = fv.functional(lambda: Rectified(Z, D))
    params, state = net.init(KEY)
    z = fv.random.normal(KEY, (N, B, Z))
    sampled = over_samples(counting := Counting(net.apply))
    sampled(params, state, z, train=True)
    counting.calls = 0
    out, _ = sampled(params, state, z, train=True)
    assert torch.equal(out, torch.vmap(lambda z_n: net.apply(params, state, z_n, train=True)[0])(z))
    assert counting.calls == 1


def test_wrong_latents_do_not_decide():
    net = fv.functional(lambda: lstm(Z, D))
    params, state = net.init(KEY)
    sampled, z = over_samples(net.apply), fv.random.normal(KEY, (N, B, Z))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        sampled(params, state, z.double(), train=False)
    with pytest.warns(Unbatched):
        sampled(params, state, z, train=False)


# A model of two such networks


def model_of(factory):
    model = fv.vae(encoder=lambda: factory(D, 2 * Z), decoder=lambda: factory(Z, D), latent=Z)
    return model, *model.init(KEY)


def both(pair, f):
    """The results of f(model, params, state) for a model that vmap cannot batch, and for its twin."""
    with pytest.warns(Unbatched):
        first = f(*model_of(pair[0]))
    return first, f(*model_of(pair[1]))


def gradient(spec):
    def f(model, params, state):
        eps = fv.noise.iid(KEY, N, (len(X), Z), dtype=torch.float64)
        return parse(spec)(model, double(params), state, X.double(), eps, train=True)

    return f


@by_twins
@pytest.mark.parametrize("spec", ["elbo", "iwae", "dreg", "piwae:2"])
def test_estimates_equal_those_of_the_twin(pair, spec):
    assert_close(*both(pair, gradient(spec)))
    assert_close(*both(pair, torch.no_grad()(gradient(spec))))


@by_twins
def test_a_surrogate_and_estimators_together_equal_those_of_the_twin(pair):
    def f(model, params, state):
        params = tree.map(lambda p: p.double().requires_grad_(), params)
        eps = fv.noise.iid(KEY, N, (len(X), Z), dtype=torch.float64)
        fv.surrogate(parse("iwae"))(model, params, state, X.double(), eps, train=True).backward()
        arms = [parse(spec) for spec in ("iwae", "dreg", "elbo")]
        shared = fv.estimators.together(arms, model, double(params), state, X.double(), eps, train=True)
        return [p.grad for p in tree.leaves(params)], [out.grads for out in shared]

    assert_close(*both(pair, f))


def trained(**settings):
    def f(model, params, state):
        opt = fv.optim.adam(0.01)
        ts, history = fit(init(model, opt, KEY), model, parse("iwae"), opt, X, test=X, batch=4, samples=N, **settings)
        return ts.params, torch.tensor(history.test_bound)

    return f


SETTINGS = [{}, {"chunk": 2}, {"shards": 2}, {"shards": 2, "split": fv.distributed.by_samples}]


@by_twins
@pytest.mark.parametrize("settings", SETTINGS, ids=["whole", "chunks", "by_rows", "by_samples"])
def test_training_equals_that_of_the_twin(pair, settings):
    assert_close(*both(pair, trained(compile=False, **settings)), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::funcvae.compilation.Uncompiled")
@by_twins
def test_compiled_training_equals_that_of_the_twin(pair):
    assert_close(*both(pair, trained(compile=True)), tolerance=1e-5)


@pytest.mark.slow
def test_what_the_compiler_cannot_compile_is_said_once():
    model, params, state = model_of(lstm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(compile=True)(model, params, state)
    said = [str(each.message) for each in caught if isinstance(each.message, compilation.Uncompiled)]
    assert len(said) == 1
    assert "LSTM" in said[0]


MEASURES = {
    "moments": lambda *args: fv.variance.moments(parse("iwae"), *args, KEY, samples=2, replicates=20, train=True).mean,
    "compare": lambda *args: [
        tuple(row.groups["all"].variance)[:2]
        for row in fv.variance.compare(
            {"a": parse("iwae"), "b": parse("dreg")}, *args, KEY, samples=2, replicates=20, chunk=8, timings=0
        ).rows.values()
    ],
    "sources": lambda *args: fv.variance.sources(
        parse("iwae"), *args, KEY, batch=4, samples=2, batches=4, replicates=3
    ).groups["all"].noise.value,
    "exact": lambda model, params, state, x: fv.variance.exact(
        parse("iwae"), model, params, state, x[:1], samples=1, nodes=3, tolerance=10.0
    ).covariance,
    "log_likelihood": lambda *args: fv.evaluate.log_weights(*args, KEY, samples=30, chunk=10),
}  # fmt: skip


@by_twins
@pytest.mark.parametrize("measure", MEASURES)
def test_measures_equal_those_of_the_twin(pair, measure):
    def f(model, params, state):
        found = MEASURES[measure](model, double(params), state, X.double())
        return tree.map(lambda value: torch.as_tensor(value, dtype=torch.float64), found)

    assert_close(*both(pair, f), tolerance=1e-8)


@by_twins
def test_the_lab_takes_the_encoder_alone(pair):
    """oneDNN's LSTM works in training, but not under `vmap`."""

    def f(factory):
        model = fv.vae(encoder=lambda: factory(D, 2 * Z), decoder=lambda: nn.Linear(Z, D), latent=Z)
        found = fv.variance.moments(parse("iwae"), model, *model.init(KEY), X, KEY, samples=2, replicates=20)
        return found.mean, found.variance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unbatched)  # vmap can batch an encoder with a mask
        first = f(pair[0])
    assert_close(first, f(pair[1]), tolerance=1e-5)
