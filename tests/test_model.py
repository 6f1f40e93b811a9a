"""VAEs: shapes, the sample axis against a loop, state, and sums of log-densities."""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import funcvae as fv
from funcvae import heads, priors, random, tree
from funcvae.distributions import Bernoulli, Delta, Normal
from funcvae.errors import BadData, BadType, BadValue
from funcvae.model import as_floats, as_is, check_data, log_p_x_given_z, log_prob, vae
from tests.support.models import same_bits

KEY = random.key(0)
N, B, Z, D = 3, 5, 2, 6


def encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2 * Z))


def decoder():
    return nn.Sequential(nn.Linear(Z, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, D), nn.Unflatten(-1, (1, 2, 3)))


class LearnedPrior(nn.Module):
    """N(loc, sigma²) with learned loc and sigma."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(Z))
        self.log_sigma = nn.Parameter(torch.zeros(Z))

    def forward(self, z):
        return Normal(self.loc.expand_as(z), self.log_sigma.exp().expand_as(z))


def make(**other):
    model = vae(**{"encoder": encoder, "decoder": decoder, "latent": Z, **other})
    params, state = model.init(KEY)
    x = random.uniform(random.key(1), (B, 1, 2, 3))
    z = 2 * random.normal(random.key(2), (N, B, Z)) + 1
    return model, params, state, x, z


def assert_trees_close(a, b, tolerance=1e-6):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


by_train = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])


# The networks


def test_params_and_state_have_a_branch_for_each_network():
    _, params, state, _, _ = make()
    assert list(params) == list(state) == ["encoder", "decoder", "prior"]
    assert list(params["decoder"]) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert list(state["decoder"]) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert params["prior"] == state["prior"] == {}


def test_init_uses_a_different_key_for_each_network():
    model = vae(encoder=lambda: nn.Linear(4, 4), decoder=lambda: nn.Linear(4, 4), latent=2)
    params, _ = model.init(KEY)
    assert not torch.equal(params["encoder"]["weight"], params["decoder"]["weight"])
    assert_trees_close(model.init(KEY)[0], params, tolerance=0)
    assert not torch.equal(model.init(random.key(1))[0]["encoder"]["weight"], params["encoder"]["weight"])


@by_train
def test_shapes_of_encode_decode_and_prior(train):
    model, params, state, x, z = make()
    q, new = model.encode(params, state, x, train=train)
    assert q.loc.shape == q.sigma.shape == (B, Z)
    assert tree.structure(new) == tree.structure(state)
    for leading, latents in (((N, B), z), ((1, B), z[:1]), ((B,), z[0])):
        p, new = model.decode(params, state, latents, train=train)
        assert p.logits.shape == (*leading, 1, 2, 3)
        assert tree.structure(new) == tree.structure(state)
        prior, _ = model.prior(params, state, latents, train=train)
        assert prior.log_prob(latents).shape == latents.shape


def test_the_standard_prior_is_standard_normal():
    model, params, state, _, z = make()
    p, _ = model.prior(params, state, z, train=False)
    assert (p.loc, p.sigma) == (0, 1)
    assert_trees_close(log_prob(p, z), -0.5 * (z**2).sum(-1) - Z / 2 * math.log(2 * math.pi))


@by_train
@pytest.mark.parametrize("n", [1, N])
def test_decoding_samples_equals_a_loop_over_them(n, train):
    model, params, state, _, z = make()
    p, new = model.decode(params, state, z[:n], train=train)
    loop = [model.decode(params, state, z_n, train=train) for z_n in z[:n]]
    assert_trees_close(p.logits, torch.stack([p.logits for p, _ in loop]))
    for name, v in new["decoder"].items():
        values = torch.stack([new["decoder"][name] for _, new in loop])
        want = values.mean(0) if v.is_floating_point() else values[0]
        torch.testing.assert_close(v, want)
        assert v.dtype == state["decoder"][name].dtype
    assert new["decoder"]["1.num_batches_tracked"] == (1 if train else 0)


def test_in_training_the_batch_of_each_sample_is_normalised_separately():
    model, params, state, _, z = make()
    apart, _ = model.decode(params, state, z, train=True)
    together, _ = model.decode(params, state, z.flatten(0, 1), train=True)
    assert (apart.logits.flatten(0, 1) - together.logits).abs().max() > 1e-3


def test_each_call_changes_the_state_of_one_network_and_does_not_modify_its_arguments():
    model, params, state, x, z = make()
    before = tree.map(torch.clone, (params, state, x, z))
    _, encoded = model.encode(params, state, x, train=True)
    _, decoded = model.decode(params, state, z, train=True)
    assert_trees_close((params, state, x, z), before, tolerance=0)
    assert_trees_close(encoded["decoder"], state["decoder"], tolerance=0)
    assert_trees_close(decoded["encoder"], state["encoder"], tolerance=0)
    assert not torch.equal(encoded["encoder"]["2.running_mean"], state["encoder"]["2.running_mean"])
    assert not torch.equal(decoded["decoder"]["1.running_mean"], state["decoder"]["1.running_mean"])


def test_evaluation_mode_is_the_default():
    model, params, state, x, z = make()
    for call, argument in ((model.encode, x), (model.decode, z), (model.prior, z)):
        assert_trees_close(call(params, state, argument), call(params, state, argument, train=False), tolerance=0)
        assert_trees_close(call(params, state, argument)[1], state, tolerance=0)


def test_a_learned_prior_has_parameters_and_a_gradient():
    model, params, state, _, z = make(prior=LearnedPrior)
    assert list(params["prior"]) == ["loc", "log_sigma"]
    grads = torch.func.grad(lambda params: log_prob(model.prior(params, state, z)[0], z).sum())(params)
    loc = params["prior"]["loc"]
    assert_trees_close(grads["prior"]["loc"], (z - loc).sum((0, 1)), 1e-5)
    assert_trees_close(grads["prior"]["log_sigma"], ((z - loc) ** 2 - 1).sum((0, 1)), 1e-5)
    assert all(g.count_nonzero() == 0 for g in tree.leaves(grads["decoder"]))


def test_heads_choose_the_distributions_and_a_network_may_return_a_tuple():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_sigma = nn.Linear(D, Z), nn.Linear(D, Z)

        def forward(self, x):
            x = x.flatten(1)
            return self.loc(x), self.log_sigma(x)

    model, params, state, x, z = make(encoder=Pair, posterior=heads.normal_logsigma, likelihood=heads.normal_fixed(0.5))
    q, _ = model.encode(params, state, x)
    assert isinstance(q, Normal)
    assert q.sigma.shape == (B, Z)
    p, _ = model.decode(params, state, z)
    assert isinstance(p, Normal)
    assert (p.sigma == 0.5).all()
    assert log_p_x_given_z(p, x).shape == (N, B)


def test_a_decoder_may_return_a_tuple_over_samples():
    class Pair(nn.Module):
        def forward(self, z):
            return z, 2 * z

    model, params, state, _, z = make(decoder=Pair, likelihood=heads.normal_logvar)
    for latents in (z, z[:1], z[0]):
        p, _ = model.decode(params, state, latents)
        assert torch.equal(p.loc, latents)
        assert torch.equal(p.sigma, latents.exp())


def test_a_delta_posterior_makes_a_plain_autoencoder():
    model, params, state, x, _ = make(
        encoder=lambda: nn.Sequential(nn.Flatten(), nn.Linear(D, Z)), posterior=heads.delta
    )
    q, _ = model.encode(params, state, x)
    assert isinstance(q, Delta)
    assert q.sample(torch.randn(N, B, Z)).shape == (N, B, Z)


def test_float64_parameters_and_data_give_float64_results():
    model = vae(encoder=lambda: encoder().double(), decoder=lambda: decoder().double(), latent=Z)
    params, state = model.init(KEY)
    x = random.uniform(KEY, (B, 1, 2, 3), torch.float64)
    q, new = model.encode(params, state, x, train=True)
    p, newer = model.decode(params, new, q.sample(random.normal(KEY, (N, B, Z), torch.float64)), train=True)
    prior, _ = model.prior(params, newer, q.loc)
    floats = [t for t in tree.leaves((params, newer, q, p, prior, log_p_x_given_z(p, x))) if t.is_floating_point()]
    assert all(t.dtype == torch.float64 for t in floats)


# Densities


def test_log_likelihood_sums_over_the_axes_of_a_datum():
    p = Bernoulli(random.normal(KEY, (N, B, 1, 2, 3)))
    x = random.bernoulli(KEY, 0.5, (B, 1, 2, 3)).float()
    want = torch.stack([torch.stack([p.log_prob(x)[n, b].sum() for b in range(B)]) for n in range(N)])
    assert_trees_close(log_p_x_given_z(p, x), want, 1e-5)


@pytest.mark.parametrize("shape", [(B, 6), (B, 1, 2, 1), (B, 2, 3), (B,)])
def test_data_of_another_shape_than_the_decoder_output_is_an_error_and_not_broadcast(shape):
    with pytest.raises(BadValue, match=r"\[1, 2, 3\]"):
        log_p_x_given_z(Bernoulli(torch.zeros(N, B, 1, 2, 3)), torch.zeros(shape))


def test_a_batch_of_another_size_than_the_latents_is_an_error_and_not_broadcast():
    with pytest.raises((BadValue, RuntimeError)):
        log_p_x_given_z(Bernoulli(torch.zeros(N, 1, D)), torch.zeros(B, D))


def test_log_prob_sums_over_all_axes_after_the_first_two():
    t = torch.arange(24.0).reshape(2, 3, 4)
    p = Normal(torch.zeros(()), torch.ones(()))
    assert torch.equal(log_prob(p, t), p.log_prob(t).sum(2))
    assert torch.equal(log_prob(p, t[0]), p.log_prob(t[0]))  # nothing left to sum


# Errors


@pytest.mark.parametrize("latent", [0, -1])
def test_fewer_than_one_latent_dimension_is_an_error(latent):
    with pytest.raises(BadValue, match="latent"):
        vae(encoder=encoder, decoder=decoder, latent=latent)


@pytest.mark.parametrize("network", ["encoder", "decoder", "prior"])
def test_a_network_in_place_of_its_factory_is_an_error(network):
    with pytest.raises(BadType, match="factory"):
        make(**{network: nn.Linear(2, 2)})


def squared_error(reduce):
    """A likelihood head whose log_prob reduces the squared error."""

    class Squared(NamedTuple):
        mean: Tensor

        def log_prob(self, x):
            return reduce(-0.5 * (self.mean - x) ** 2)

        def sample(self, eps):
            return self.mean

    return Squared


def squared_vae(reduce):
    model = vae(
        encoder=lambda: nn.Linear(6, 4), decoder=lambda: nn.Linear(2, 6), latent=2, likelihood=squared_error(reduce)
    )
    return model, *model.init(KEY)


REDUCTIONS = {
    "one number": lambda e: e.mean(),
    "the mean over samples": lambda e: e.sum(-1).mean(0),
    "the sum over a batch": lambda e: e.sum((-1, -2)).unsqueeze(-1),
    "a kept axis": lambda e: e.sum(-1, keepdim=True),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_likelihood_that_reduces_too_much_is_an_error_and_not_broadcast(reduction):
    trained, x = squared_vae(REDUCTIONS[reduction]), random.normal(random.key(1), (4, 6))
    with pytest.raises(BadValue, match=r"log_prob of the Squared has shape .* it must be \[3, 4, 6\], or \[3, 4\]"):
        fv.estimators.iwae()(*trained, x, fv.noise.iid(random.key(7), 3, (4, 2)), train=True)
    with pytest.raises(BadData, match="log_prob of the Squared has shape"):
        fv.evaluate.log_likelihood(*trained, x, random.key(1), samples=20)


def test_a_likelihood_may_sum_over_a_datum_itself():
    x, eps = random.normal(random.key(1), (4, 6)), fv.noise.iid(random.key(7), 3, (4, 2))
    summed, elementwise = (
        fv.estimators.iwae()(*squared_vae(reduce), x, eps, train=True).bound
        for reduce in (lambda e: e.sum(-1), lambda e: e)
    )
    assert torch.equal(summed, elementwise)


def test_a_posterior_and_a_prior_that_reduce_too_much_are_errors():
    class Reduced(NamedTuple):
        loc: Tensor
        reparameterised = True

        def log_prob(self, z):
            return -0.5 * ((z - self.loc) ** 2).mean(0)

        def sample(self, eps):
            return self.loc + eps

    class Prior(nn.Module):
        def forward(self, z):
            return Reduced(z.new_zeros(2))

    x, eps = random.bernoulli(random.key(1), 0.5, (4, 6)).float(), fv.noise.iid(random.key(7), 3, (4, 2))
    for wrong in ({"posterior": Reduced, "encoder": lambda: nn.Linear(6, 2)}, {"prior": Prior}):
        model = vae(**{"encoder": lambda: nn.Linear(6, 4), "decoder": lambda: nn.Linear(2, 6), "latent": 2} | wrong)
        with pytest.raises(BadValue, match=r"log_prob of the Reduced has shape \[4, 2\]: it must be \[3, 4, 2\], or"):
            fv.estimators.iwae()(model, *model.init(KEY), x, eps, train=True)


class Shifted(nn.Module):
    """Subtracts one half from its input, in place or not, before a linear layer."""

    def __init__(self, inputs, outputs, in_place):
        super().__init__()
        self.linear, self.in_place = nn.Linear(inputs, outputs), in_place

    def forward(self, x):
        return self.linear(x.sub_(0.5) if self.in_place else x - 0.5)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_networks_that_change_their_input_in_place_give_the_numbers_of_those_that_do_not(compile):
    found, bounds = [], []
    for in_place in (False, True):
        model = vae(
            encoder=lambda here=in_place: Shifted(6, 4, here), latent=2,
            decoder=lambda here=in_place: Shifted(2, 6, here), likelihood=heads.normal_fixed(1.0),
        )  # fmt: skip
        data = random.uniform(random.key(0), (64, 6))
        kept = data.clone()
        ts = fv.train.init(model, fv.optim.adam(), KEY)
        ts, history = fv.train.fit(
            ts, model, fv.estimators.iwae(), fv.optim.adam(), data, test=data[:16], epochs=1, batch=32, samples=4,
            compile=compile,
        )  # fmt: skip
        log_w = fv.evaluate.log_weights(model, ts.params, ts.state, data, KEY, samples=5)
        moments = fv.variance.moments(
            fv.estimators.iwae(), model, ts.params, ts.state, data[:4], KEY, samples=2, replicates=4
        )
        assert torch.equal(data, kept)
        found.append((ts.params, log_w, moments.mean))
        bounds.append((float(history.bound[0]), float(history.test_bound[0])))
    assert same_bits(*found)
    assert bounds[0] == bounds[1]


class InPlace(NamedTuple):
    """A normal whose methods change their argument in place."""

    loc: Tensor

    @property
    def mean(self):
        return self.loc

    def log_prob(self, x):
        return -0.5 * (x.clamp_(0, 1) - self.loc) ** 2

    def sample(self, eps):
        return eps.add_(self.loc)


def centre(key, x):
    return x.sub_(0.5)


@pytest.mark.parametrize(
    ("how", "observe", "words"),
    [
        ({"posterior": lambda out: InPlace(out[:, :2])}, as_is, "sample of the posterior"),
        ({"likelihood": InPlace}, as_is, "log_prob of the likelihood"),
        ({}, centre, "observe"),
    ],
)
def test_distributions_and_observe_may_not_change_their_argument_in_place(how, observe, words):
    model = vae(encoder=lambda: nn.Linear(6, 4), decoder=lambda: nn.Linear(2, 6), latent=2, **how)
    data = random.uniform(random.key(0), (8, 6))
    kept = data.clone()
    ts = fv.train.init(model, fv.optim.adam(), KEY)
    with pytest.raises((BadValue, BadData), match=f"{words} changes its argument in place"):
        fv.train.fit(ts, model, fv.estimators.iwae(), fv.optim.adam(), data, epochs=1, batch=4, observe=observe)
    assert torch.equal(data, kept)


@pytest.mark.parametrize("how", [{"posterior": lambda out: InPlace(out[:, :2])}, {"likelihood": InPlace}])
@pytest.mark.parametrize(
    "call",
    [
        partial(fv.estimators.iwae(), train=True),
        partial(fv.estimators.in_chunks(fv.estimators.iwae(), 1), train=True),
        fv.estimators.iwae().bound,
    ],
    ids=["call", "in chunks", "bound"],
)
def test_an_estimator_refuses_distributions_that_change_its_arguments_in_place(how, call):
    model = vae(encoder=lambda: nn.Linear(6, 4), decoder=lambda: nn.Linear(2, 6), latent=2, **how)
    x, eps = 2 * random.uniform(random.key(0), (3, 6)), random.normal(random.key(1), (2, 3, 2))
    kept = x.clone(), eps.clone()
    with pytest.raises(BadValue, match="a distribution of the model changes its argument in place"):
        call(model, *model.init(KEY), x, eps)
    assert same_bits((x, eps), kept)


def test_a_model_is_checked_in_inference_mode_too():
    model = vae(encoder=lambda: nn.Linear(6, 4), decoder=lambda: nn.Linear(2, 6), latent=2)
    with torch.inference_mode():
        check_data(model, *model.init(KEY), random.bernoulli(KEY, 0.4, (8, 6)).float())


def with_prior(posterior, prior):
    return vae(
        encoder=lambda: nn.Linear(6, 12 if posterior is heads.normal_logvar else 6),
        decoder=lambda: nn.Linear(6, 6),
        posterior=posterior,
        prior=prior,
        latent=6,
    )


@pytest.mark.parametrize(
    ("posterior", "prior", "message"),
    [
        (heads.bernoulli, priors.standard_normal, "Bernoulli and the prior a Normal.*: use priors.bernoulli or"),
        (
            heads.categorical(3),
            priors.categorical(2),
            "Categorical and the prior a Categorical.*: use priors.categ",
        ),
        (heads.categorical(2), priors.bernoulli, "Categorical and the prior a Bernoulli.* with as many classes"),
        (heads.concrete(0.5), priors.bernoulli, "RelaxedBernoulli and the prior a Bernoulli.*: use priors.concrete"),
        (heads.concrete(0.5, 3), priors.standard_normal, "RelaxedCategorical and the prior a Normal.*priors.concrete,"),
        (heads.normal_logvar, priors.learned_bernoulli(6), "Normal and the prior a Bernoulli.*priors.standard_normal"),
        (lambda out: Signs(out), priors.bernoulli, "Signs and the prior a Bernoulli.*a prior with the same values"),
    ],
)
def test_a_prior_over_other_values_than_the_posteriors_is_refused(posterior, prior, message):
    model, x = with_prior(posterior, prior), random.bernoulli(KEY, 0.4, (8, 6)).float()
    with pytest.raises(BadValue, match=f"the posterior is a {message}"):
        check_data(model, *model.init(KEY), x)


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (heads.bernoulli, priors.learned_bernoulli(6)),
        (heads.categorical(3), priors.learned_categorical(3, 2)),
        (heads.concrete(0.5), priors.concrete(1.0)),
        (heads.concrete(0.5, 3), priors.concrete(1.0, 3)),
        (heads.delta, priors.bernoulli),  # it has no density
    ],
)
def test_a_prior_over_the_posteriors_values_is_allowed(posterior, prior):
    model = with_prior(posterior, prior)
    check_data(model, *model.init(KEY), random.bernoulli(KEY, 0.4, (8, 6)).float())


class Signs(NamedTuple):
    """A posterior over -1 and 1."""

    logits: Tensor
    loc = mean = property(lambda self: self.logits.tanh())

    def values(self):
        return torch.tensor([[-1.0], [1.0]])

    def log_prob(self, z):
        return (2 * z * self.logits).sigmoid().log()

    def sample(self, eps):
        return 2 * (torch.special.ndtr(eps) < (2 * self.logits).sigmoid()).float() - 1


def test_a_model_with_frozen_parameters_alone_can_be_evaluated():
    found = []
    for learned in (False, True):
        model = vae(
            encoder=lambda learned=learned: nn.Linear(6, 4).requires_grad_(learned), latent=2,
            decoder=lambda learned=learned: nn.Linear(2, 6).requires_grad_(learned),
        )  # fmt: skip
        x = random.bernoulli(KEY, 0.4, (4, 6)).float()
        found.append(fv.evaluate.log_weights(model, *model.init(KEY), x, KEY, samples=3))
    assert torch.equal(*found)


def test_a_model_with_frozen_parameters_alone_has_no_gradient():
    model = vae(
        encoder=lambda: nn.Linear(6, 4).requires_grad_(False), latent=2,
        decoder=lambda: nn.Linear(2, 6).requires_grad_(False),
    )  # fmt: skip
    iwae, trained, x = fv.estimators.iwae(), (model, *model.init(KEY)), random.bernoulli(KEY, 0.4, (4, 6)).float()
    for call in (
        lambda: fv.train.init(model, fv.optim.adam(), KEY),
        lambda: fv.variance.moments(iwae, *trained, x, KEY, samples=2, replicates=4),
        lambda: fv.variance.exact(iwae, *trained, x[:1], samples=1, nodes=4),
    ):
        with pytest.raises(BadValue, match="params has no leaves"):
            call()


@pytest.mark.parametrize(
    ("what", "given"), [("posterior", "Normal"), ("likelihood", "Bernoulli"), ("prior", "Normal"), ("prior", "Gamma")]
)
def test_a_distribution_of_torch_is_an_error_that_names_the_class_to_use(what, given):
    class Prior(nn.Module):
        def forward(self, z):
            one = torch.ones(2)
            return td.Independent(getattr(td, given)(one, one), 1)

    made = {
        "posterior": lambda out: td.Normal(out[:, :2], out[:, 2:].exp()),
        "likelihood": lambda out: td.Bernoulli(logits=out),
        "prior": Prior,
    }[what]
    model = vae(encoder=lambda: nn.Linear(6, 4), decoder=lambda: nn.Linear(2, 6), latent=2, **{what: made})
    x, eps = random.bernoulli(random.key(1), 0.5, (4, 6)).float(), fv.noise.iid(random.key(7), 3, (4, 2))
    ours = {"Gamma": "NamedTuple of tensors with log_prob"}.get(given, f"funcvae.distributions.{given}")
    with pytest.raises(BadType, match=rf"a torch.distributions.{given}: it must be a {ours}"):
        fv.estimators.elbo()(model, *model.init(KEY), x, eps, train=True)


def test_bytes_are_checked_after_observe():
    model = vae(encoder=lambda: nn.Linear(3, 4), decoder=lambda: nn.Linear(2, 3), latent=2)
    params, state = model.init(KEY)
    data = torch.zeros(9, 3, dtype=torch.uint8)
    data[5, 1] = 255
    check_data(model, params, state, data, as_floats)
    with pytest.raises(BadData, match=r"Byte.*; bytes need observe=model\.as_floats in training"):
        check_data(model, params, state, data)
    with pytest.raises(BadData, match="observed data ranges from 0 to 255: a Bernoulli likelihood requires"):
        check_data(model, params, state, data, lambda key, x: x.float())  # the first two items are zero
    for binary in (data == 255, (data == 255).long()):
        check_data(model, params, state, binary, lambda key, x: x.float())


def test_as_floats_leaves_other_data_as_they_are():
    x = torch.tensor([[0.0, 255.0]])
    for same in (x, x.double(), x.int(), x.bool()):
        assert as_floats(KEY, same) is same


def test_a_decoder_that_ends_in_a_sigmoid_is_named():
    def decoder(last):
        return lambda: nn.Sequential(nn.Linear(Z, 60), last)

    def check(last, likelihood=heads.bernoulli):
        model = vae(encoder=lambda: nn.Linear(60, 2 * Z), decoder=decoder(last), latent=Z, likelihood=likelihood)
        check_data(model, *model.init(KEY), random.bernoulli(KEY, 0.4, (8, 60)).float())

    with pytest.warns(UserWarning, match="the decoder returns numbers between 0 and 1, which heads.bernoulli takes as"):
        check(nn.Sigmoid())
    check(nn.Sigmoid(), heads.bernoulli_probs)
    check(nn.Identity())
