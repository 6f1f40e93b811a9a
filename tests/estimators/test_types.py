"""What the claims require of the posterior: by enumeration, and refused where a call comes in."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadValue
from funcvae.estimators import parse
from tests.support.oracles import double
from tests.support.specs import SPECS

Z, K, X = 2, 2, torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


class BernoulliQ(NamedTuple):
    """A Bernoulli posterior that does not say whether it is reparameterised."""

    loc: Tensor

    @property
    def mean(self):
        return self.loc.sigmoid()

    def log_prob(self, z):
        return z * self.loc - nn.functional.softplus(self.loc)

    def sample(self, eps):
        return (torch.special.ndtr(eps) < self.mean).to(self.loc.dtype)


class SaysSo(BernoulliQ):
    """A Bernoulli posterior that says that it is not reparameterised."""

    reparameterised = False


class Prior(nn.Module):
    """Bernoullis with learned logits."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-0.5, 0.4, Z))

    def forward(self, z):
        return fv.distributions.Bernoulli(self.a)


def bernoulli_model(posterior=BernoulliQ):
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, Z)),
        decoder=lambda: nn.Sequential(nn.Linear(Z, 5), nn.Tanh(), nn.Linear(5, 4)),
        latent=Z, posterior=posterior, prior=Prior,
    )  # fmt: skip
    params, state = model.init(fv.random.key(4))
    return model, tree.map(lambda t: 2.5 * t.double(), params), state


def flat(grads):
    return {name: torch.cat([t.flatten() for t in tree.leaves(part)]) for name, part in grads.items()}


def exact_gradient(model, params, state, target):
    """The gradient to descend, of the ELBO or of E L_2, summed over all latents (or pairs of them)."""

    def loss(params):
        z = torch.tensor(list(itertools.product((0.0, 1.0), repeat=Z)), dtype=torch.float64)[:, None]  # [2^Z, 1, Z]
        q, _ = model.encode(params, state, X)
        log_q = q.log_prob(z).sum((1, 2))
        p_x, p_z = model.decode(params, state, z)[0], model.prior(params, state, z)[0]
        f = p_x.log_prob(X).sum((1, 2)) + p_z.log_prob(z).sum((1, 2)) - log_q
        if target == "ELBO":
            return -(log_q.exp() * f).sum()
        pairs = torch.tensor(list(itertools.product(range(len(z)), repeat=K)))
        return -(log_q[pairs].sum(1).exp() * (f[pairs].logsumexp(1) - math.log(K))).sum()

    return flat(torch.func.grad(loss)(params))


def expected_gradient(estimator, model, params, state):
    """The expectation of the estimator over all outcomes of K samples."""
    z = torch.tensor(list(itertools.product((0.0, 1.0), repeat=K * Z)), dtype=torch.float64).reshape(-1, K, 1, Z)
    q, _ = model.encode(params, state, X)
    p = q.log_prob(z).sum((1, 2, 3)).exp()
    eps = torch.where(z > 0, -8.0, 8.0).double()  # Φ(eps) is below or above every mean
    grads = [flat(estimator.estimate(model.unchecked(), params, state, X, e, False).grads) for e in eps]
    return {name: sum(w * g[name] for w, g in zip(p, grads, strict=True)) for name in grads[0]}


def off(estimator, target):
    """The largest error of the expected gradient for each network."""
    model, params, state = bernoulli_model()
    found, true = expected_gradient(estimator, model, params, state), exact_gradient(model, params, state, target)
    return {name: float((found[name] - true[name]).abs().max()) for name in true}


@pytest.mark.parametrize("spec", [s for s in SPECS if parse(s).claims.posterior == "any" and not s.startswith("tvo")])
def test_estimators_for_any_posterior_keep_their_claims_for_bernoulli_latents(spec):
    estimator = parse(spec)
    error = off(estimator, estimator.claims.target)
    assert max(error["decoder"], error["prior"]) < 1e-12
    assert (error["encoder"] < 1e-12) == estimator.claims.unbiased_encoder


@pytest.mark.parametrize("spec", ["iwae", "dreg", "stl", "elbo_mc"])
def test_estimators_with_a_path_are_wrong_for_bernoulli_latents(spec):
    estimator = parse(spec)
    assert estimator.claims.posterior == "reparameterised"
    assert off(estimator, estimator.claims.target)["encoder"] > 0.05


