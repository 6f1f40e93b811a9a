"""nn.Modules as pure functions: outputs and statistics equal torch's, and random numbers depend on the key alone."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import funcvae as fv
from funcvae import random, tree
from funcvae.errors import BadType, BadValue
from funcvae.modules import functional

KEY = random.key(0)


def draws(*shape, seed=1):
    return random.normal(random.key(seed), shape)


def bound(factory, params, state, train):
    """The nn.Module with the same weights."""
    module = factory()
    module.load_state_dict({**params, **state}, strict=True)
    return module.train(train)


def assert_trees_close(a, b, tolerance=1e-6):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), lambda: (draws(5, 3),)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), lambda: (draws(4, 2, 5, 5),)),
    "batchnorm": (lambda: nn.BatchNorm1d(3), lambda: (draws(5, 3),)),
    "layernorm": (lambda: nn.LayerNorm(3), lambda: (draws(5, 3),)),
    "groupnorm": (lambda: nn.GroupNorm(2, 4), lambda: (draws(5, 4),)),
    "embedding": (lambda: nn.Embedding(7, 3), lambda: (torch.tensor([[1, 2], [6, 0]]),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda: (draws(2, 4, 8),) * 3),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        lambda: (draws(2, 4, 8),),
    ),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), lambda: (draws(2, 5, 3),)),
    "dropout(0)": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(p=0.0)), lambda: (draws(5, 3),)),
}
by_train = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])


# apply


@by_train
@pytest.mark.parametrize("name", LAYERS)
def test_apply_equals_the_module_and_does_not_modify_its_arguments(name, train):
    factory, inputs = LAYERS[name]
    net, inputs = functional(factory), inputs()
    params, state = net.init(KEY)
    before = tree.map(torch.clone, (params, state, inputs))
    module = bound(factory, params, state, train)
    out, new = net.apply(params, state, *inputs, train=train)
    assert_trees_close(out, module(*inputs))
    assert_trees_close(new, dict(module.named_buffers()))
    assert_trees_close((params, state, inputs), before, tolerance=0)


def resnet18():
    return torchvision.models.resnet18(num_classes=10)


@pytest.fixture(scope="module")
def initial_resnet18():
    net = functional(resnet18)
    return net, *net.init(KEY)


@by_train
def test_resnet18_equals_torchvisions(initial_resnet18, train):
    net, params, state = initial_resnet18
    x = draws(2, 3, 32, 32)
    module = bound(resnet18, params, state, train)
    out, new = net.apply(params, state, x, train=train)
    assert_trees_close(out, module(x), 1e-5)
    assert_trees_close(new, dict(module.named_buffers()), 1e-5)


def test_batchnorm_statistics_equal_torchs_over_several_batches():
    net, module = functional(lambda: nn.BatchNorm1d(3, momentum=0.7)), nn.BatchNorm1d(3, momentum=0.7)
    params, state = net.init(KEY)
    for seed in range(5):
        x = 2 * draws(6, 3, seed=seed) + 1
        out, state = net.apply(params, state, x, train=True)
        assert_trees_close(out, module(x))
    assert_trees_close(state, dict(module.named_buffers()))
    assert state["num_batches_tracked"].dtype == torch.int64
    assert state["num_batches_tracked"] == 5
    out, same = net.apply(params, state, x, train=False)
    assert_trees_close(out, module.eval()(x))
    assert_trees_close(same, state, tolerance=0)


def test_batchnorm_statistics_use_the_unbiased_variance():
    net = functional(lambda: nn.BatchNorm1d(3, momentum=1.0))
    params, state = net.init(KEY)
    x = draws(4, 3)
    _, new = net.apply(params, state, x, train=True)
    torch.testing.assert_close(new["running_var"], x.var(0))
    assert (new["running_var"] - x.var(0, correction=0)).abs().min() > 1e-3


@pytest.mark.parametrize(
    "factory", [lambda: nn.BatchNorm1d(3), lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))]
)
def test_batchnorm_under_vmap_has_statistics_for_each_slice(factory):
    net = functional(factory)
    params, state = net.init(KEY)
    x = draws(4, 6, 3)
    out, new = torch.vmap(lambda x: net.apply(params, state, x, train=True))(x)
    for i in range(4):
        want = net.apply(params, state, x[i], train=True)
        assert_trees_close((out[i], tree.map(lambda v, i=i: v[i], new)), want)


def test_batchnorm_under_grad_gives_torchs_gradient_and_statistics():
    def factory():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    net = functional(factory)
    params, state = net.init(KEY)
    x = draws(6, 3)

    def loss(params, x):
        out, new = net.apply(params, state, x, train=True)
        return out.square().sum(), new

    grads, new = torch.func.grad(loss, has_aux=True)(params, x)
    module = bound(factory, params, state, True)
    module(x).square().sum().backward()
    assert_trees_close(grads, {name: p.grad for name, p in module.named_parameters()}, 1e-5)
    assert_trees_close(new, dict(module.named_buffers()))

    xs = draws(3, 6, 3, seed=2)
    many, _ = torch.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, 0))(params, xs)
    for i in range(3):
        one, _ = torch.func.grad(loss, has_aux=True)(params, xs[i])
        assert_trees_close(tree.map(lambda g, i=i: g[i], many), one, 1e-5)


@by_train
@pytest.mark.parametrize("name", ["attention", "transformer"])
def test_attention_under_vmap_and_grad_equals_a_loop(name, train):
    factory, _ = LAYERS[name]
    net = functional(factory)
    params, state = net.init(KEY)
    width = 3 if name == "attention" else 1

    def loss(params, x):
        out, _ = net.apply(params, state, *(x,) * width, train=train)
        return tree.leaves(out)[0].square().sum()

    xs = draws(3, 2, 4, 8)
    many = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, xs)
    for i in range(3):
        one = torch.func.grad(loss)(params, xs[i])
        assert_trees_close(tree.map(lambda g, i=i: g[i], many), one, 1e-4)


def test_attention_does_not_change_torchs_fast_path_setting():
    factory, inputs = LAYERS["attention"]
    net = functional(factory)
    params, state = net.init(KEY)
    for enabled in (False, True):
        torch.backends.mha.set_fastpath_enabled(enabled)
        net.apply(params, state, *inputs(), train=False)
        assert torch.backends.mha.get_fastpath_enabled() is enabled


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attention_without_dropout_works_in_training_mode_without_gradients(context):
    factory, inputs = LAYERS["transformer"]
    net = functional(factory)
    params, state = net.init(KEY)
    want, _ = net.apply(params, state, *inputs(), train=True)
    with context():
        out, _ = net.apply(params, state, *inputs(), train=True)
    assert_trees_close(out.clone(), want.detach())


def test_compile_of_apply_with_batchnorm_equals_eager():
    net = functional(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    params, state = net.init(KEY)
    x = draws(6, 3)

    def step(params, state, x):
        return net.apply(params, state, x, train=True)

    before = tree.map(torch.clone, state)
    assert_trees_close(torch.compile(step, fullgraph=True)(params, state, x), step(params, state, x))
    assert_trees_close(state, before, tolerance=0)


# Modules of all kinds


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.grid = torch.arange(3.0)  # a plain tensor: neither parameter nor buffer

    def forward(self, x):
        return x * self.scale + self.grid


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("total", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.count = self.count + 1  # assigns a new tensor
        self.total += x.sum()  # modifies the tensor in place
        return x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.out = nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.embed(tokens))


class TiedBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("a", torch.ones(3))
        self.register_buffer("b", self.a)

    def forward(self, x):
        return x + self.a + self.b


def test_raw_parameters_are_drawn_from_the_key_and_plain_tensors_keep_their_values():
    net = functional(Raw)
    params, state = net.init(KEY)
    assert torch.equal(params["scale"], random.normal(random.fold_in(KEY, 0), (3,)))
    assert state == {}
    x = draws(2, 3)
    assert torch.equal(net.apply(params, state, x, train=True)[0], x * params["scale"] + torch.arange(3.0))


def test_buffers_that_forward_assigns_or_modifies_are_in_the_new_state():
    net = functional(Counter)
    params, state = net.init(KEY)
    x = torch.tensor([1.0, 2.0])
    _, once = net.apply(params, state, x, train=True)
    _, twice = net.apply(params, once, x, train=True)
    assert (once["count"], once["total"], twice["count"], twice["total"]) == (1, 3, 2, 6)
    assert (state["count"], state["total"]) == (0, 0)


def test_tied_weights_are_one_parameter_with_the_gradient_of_both_uses():
    net = functional(Tied)
    params, state = net.init(KEY)
    assert list(params) == ["embed.weight"]
    tokens, w = torch.tensor([1, 5]), params["embed.weight"]
    assert_trees_close(net.apply(params, state, tokens, train=True)[0], w[tokens] @ w.T)
    grads = torch.func.grad(lambda p: net.apply(p, state, tokens, train=True)[0].square().sum())(params)
    want = torch.func.grad(lambda w: (w[tokens] @ w.T).square().sum())(w)
    assert_trees_close(grads, {"embed.weight": want}, 1e-5)


def test_tied_buffers_are_one_buffer():
    net = functional(TiedBuffers)
    params, state = net.init(KEY)
    x = draws(2, 3)
    assert torch.equal(net.apply(params, state, x, train=True)[0], x + 2)


class HalfFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.back, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.back.requires_grad_(False)
        self.tied = self.back.weight
        self.turn = nn.Parameter(torch.eye(3).flip(0), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.head(self.norm(self.back(x)) @ self.tied @ self.turn)


@by_train
def test_frozen_parameters_are_constants_in_the_state(train):
    net = functional(HalfFrozen)
    params, state = net.init(KEY)
    assert set(params) == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    frozen = {"tied", "back.bias", "turn"}
    assert {name for name in state if not name.startswith("norm.")} == frozen
    assert not any(t.requires_grad or isinstance(t, nn.Parameter) for t in tree.leaves((params, state)))
    x, module = draws(5, 3), bound(HalfFrozen, params, {**state, "back.weight": state["tied"]}, train)
    out, new = net.apply(params, state, x, train=train)
    assert_trees_close(out, module(x))
    assert all(new[name] is state[name] for name in frozen), "they are not copied"
    compiled, same = torch.compile(partial(net.apply, train=train), fullgraph=True, backend="aot_eager")(
        params, state, x
    )
    assert_trees_close((compiled, same), (out, new))


class Writes(nn.Module):
    """Changes a parameter, learned or frozen, in forward."""

    def __init__(self, learned, always):
        super().__init__()
        self.linear, self.always = nn.Linear(3, 2), always
        self.scale = nn.Parameter(torch.ones(3), requires_grad=learned)

    def forward(self, x):
        if self.always or self.training:
            with torch.no_grad():
                self.scale.mul_(0.9).add_(x.mean(0))
        return self.linear(x * self.scale)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("always", [False, True], ids=["in training mode", "always"])
@by_train
def test_a_module_that_changes_a_parameter_is_an_error_and_the_parameter_stays(learned, always, train):
    net = functional(lambda: Writes(learned, always))
    params, state = net.init(KEY)
    for _ in range(2):
        with pytest.raises(BadValue, match="Writes changes the parameter 'scale' in forward: make it a buffer"):
            net.apply(params, state, draws(5, 3), train=train)
    assert torch.equal({**params, **state}["scale"], torch.ones(3))


def test_a_module_may_change_the_tensors_of_a_nested_input_in_place():
    class Total(nn.Module):
        def forward(self, pair):
            return pair[0].add_(pair[1]["more"])

    net, x = functional(Total), torch.ones(2)
    out, _ = net.apply({}, {}, (x, {"more": 2 * x}), train=True)
    assert torch.equal(out, 3 * x)
    assert torch.equal(x, torch.ones(2))


@pytest.mark.parametrize("missing", ["0.weight", "0.bias", "1.weight"])
def test_a_missing_parameter_is_an_error(missing):
    net = functional(lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False)))
    params, state = net.init(KEY)
    some = {name: p for name, p in params.items() if name != missing}
    with pytest.raises((BadValue, RuntimeError)):
        net.apply(some, state, draws(5, 3), train=False)


@by_train
def test_train_applies_only_to_its_call(train):
    net = functional(lambda: nn.BatchNorm1d(3))
    params, state = net.init(KEY)
    x = draws(5, 3)
    first = net.apply(params, state, x, train=train)
    net.apply(params, state, x, train=not train)
    assert_trees_close(net.apply(params, state, x, train=train), first, tolerance=0)


# init


class Initialisers(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("orthogonal", "truncated", "sparse", "kaiming", "xavier"):
            self.register_parameter(name, nn.Parameter(torch.empty(40, 30)))
        nn.init.orthogonal_(self.orthogonal)
        nn.init.trunc_normal_(self.truncated, std=0.5, a=-0.6, b=0.6)
        nn.init.sparse_(self.sparse, sparsity=0.25, std=0.1)
        nn.init.kaiming_normal_(self.kaiming)
        nn.init.xavier_uniform_(self.xavier)
        self.register_buffer("order", torch.randperm(10))
        self.register_buffer("mask", torch.empty(1000).bernoulli_(0.2))
        self.register_buffer("noise", torch.rand_like(self.mask) + torch.randn(1000, dtype=torch.float64))


def test_the_same_key_gives_the_same_bits_and_another_key_does_not():
    net = functional(Initialisers)
    a, b, c = (tree.named_leaves(net.init(key)) for key in (KEY, random.key(0), random.key(1)))
    for name, leaf in a.items():
        assert torch.equal(leaf, b[name])
        assert not torch.equal(leaf, c[name])


def test_initialisers_keep_their_distributions():
    params, state = functional(Initialisers).init(KEY)
    assert_trees_close(params["orthogonal"].T @ params["orthogonal"], torch.eye(30), 1e-5)
    assert params["truncated"].abs().max() <= 0.6
    assert params["truncated"].std() > 0.3  # std of the uniform on [-0.6, 0.6]: 0.346; of a clamped normal: 0.43
    assert torch.equal((params["sparse"] == 0).sum(0), torch.full((30,), 10))
    assert abs(params["kaiming"].square().mean() * 30 / 2 - 1) < 5 * math.sqrt(2 / 1200)
    limit = math.sqrt(6 / 70)
    assert 0.99 * limit < params["xavier"].abs().max() <= limit
    assert torch.equal(state["order"].sort().values, torch.arange(10))
    assert abs(state["mask"].mean() - 0.2) < 5 * math.sqrt(0.16 / 1000)
    assert abs(state["noise"].mean() - 0.5) < 5 * math.sqrt((1 + 1 / 12) / 1000)
    assert state["noise"].dtype == torch.float64


def test_a_linear_layers_weights_are_uniform_within_one_over_root_fan_in():
    params, _ = functional(lambda: nn.Linear(25, 4000)).init(KEY)
    for name, n in (("weight", 100_000), ("bias", 4000)):
        p = params[name].flatten()
        assert p.abs().max() <= 1 / 5
        assert p.abs().max() > 0.999 / 5
        assert abs(p.mean()) < 5 * math.sqrt(0.04 / 3 / n)
        assert abs(p.square().mean() - 0.04 / 3) < 5 * math.sqrt(0.0016 * (1 / 5 - 1 / 9) / n)


def test_two_parameters_have_different_random_numbers():
    params, _ = functional(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).init(KEY)
    assert not torch.equal(params["0.weight"], params["1.weight"])


def test_randperm_has_the_requested_dtype():
    class Order(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("order", torch.randperm(10, dtype=torch.int32))

    _, state = functional(Order).init(KEY)
    assert state["order"].dtype == torch.int32


def test_init_does_not_read_or_change_torchs_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    net = functional(Initialisers)
    first = net.init(KEY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert_trees_close(net.init(KEY), first, tolerance=0)


def test_parameters_are_plain_tensors_that_require_no_gradient():
    params, state = functional(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).init(KEY)
    assert not any(t.requires_grad or isinstance(t, nn.Parameter) for t in tree.leaves((params, state)))
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert list(params) == [name for name, _ in module.named_parameters()]
    assert list(state) == [name for name, _ in module.named_buffers()]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_init_on_cuda_equals_that_on_the_cpu_bit_for_bit():
    net = functional(Initialisers)
    for a, b in zip(tree.leaves(net.init(KEY.cuda())), tree.leaves(net.init(KEY)), strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu(), b)


def held(draw):
    """A factory of modules with a learned weight, and a buffer from a function of keyword arguments."""

    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("drawn", draw())
            self.weight = nn.Parameter(torch.randn(3))

    return Holding


WITH_GENERATOR = {
    "randn": lambda **g: torch.randn(6, 6, **g),
    "rand": lambda **g: torch.rand(5, **g),
    "randint": lambda **g: torch.randint(0, 6, (5,), **g),
    "randperm": lambda **g: torch.randperm(5, **g),
    "normal": lambda **g: torch.normal(torch.zeros(5), 2.0, **g),
    "bernoulli": lambda **g: torch.bernoulli(torch.full((5,), 0.5), **g),
    "multinomial": lambda **g: torch.multinomial(torch.ones(5), 3, **g),
    "poisson": lambda **g: torch.poisson(torch.ones(5), **g),
    "normal_": lambda **g: torch.empty(5).normal_(**g),
    "uniform_": lambda **g: torch.empty(5).uniform_(-1, 1, **g),
    "bernoulli_": lambda **g: torch.empty(5).bernoulli_(0.5, **g),
    "random_": lambda **g: torch.empty(5).random_(**g),
    "exponential_": lambda **g: torch.empty(5).exponential_(**g),
    "init": lambda **g: nn.init.orthogonal_(torch.empty(5, 5), **g),
}


@pytest.mark.parametrize("name", WITH_GENERATOR)
def test_a_draw_with_a_generator_of_its_own_stays_as_it_is_and_does_not_count(name):
    draw = WITH_GENERATOR[name]
    net = functional(held(lambda: draw(generator=torch.Generator().manual_seed(3))))
    for key in (KEY, random.key(1)):
        params, state = net.init(key)
        assert torch.equal(state["drawn"], draw(generator=torch.Generator().manual_seed(3)))
        assert torch.equal(params["weight"], random.normal(random.fold_in(key, 0), (3,)))


def test_torchs_global_generator_counts_as_no_generator():
    before = torch.get_rng_state()
    _, state = functional(held(lambda: torch.randn(4, generator=torch.default_generator))).init(KEY)
    assert torch.equal(state["drawn"], random.normal(random.fold_in(KEY, 0), (4,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_each_call_of_the_factory_advances_is_an_error():
    shared = torch.Generator().manual_seed(3)
    with pytest.raises(BadType, match="starts in another state at each call: make and seed it in the factory"):
        functional(held(lambda: torch.randn(4, generator=shared)))
    functional(held(lambda: torch.randn(4, generator=shared.manual_seed(3))))


@pytest.mark.parametrize(
    ("draw", "low", "high", "dtype"),
    [
        (lambda: torch.randint(6, (60_000,)), 0, 6, torch.int64),
        (lambda: torch.randint(-2, 4, (60_000,), dtype=torch.int32), -2, 4, torch.int32),
        (lambda: torch.empty(60_000).random_(6), 0, 6, torch.float32),
        (lambda: torch.empty(60_000, dtype=torch.int8).random_(-3, 3), -3, 3, torch.int8),
    ],
)
def test_integers_are_drawn_from_the_key_uniformly(draw, low, high, dtype):
    net = functional(held(draw))
    drawn, again, other = (net.init(key)[1]["drawn"] for key in (KEY, KEY, random.key(1)))
    assert drawn.dtype == dtype
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    counts = (drawn.unsqueeze(-1) == torch.arange(low, high)).sum(0)
    assert counts.sum() == 60_000, "each lies in the range"
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(60_000 * 5 / 36)


def test_a_normal_draw_around_a_tensor_may_leave_out_the_standard_deviation():
    _, state = functional(held(lambda: torch.normal(torch.full((4,), 2.0), 1.0))).init(KEY)
    assert torch.equal(state["drawn"], 2 + random.normal(random.fold_in(KEY, 0), (4,)))


@pytest.mark.parametrize("factory", [Initialisers, nn.Identity, lambda: nn.Linear(2, 2).requires_grad_(False)])
def test_init_under_vmap_equals_a_loop_over_the_keys_bit_for_bit(factory):
    net, keys = functional(factory), random.split(KEY, 6).view(2, 3, 2)
    together = torch.vmap(torch.vmap(net.init))(keys)
    for i, j in product(range(2), range(3)):
        assert_trees_close(tree.map(lambda t, i=i, j=j: t[i, j], together), net.init(keys[i, j]), tolerance=0)


# Random numbers in forward


class OwnNoise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Hidden(nn.Module):
    """Draws in a way that is not found in its code."""

    def forward(self, x):
        return x + getattr(torch, "randn_" + "like")(x)


class Declared(Hidden):
    draws_in_forward = True


DRAWING = {
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), (5, 3)),
    "dropout in place": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5, inplace=True)), (5, 3)),
    "dropout2d": (lambda: nn.Dropout2d(0.5), (2, 3, 4, 4)),
    "alpha": (lambda: nn.AlphaDropout(0.2), (5, 3)),
    "rrelu": (nn.RReLU, (5, 3)),
    "lstm": (lambda: nn.LSTM(3, 3, 2, dropout=0.1), (5, 3)),
    "bidirectional gru": (lambda: nn.GRU(3, 3, 2, dropout=0.3, bidirectional=True, batch_first=True), (2, 5, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), (2, 4, 8)),
    "own": (OwnNoise, (5, 3)),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_random_layer_draws_from_its_key_in_training_mode_and_nothing_in_eval(name):
    factory, shape = DRAWING[name]
    net, x = functional(factory), draws(*shape)
    params, state = net.init(KEY)
    plain = {name: v for name, v in state.items() if name != "random_key"}
    module = bound(factory, params, plain, False)
    before = torch.get_rng_state()
    out, same = net.apply(params, state, x, train=False)
    assert_trees_close(out, module(x))
    assert_trees_close(same, state, 0)
    first, new = net.apply(params, state, x, train=True)
    assert_trees_close(net.apply(params, state, x, train=True)[0], first, 0)
    assert torch.equal(new["random_key"], random.split(state["random_key"])[1])
    second, _ = net.apply(params, new, x, train=True)
    assert not torch.equal(tree.leaves(first)[0], tree.leaves(second)[0])
    assert not torch.equal(tree.leaves(first)[0], tree.leaves(out)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_with_dropout_draws_with_and_without_weights():
    for weights in (True, False):
        net = functional(lambda: nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True))
        params, state = net.init(KEY)
        x = (draws(2, 4, 8),) * 3

        def output(state, train, net=net, params=params, x=x, weights=weights):
            return net.apply(params, state, *x, None, weights, train=train)[0][0]

        drawn = torch.stack([output({"random_key": key}, True) for key in random.split(KEY, 400)])
        error = (drawn.mean(0) - output(state, False)) / (drawn.std(0) / 400**0.5)
        assert error.abs().max() < 4.5
        assert drawn.std(0).min() > 0


def test_networks_that_draw_nothing_have_no_key():
    for factory in (lambda: nn.Dropout(0.0), lambda: nn.Linear(3, 2), partial(nn.MultiheadAttention, 8, 2)):
        assert "random_key" not in functional(factory).init(KEY)[1]


def test_the_key_differs_between_seeds_and_is_none_of_the_initialisers_keys():
    net = functional(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    (_, a), (_, b) = net.init(KEY), net.init(random.key(1))
    assert not torch.equal(a["random_key"], b["random_key"])
    assert not any(torch.equal(a["random_key"], random.fold_in(KEY, i)) for i in range(10))
    together = torch.vmap(net.init)(random.split(KEY, 3))[1]["random_key"]
    assert torch.equal(together, torch.stack([net.init(k)[1]["random_key"] for k in random.split(KEY, 3)]))


@pytest.mark.parametrize("name", ["dropout", "own", "alpha", "transformer"])
def test_random_layers_under_vmap_over_keys_and_inputs_equal_a_loop_and_compile(name):
    factory, shape = DRAWING[name]
    net, keys, xs = functional(factory), random.split(KEY, 3), draws(3, *shape)
    params, state = net.init(KEY)

    def apply(key, x):
        return net.apply(params, {**state, "random_key": key}, x, train=True)

    assert_trees_close(
        torch.vmap(apply)(keys, xs), tree.map(lambda *each: torch.stack(each), *map(apply, keys, xs)), 1e-5
    )
    if name != "transformer":  # the compiler cannot trace the setting of attention's fast path
        assert_trees_close(
            torch.compile(apply, fullgraph=True, backend="eager")(keys[0], xs[0]), apply(keys[0], xs[0]), 1e-5
        )


def test_a_draw_without_a_key_is_an_error_that_says_what_to_do():
    net = functional(Hidden)
    for train, advice in ((True, "set draws_in_forward = True in its class"), (False, r"draw only if self\.training")):
        with pytest.raises(BadValue, match=f"draws random numbers in forward without a key: {advice}"):
            net.apply({}, {}, draws(5, 3), train=train)
        for randomness in ("error", "same", "different"):
            apply = torch.vmap(lambda x, train=train: net.apply({}, {}, x, train=train)[0], randomness=randomness)
            with pytest.raises(BadValue, match=advice):
                apply(draws(2, 5, 3))
    net = functional(Declared)
    net.apply(*net.init(KEY), draws(5, 3), train=True)
    with pytest.raises(BadValue, match=r"draw only if self\.training"):
        net.apply(*net.init(KEY), draws(5, 3), train=False)


def test_a_function_that_cannot_draw_from_a_key_is_an_error():
    class Counts(nn.Module):
        def forward(self, x):
            return torch.poisson(x.exp())

    net = functional(Counts)
    with pytest.raises(BadValue, match="calls poisson in forward, which cannot be drawn from a key: use alpha_dropout"):
        net.apply(*net.init(KEY), draws(5, 3), train=True)


def test_a_tensor_with_the_name_of_the_key_is_an_error():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("random_key", torch.zeros(2))

    with pytest.raises(BadValue, match="Named has a tensor named 'random_key'"):
        functional(Named)


class Checkpointed(nn.Module):
    """Recomputes a layer in the backward pass, perhaps in training mode alone."""

    def __init__(self, size, out, use_reentrant, always):
        super().__init__()
        self.a, self.b, self.use_reentrant, self.always = nn.Linear(size, 6), nn.Linear(6, out), use_reentrant, always

    def forward(self, x):
        if self.always or self.training:
            return self.b(checkpoint(self.a, x, use_reentrant=self.use_reentrant).tanh())
        return self.b(self.a(x).tanh())


by_checkpoint = pytest.mark.parametrize("always", [False, True], ids=["in training mode", "always"])
by_reentrant = pytest.mark.parametrize("use_reentrant", [False, True])


@by_train
@by_checkpoint
@by_reentrant
def test_activation_checkpointing_is_an_error_that_names_chunks(use_reentrant, always, train):
    net = functional(lambda: Checkpointed(3, 2, use_reentrant, always))
    params, state = net.init(KEY)
    for _ in range(2):
        with pytest.raises(BadType, match=r"Checkpointed uses torch.utils.checkpoint.*: .* chunk of fit"):
            net.apply(params, state, draws(5, 3), train=train)
    with pytest.raises(BadType, match=r"uses torch\.utils\.checkpoint"):
        torch.func.grad(lambda p: net.apply(p, state, draws(5, 3), train=train)[0].sum())(params)


@by_reentrant
@pytest.mark.parametrize("where", ["encoder", "decoder", "prior"])
def test_a_model_with_activation_checkpointing_is_refused_in_training_the_lab_and_evaluation(where, use_reentrant):
    sizes = {"encoder": (3, 4), "decoder": (2, 3), "prior": (2, 2)}
    nets = {name: (lambda sizes=each: nn.Linear(*sizes)) for name, each in sizes.items()}
    nets[where] = lambda: Checkpointed(*sizes[where], use_reentrant, always=True)
    nets["prior"] = lambda prior=nets["prior"]: Prior(prior())
    model = fv.vae(**nets, latent=2)
    opt, iwae, x = fv.optim.adam(), fv.estimators.iwae(), random.bernoulli(KEY, 0.4, (6, 3)).float()
    trained = model, *model.init(KEY)
    calls = {
        "fit": lambda: fv.train.fit(fv.train.init(model, opt, KEY), model, iwae, opt, x, compile=False),
        "lab": lambda: fv.variance.moments(iwae, *trained, x, KEY, samples=2, replicates=2),
        "evaluation": lambda: fv.evaluate.log_likelihood(*trained, x, KEY, samples=2),
        "estimator": lambda: iwae(*trained, x, fv.noise.iid(KEY, 2, (6, 2)), train=True),
        "without a graph": lambda: torch.no_grad()(iwae)(*trained, x, fv.noise.iid(KEY, 2, (6, 2)), train=True),
    }
    for call in calls.values():
        with pytest.raises(BadType, match=r"uses torch\.utils\.checkpoint"):
            call()


class Prior(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return fv.distributions.Normal(self.net(z), torch.ones_like(z))


def test_errors_of_the_module_are_passed_on():
    net = functional(lambda: nn.Linear(3, 2))
    params, state = net.init(KEY)
    with pytest.raises(RuntimeError, match="shapes"):
        net.apply(params, state, draws(5, 4), train=True)


# Wrong factories


def test_the_error_for_a_module_in_place_of_a_factory_shows_a_factory():
    with pytest.raises(BadType, match="lambda: Linear"):
        functional(nn.Linear(3, 2))


def test_a_factory_that_is_not_callable_is_an_error():
    with pytest.raises(BadType, match="factory"):
        functional(3)


def test_a_factory_that_does_not_return_a_module_is_an_error():
    with pytest.raises(BadType, match="returned Tensor"):
        functional(lambda: torch.zeros(3))


def test_a_factory_that_always_returns_the_same_module_is_an_error_and_does_not_move_it():
    module = nn.BatchNorm1d(3)
    with pytest.raises(BadType, match="returns the same BatchNorm1d twice"):
        functional(lambda: module)
    assert module.weight.device.type == "cpu"


def test_a_factory_may_differentiate():
    def factory():
        module = nn.Linear(3, 2)
        module.weight.data -= torch.autograd.grad(module.weight.square().sum() / 2, module.weight)[0]
        return module

    assert torch.equal(functional(factory).init(KEY)[0]["weight"], torch.zeros(2, 3))


def test_the_first_call_keeps_no_graph_of_the_whole_input():
    sizes = []

    class Sized(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    net = functional(lambda: Sized(3, 2))
    for _ in range(2):
        net.apply(*net.init(KEY), draws(50, 3), train=True)
    assert sizes.count(50) == 2


def test_the_error_for_an_unsupported_initialiser_names_it():
    class Cauchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.empty(3).cauchy_())

    with pytest.raises(BadType, match=r"cauchy_.*, which cannot be drawn from a key: give it generator="):
        functional(Cauchy).init(KEY)


def test_an_error_in_the_factory_is_not_taken_for_a_wrong_call_of_it():
    with pytest.raises(BadType, match=r"^the factory raised TypeError: .*must be tuple of ints,but got str"):
        functional(lambda: nn.Linear("6", 4))
    for factory in (lambda size: nn.Linear(size, 4), nn.Linear, partial(nn.Linear, 6)):
        with pytest.raises(BadType, match=r"^the factory must take no arguments: .* missing"):
            functional(factory)


def test_modules_that_share_a_part_with_tensors_are_an_error_and_the_part_stays():
    part = nn.Linear(3, 3)
    with pytest.raises(BadType, match=r"returns the same Linear '1' twice.* copy\.deepcopy"):
        functional(lambda: nn.Sequential(nn.Linear(3, 3), part))
    assert part.weight.device.type == "cpu"
    functional(lambda: nn.Sequential(nn.Linear(3, 3), copy.deepcopy(part)))
    activation = nn.ReLU()
    functional(lambda: nn.Sequential(nn.Linear(3, 3), activation))
