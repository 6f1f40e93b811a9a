"""Models, estimators, optimizers, heads and recipes pickle and copy; what comes back computes the same bits."""

import copy
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae.errors import BadType
from funcvae.models import SYSTEMS
from funcvae.models.burda import burda_schedule
from tests.support.models import same_bits

KEY = fv.random.key(0)
X = fv.random.uniform(fv.random.key(1), (3, 4))


def encoder():
    return nn.Linear(4, 4)


def half_encoder():
    return nn.Linear(4, 2)


def decoder(inputs=2):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 4))


def weights(log_w):
    v = log_w.softmax(0)
    return fv.Weights(path=v**2, score=torch.zeros_like(v), theta=v)


def small(**changed):
    return fv.vae(**{"encoder": encoder, "decoder": decoder, "latent": 2} | changed)


CLAIMS = fv.Claims("L_K", True, True, ())
ESTIMATORS = {name: fv.estimators.parse(spec) for name, spec in fv.estimators.EXAMPLES.items()} | {
    "in chunks": fv.estimators.in_chunks(fv.estimators.dreg(), 2),
    "in chunks of weighted": fv.estimators.in_chunks(
        fv.estimators.weighted(weights, bound=fv.bounds.renyi(0.5), claims=CLAIMS, name="mine"), 3
    ),
}
MODELS = {
    "gaussian2d_vae": fv.models.gaussian2d_vae,
    "burda_vae": partial(fv.models.burda_vae, 3, mean=torch.linspace(0, 1, 784)),
    "burda2_vae": partial(fv.models.burda2_vae, 3, 2),
    "sbn_vae": partial(fv.models.sbn_vae, 3, (4,), torch.linspace(0, 1, 784)),
    "mnist_ae": fv.models.mnist_ae,
    "mnist_vae": fv.models.mnist_vae,
    "mnist_bn_vae": partial(fv.models.mnist_bn_vae, alpha=784),
    "mnist_sigma_vae": partial(fv.models.mnist_sigma_vae, 5, activation=nn.Tanh),
    "linear_vae": partial(fv.models.linear_vae, 4, 2, sigma2=0.5),
    "mixture": partial(small, likelihood=fv.heads.normal_fixed(0.1), prior=fv.priors.mixture(3, 2)),
    "learned_bernoulli": partial(
        small, encoder=half_encoder, posterior=fv.heads.bernoulli, prior=fv.priors.learned_bernoulli(2)
    ),
    "categorical": partial(
        small, encoder=half_encoder, posterior=fv.heads.categorical(2), prior=fv.priors.learned_categorical(2, 1)
    ),
    "concrete": partial(
        small, encoder=half_encoder, posterior=fv.heads.concrete(0.5, 2), prior=fv.priors.concrete(0.7, 2)
    ),
    "top-level functions": partial(small, decoder=partial(decoder, 2), likelihood=fv.heads.normal_fixed(0.1)),
}


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_same_bits(copied, name):
    model = MODELS[name]()
    again = copied(model)
    params, state = model.init(KEY)
    assert same_bits((params, state), again.init(KEY))
    z = fv.random.normal(KEY, (2, 3, model.latent))
    assert same_bits(model.decode(params, state, z)[0], again.decode(params, state, z)[0])
    assert same_bits(model.prior(params, state, z)[0], again.prior(params, state, z)[0])
    assert again.latent == model.latent
    with pytest.raises(fv.errors.FuncvaeError, match="params lacks"):
        again.decode({}, state, z)