@pytest.mark.parametrize("spec", SPECS)
def test_an_estimator_allows_any_posterior_if_it_has_no_path(spec):
    estimator = parse(spec)
    log_w = fv.random.normal(fv.random.key(1), (4, 3))
    has_path = estimator.weights is None or bool(estimator.weights(log_w).path.any())
    assert estimator.claims.posterior == ("reparameterised" if has_path else "any")


def data(n=8):
    return fv.random.bernoulli(fv.random.key(5), 0.4, (n, 4)).double()


def fit(estimator, model, params, state):
    ts = fv.train.init(model, fv.optim.adam(), fv.random.key(0))
    ts = ts._replace(params=double(ts.params), opt_state=fv.optim.adam().init(double(ts.params)))
    fv.train.fit(ts, model, estimator, fv.optim.adam(), data(), batch=4, samples=2, epochs=1, compile=False)


def moments(estimator, *trained):
    fv.variance.moments(estimator, *trained, data(2), fv.random.key(1), samples=2, replicates=4)


def compare(estimator, *trained):
    arms = {"a": fv.estimators.vimco(), "b": estimator}
    fv.variance.compare(arms, *trained, data(2), fv.random.key(1), samples=2, replicates=4, timings=0)


def sources(estimator, *trained):
    fv.variance.sources(estimator, *trained, data(), fv.random.key(1), batch=2, samples=2, batches=2, replicates=2)


def call(estimator, *trained):
    estimator(*trained, data(2), noise(), train=False)


def together(estimator, *trained):
    fv.estimators.together([fv.estimators.rloo(), estimator], *trained, data(2), noise(), train=False)


def surrogate(estimator, *trained):
    fv.surrogate(estimator)(*trained, data(2), noise(), train=False)


def noise():
    return fv.noise.iid(fv.random.key(7), 2, (2, Z), dtype=torch.float64)


@pytest.mark.parametrize("use", [fit, moments, compare, sources])
def test_training_and_the_lab_refuse_samples_without_derivatives(use):
    use(parse("rloo"), *bernoulli_model())
    with pytest.raises(BadValue, match=r"iwae requires .* BernoulliQ .* use rloo or score for the ELBO, vimco or ovis"):
        use(parse("iwae"), *bernoulli_model())


@pytest.mark.parametrize("use", [call, together, surrogate, fit, moments])
def test_a_posterior_that_says_that_it_is_not_reparameterised_is_refused_everywhere(use):
    use(parse("vimco"), *bernoulli_model(SaysSo))
    with pytest.raises(BadValue, match="dreg requires a posterior with reparameterised samples"):
        use(parse("dreg"), *bernoulli_model(SaysSo))


@pytest.mark.parametrize("use", [fit, moments])
def test_samples_are_not_compared_for_estimators_that_allow_any_posterior(use, monkeypatch):
    def refused(q):
        raise AssertionError

    monkeypatch.setattr("funcvae.train.task.is_reparameterised", refused)
    monkeypatch.setattr("funcvae.variance.problem.is_reparameterised", refused)
    use(parse("vimco"), *bernoulli_model())


def test_the_estimators_that_the_refusal_names_allow_any_posterior():
    for spec in ("rloo", "score", "vimco", "ovis:0", "rws", "tvo:0:0.5:1"):
        assert parse(spec).claims.posterior == "any"


def test_quadrature_is_refused_for_samples_with_steps():
    with pytest.raises(BadValue, match=r"BernoulliQ posterior are not reparameterised: .* use moments"):
        fv.variance.exact(parse("rloo"), *bernoulli_model(), X, samples=2, nodes=8)


def test_a_users_own_estimator_may_allow_any_posterior():
    def weights(log_w):
        v = log_w.softmax(0)
        return fv.Weights(path=torch.zeros_like(v), score=v, theta=v)

    claims = fv.Claims("L_K", False, True, ())
    for posterior, allowed in {"any": True, "reparameterised": False}.items():
        mine = fv.estimators.weighted(weights, bound=fv.bounds.iwae, claims=claims._replace(posterior=posterior))
        if allowed:
            moments(mine, *bernoulli_model())
        else:
            with pytest.raises(BadValue, match="weights requires"):
                moments(mine, *bernoulli_model())
