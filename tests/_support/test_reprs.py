"""Short reprs."""

import inspect
from types import ModuleType

import pytest
import torch
from torch import nn

import funcvae as fv
from tests.support.oracles import tiny

KEY = fv.random.key(0)
X = torch.zeros(64, 784)


def model(width=64):
    return fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(784, width), nn.Tanh(), nn.Linear(width, 4)),
        decoder=lambda: nn.Linear(2, 784),
        latent=2,
        likelihood=fv.heads.bernoulli,
    )


def trained():
    vae, opt = model(), fv.optim.adam(1e-3)
    return vae, opt, fv.train.init(vae, opt, KEY)


def test_a_value_that_remembers_its_call_is_shown_as_that_call():
    assert repr(fv.optim.adam(1e-3)) == "adam(0.001)"
    assert repr(fv.estimators.vr_iwae_dreg(0.5)) == "vr_iwae_dreg(0.5)"
    assert repr(model()) == "vae(encoder=<lambda>, decoder=<lambda>, latent=2, likelihood=bernoulli)"
    scheduled = fv.optim.chain(fv.optim.clip_by_global_norm(1.0), fv.optim.adam(fv.optim.linear(0.0, 1.0, 10)))
    assert repr(scheduled) == "chain(clip_by_global_norm(1), adam(linear(0, 1, 10)))"


def test_a_changed_value_is_shown_by_its_fields():
    changed = fv.optim.adam(1e-3)._replace(update_=None)
    assert repr(changed) == "Optimizer(init=init, update=update)"


def test_trees_are_shown_by_their_number_of_numbers():
    shown = repr(trained()[2])
    assert "params={encoder: 50,500 numbers, decoder: 2,352 numbers}" in shown
    assert "step=0" in shown


def test_tensors_are_shown_by_dtype_and_shape():
    normal = fv.distributions.Normal(torch.zeros(64, 2), torch.ones(3))
    assert repr(normal) == "Normal(loc=float32 [64, 2], sigma=[1, 1, 1])"
    series = fv.distributions.Bernoulli(torch.arange(10.0, dtype=torch.float64))
    assert repr(series) == "Bernoulli(logits=float64 [10]: 0 … 9)"
    assert repr(fv.distributions.Bernoulli(torch.zeros(3, device="meta"))) == "Bernoulli(logits=float32 [3])"


def test_a_repr_under_vmap_has_no_values():
    seen = []

    def look(x):
        seen.append(repr(fv.distributions.Bernoulli(x)))
        return x

    torch.vmap(look)(torch.zeros(2, 3))
    assert seen == ["Bernoulli(logits=float32 [3])"]


def test_fields_with_their_default_are_left_out():
    assert repr(fv.train.StepSettings()) == "StepSettings()"
    assert repr(fv.train.StepSettings(batch=20, noise=fv.noise.mirrored)) == "StepSettings(batch=20, noise=mirrored)"


def test_a_named_tuple_stays_a_tuple():
    normal = fv.distributions.Normal(torch.zeros(2), torch.ones(2))
    loc, sigma = normal
    assert normal == (loc, sigma)
    assert isinstance(normal, tuple)


@pytest.fixture(scope="module")
def values():
    vae, opt, ts = trained()
    params, state = ts.params, ts.state
    x, noise = X[:8], fv.noise.iid(KEY, 3, (8, 2))
    arms = {"iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}
    ts, history = fv.train.fit(ts, vae, arms["dreg"], opt, X, test=X, batch=16, epochs=2, compile=False)
    found = fv.variance.compare(arms, vae, params, state, x, KEY, samples=2, replicates=40, timings=0)
    moments = fv.variance.moments(arms["dreg"], vae, params, state, x, KEY, samples=2, replicates=40)
    run = fv.runs.initial_run("gaussian2d_vae")
    return [
        vae, *arms.values(), arms["dreg"](vae, params, state, x, noise, train=False), ts, history, run, run.config,
        run.config.system, run.recipe, run.dataset(), fv.Trained(vae, params, state), found, found.row("dreg"), moments,
        fv.variance.sweep(lambda k, key: {"snr": found.row("dreg").groups["encoder"].snr}, (1, 4), KEY),
        fv.variance.sources(arms["dreg"], vae, params, state, X, KEY, samples=1, batch=4, batches=40),
        fv.variance.exact(arms["dreg"], *tiny(), samples=1, tolerance=1), fv.train.keep_best(), fv.train.interrupt(),
        fv.evaluate.likelihood(torch.zeros(100, 64)), fv.train.Callbacks(), vae.encode(params, state, x)[0],
    ]  # fmt: skip


def test_reprs_are_short(values):
    for value in values:
        shown = repr(value)
        assert len(shown) < 800, shown
        assert " at 0x" not in shown
        assert max(map(len, shown.splitlines())) <= 120


def test_tables_fit_a_terminal(values):
    tables = [value for value in values if hasattr(value, "table")]
    assert [type(value).__name__ for value in tables] == ["Comparison", "Sweep", "Sources", "Exact"]
    for value in tables:
        assert max(map(len, str(value).splitlines())) <= 80
        assert "<table>" in value._repr_html_()


def test_help_shows_functions_and_types_by_name():
    modules = [of for name in fv.__all__ if isinstance(of := getattr(fv, name), ModuleType)]
    functions = [of for module in modules for name in module.__all__ if inspect.isfunction(of := getattr(module, name))]
    shown = {function.__qualname__: str(inspect.signature(function)) for function in functions}
    assert [name for name, text in shown.items() if " at 0x" in text] == []
    assert "samples: int, replicates: int = 1000, chunk: int | None = None" in shown["compare"]
    assert "= <function as_is>" in shown["fit"]
    assert inspect.signature(fv.train.fit).parameters["scale"].default(7) == 1.0, "a default is still a function"