def test_arguments_are_part_of_a_pickle():
    wide = pickled(fv.models.gaussian2d_vae(hidden=9))
    assert wide.init(KEY)[0]["encoder"]["shared.0.weight"].shape == (9, 2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_has_the_same_bits(name):
    estimator, model = ESTIMATORS[name], small(likelihood=fv.heads.normal_fixed(1.0))
    if estimator.claims.posterior == "discrete":
        model = MODELS["learned_bernoulli"]()
    again = pickled(estimator)
    eps = fv.noise.iid(KEY, 4, (3, 2))
    params, state = model.init(KEY)
    assert same_bits(*(each(model, params, state, X, eps, train=True) for each in (estimator, again)))
    assert same_bits(*(each.bound(model, params, state, X, eps) for each in (estimator, again)))
    assert (again.name, again.claims) == (estimator.name, estimator.claims)


@pytest.mark.parametrize(
    "opt",
    [
        fv.optim.adam(0.1, betas=(0.5, 0.9)),
        fv.optim.adam(burda_schedule(3)),
        fv.optim.chain(fv.optim.clip_by_global_norm(0.1), fv.optim.adamw(fv.optim.cosine(0.1, 5), mask=str.isalpha)),
        fv.optim.chain(fv.optim.add_decayed_weights(0.1), fv.optim.sgd(fv.optim.repeat(fv.optim.constant(0.1), 2))),
        fv.optim.from_torch(torch.optim.RMSprop, fv.optim.warmup_cosine(0.1, 2, 5), momentum=0.9),
    ],
)
def test_an_optimizer_has_the_same_bits(opt):
    params, grads = {"w": X}, {"w": X - 0.5}
    for again in (pickled(opt), copy.deepcopy(opt)):
        assert same_bits(*(each.update(grads, each.init(params), params) for each in (opt, again)))


def test_a_network_has_the_same_bits():
    net = fv.functional(encoder)
    assert same_bits(net.init(KEY), pickled(net).init(KEY))


@pytest.mark.parametrize("scheme", [*fv.noise.TABLE.values(), partial(fv.noise.sobol, dtype=torch.float64)])
def test_a_noise_scheme_has_the_same_bits(scheme):
    assert same_bits(scheme(KEY, 4, (3, 2)), pickled(scheme)(KEY, 4, (3, 2)))
    assert fv.noise.is_independent(pickled(scheme)) == fv.noise.is_independent(scheme)


def test_heads_have_the_same_bits():
    for head in (fv.heads.normal_fixed(0.3), fv.heads.normal_logvar, fv.heads.categorical(2), fv.heads.concrete(0.5)):
        assert same_bits(head(X), pickled(head)(X))


def test_systems_pickle_by_name():
    for system in SYSTEMS.values():
        assert pickled(system) is system
        assert copy.deepcopy(system) is system
    own = fv.System("mine", "of small vectors", small, fv.models.Recipe((4,), 1))
    assert pickled(own) == own


def test_a_trained_model_pickles_with_its_parameters():
    model = small()
    trained = fv.Trained(model, *model.init(KEY))
    q, _ = model.encode(*trained[1:], X)
    again = pickled(trained)
    assert same_bits(q, again.model.encode(*again[1:], X)[0])


def test_a_step_of_an_unpickled_model_and_the_lab():
    parts = small(likelihood=fv.heads.normal_fixed(1.0)), fv.estimators.iwae(), fv.optim.adam()
    rows = []
    for model, estimator, opt in (parts, pickled(parts)):
        ts = fv.train.init(model, opt, KEY)
        ts, _ = fv.train.fit(ts, model, estimator, opt, X, samples=2, compile=False)
        found = fv.variance.compare({"iwae": estimator}, model, ts.params, ts.state, X, KEY, samples=2, replicates=4)
        rows.append((ts.params, found.rows["iwae"].groups["encoder"].variance.value))
    assert same_bits(rows[0][0], rows[1][0])
    assert rows[0][1] == rows[1][1]


def class_in_a_function():
    class Decoder(nn.Linear):
        def __init__(self):
            super().__init__(2, 4)

    return Decoder


LAMBDAS = {
    "a model": lambda: small(decoder=lambda: decoder()),
    "a class in a function": lambda: small(decoder=class_in_a_function()),
    "an estimator": lambda: fv.estimators.weighted(lambda log_w: weights(log_w), bound=fv.bounds.iwae, claims=CLAIMS),
    "an optimizer": lambda: fv.optim.adam(lambda step: 0.1),
    "a chain": lambda: fv.estimators.in_chunks(
        fv.estimators.weighted(lambda log_w: weights(log_w), bound=fv.bounds.iwae, claims=CLAIMS), 2
    ),
}


@pytest.mark.parametrize("name", LAMBDAS)
def test_an_error_says_how_to_replace_a_lambda(monkeypatch, name):
    for module in [module for module in sys.modules if module.endswith("cloudpickle")]:
        monkeypatch.delitem(sys.modules, module)
    value = LAMBDAS[name]()
    with pytest.raises(
        BadType, match=r"(<lambda>|Decoder) cannot be pickled: define it by def or class at the top level"
    ):
        pickle.dumps(value)
    assert type(copy.deepcopy(value)) is type(value)


@pytest.mark.parametrize("name", LAMBDAS)
def test_cloudpickle_takes_lambdas(name):
    cloudpickle = pytest.importorskip("cloudpickle")
    value = LAMBDAS[name]()
    assert type(pickle.loads(cloudpickle.dumps(value))) is type(value)


def test_a_changed_value_is_not_pickled_as_the_original():
    model = small()
    for changed in (model._replace(prior=print), model.unchecked()):
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"vae\.<locals>"):
            pickle.dumps(changed)
        assert copy.deepcopy(changed) == changed
    opt = fv.optim.Optimizer(dict, max)
    assert pickled(opt) == opt  # the user's own, of functions with names


@pytest.mark.slow  # starts Python
def test_another_process_computes_the_same_bits(tmp_path):
    value = fv.models.mnist_bn_vae(3), fv.estimators.tvo((0, 0.5, 1)), fv.optim.adam(burda_schedule(2))
    (tmp_path / "value").write_bytes(pickle.dumps(value))
    code = (
        "import sys, pickle, funcvae as fv; model, *_ = pickle.load(open(sys.argv[1], 'rb')); "
        "print(fv.tree.sha256({'': model.init(fv.random.key(0))}))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "value"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fv.tree.sha256({"": value[0].init(KEY)})
