"""What the claims require of the posterior is refused where a call comes in."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.estimators import parse
from tests.support import discrete
from tests.support.oracles import double
from tests.support.specs import DISCRETE, allowing, every_continuous

Z = 2


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


def bernoulli_model(posterior=BernoulliQ):
    model, params, state = discrete.bernoulli_model(Z)

    def encode(params, state, x, train=False):
        q, state = model.encode(params, state, x, train)
        return posterior(q.logits), state

    return model._replace(encode=encode), params, state


@every_continuous
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


@pytest.mark.parametrize("use", [call, together, surrogate, fit, moments])
@pytest.mark.parametrize("spec", allowing("discrete"))
def test_a_posterior_that_does_not_list_its_values_is_refused_by_estimators_for_discrete_posteriors(spec, use):
    use(parse(spec), *discrete.bernoulli_model(Z))
    with pytest.raises(BadValue, match=rf"{spec} requires a posterior that lists its values\(\), .* use rloo or score"):
        use(parse(spec), *bernoulli_model())


@pytest.mark.parametrize("use", [fit, moments])
def test_samples_are_not_compared_for_estimators_that_allow_any_posterior(use, monkeypatch):
    def refused(q):
        raise AssertionError

    monkeypatch.setattr("funcvae.train.task.is_reparameterised", refused)
    monkeypatch.setattr("funcvae.variance.problem.is_reparameterised", refused)
    use(parse("vimco"), *bernoulli_model())


def test_the_estimators_that_the_refusal_names_allow_a_bernoulli_posterior():
    for spec in ("rloo", "disarm", "score", "vimco", "ovis:0", "rws", "tvo:0:0.5:1"):
        assert spec in DISCRETE


def test_quadrature_is_refused_for_samples_with_steps():
    with pytest.raises(BadValue, match=r"BernoulliQ posterior are not reparameterised: .* use moments"):
        fv.variance.exact(parse("rloo"), *bernoulli_model(), discrete.X, samples=2, nodes=8)


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
