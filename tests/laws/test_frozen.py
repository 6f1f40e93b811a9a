"""Frozen parameters keep their bits and have no gradient. Buffers that no forward pass changes keep their bits too."""

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.distributed import Processes, by_samples, sharding
from funcvae.errors import BadValue
from funcvae.train import checkpoint
from funcvae.train.settings import StepSettings
from funcvae.train.task import Task, check_shards
from tests.support.oracles import assert_close


class Half(nn.Module):
    """Trained and frozen parameters, running statistics, and buffers that `forward` does not change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs)
        self.inner = nn.Linear(4, 4)
        self.again = self.inner  # a second name of the same parameters
        self.backbone.requires_grad_(False)
        self.again.requires_grad_(False)
        self.scale = nn.Parameter(torch.full((4,), 0.7), requires_grad=False)
        self.register_buffer("table", torch.tensor([0.03, 0.23, -torch.inf, 1e-30]))
        self.register_buffer("fine", torch.tensor([0.1], dtype=torch.float64))
        self.register_buffer("large", torch.tensor([2**40 + 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.backbone(x)).tanh()
        return self.head(self.again(self.inner(h)) * self.scale + self.table.exp())


FROZEN = {"backbone.weight", "backbone.bias", "inner.weight", "inner.bias", "scale"}
CONSTANT = FROZEN | {"table", "fine", "large"}
TRAINED = {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def half() -> fv.VAE:
    return fv.vae(encoder=lambda: Half(3, 4), decoder=lambda: Half(2, 3), latent=2)


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return fv.random.bernoulli(fv.random.key(5), 0.4, (22, 3)).float()


def trained(data, model=None, **options):
    """The TrainStates before and after training, and the history."""
    model, opt = model or half(), fv.optim.adam(1e-2)
    ts = fv.train.init(model, opt, fv.random.key(0))
    options = {"batch": 11, "samples": 5, "epochs": 2, "compile": False, **options}
    return ts, *fv.train.fit(ts, model, fv.estimators.iwae(), opt, data, **options)


def constants(ts: fv.train.TrainState) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": ts.state[part][name] for part in ("encoder", "decoder") for name in CONSTANT}


ROUTES = {
    "whole": {},
    "one sample": {"samples": 1},
    "chunks": {"chunk": 2},
    "rows": {"shards": 3},
    "samples": {"shards": 3, "split": by_samples},
    "rows in chunks": {"shards": 3, "chunk": 2},
    "samples in chunks": {"shards": 2, "chunk": 2, "split": by_samples},
}
COMPILED = ("whole", "rows", "samples in chunks")


@pytest.mark.parametrize(
    "options",
    [
        *ROUTES.values(),
        *(pytest.param({**ROUTES[name], "compile": True}, marks=pytest.mark.slow) for name in COMPILED),
    ],
    ids=[*ROUTES, *(f"{name}, compiled" for name in COMPILED)],
)
def test_training_changes_no_bit_of_what_is_constant(data, options):
    before, after, _ = trained(data, **options)
    assert tree.sha256(constants(after)) == tree.sha256(constants(before))
    for part in ("encoder", "decoder"):
        assert set(before.params[part]) == TRAINED
        assert all(not torch.equal(p, after.params[part][name]) for name, p in before.params[part].items())
        assert not torch.equal(after.state[part]["norm.running_mean"], before.state[part]["norm.running_mean"])
        assert after.state[part]["norm.num_batches_tracked"] == 4


def test_frozen_parameters_are_used_as_they_are():
    """Bound and gradient are those of a model whose parameters are all trained. (Products may round differently.)"""
    model = half()
    everything = fv.vae(
        encoder=lambda: Half(3, 4).requires_grad_(True), decoder=lambda: Half(2, 3).requires_grad_(True), latent=2
    )
    x, eps = torch.ones(6, 3).tril(), fv.noise.iid(fv.random.key(1), 4, (6, 2))
    out, all_out = (fv.estimators.dreg()(m, *m.init(fv.random.key(0)), x, eps, train=True) for m in (model, everything))
    torch.testing.assert_close(out.bound, all_out.bound)
    for part in ("encoder", "decoder"):
        assert out.grads[part].keys() == TRAINED
        assert_close(out.grads[part], {name: all_out.grads[part][name] for name in out.grads[part]}, atol=1e-6)


def test_no_process_is_sent_a_frozen_parameter():
    model = half()
    params, state = model.init(fv.random.key(0))
    learned = sum(leaf.numel() for leaf in tree.leaves(params))
    share = sharding.share_like(model, params, state)
    buffers = [leaf.numel() for part in state.values() for name, leaf in part.items() if name not in FROZEN]
    ends = 4  # bound, reconstruction and KL, and the number of processes that request a stop
    assert len(sharding.pack(*share)) == learned + sum(n + 1 for n in buffers) + ends


def test_frozen_parameters_are_no_running_statistics():
    several = Processes()
    several.size = 2  # as if two were connected
    frozen = fv.vae(encoder=lambda: nn.Linear(3, 4), decoder=lambda: nn.Linear(2, 3).requires_grad_(False), latent=2)

    def check(model):
        task = Task(model, fv.estimators.iwae(), fv.optim.adam(), torch.zeros(9, 3), StepSettings(), several)
        check_shards(task, model.init(fv.random.key(0))[1])

    check(frozen)
    with pytest.raises(BadValue, match=r"the model has buffers, such as BatchNorm's running statistics, .* set shards"):
        check(half())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("spec", ["elbo", "iwae", "vimco", "piwae:2"])
def test_a_whole_network_may_be_frozen(data, part, spec):
    factories = {"encoder": lambda: nn.Linear(3, 4), "decoder": lambda: nn.Linear(2, 3)}
    learning = fv.vae(**factories, latent=2)
    fixed = fv.vae(**{**factories, part: lambda: factories[part]().requires_grad_(False)}, latent=2)
    eps, estimator = fv.noise.iid(fv.random.key(1), 4, (22, 2)), fv.estimators.parse(spec)
    out, learned = (estimator(m, *m.init(fv.random.key(0)), data, eps, train=True) for m in (fixed, learning))
    assert out.grads[part] == {}
    other = ({"encoder", "decoder"} - {part}).pop()
    assert_close(out.grads[other], learned.grads[other], atol=1e-6)
    before, after, _ = trained(data, fixed, shards=2)
    assert all(map(torch.equal, tree.leaves(after.state), tree.leaves(before.state)))


def test_the_lab_counts_no_frozen_parameter(data):
    model = half()
    trained_ = *model.init(fv.random.key(0)), data[:3]
    found = fv.variance.moments(fv.estimators.iwae(), model, *trained_, fv.random.key(1), samples=2, replicates=10)
    assert {name for name in found.groups if "/" in name} == {
        f"{p}/{n}" for p in ("encoder", "decoder") for n in TRAINED
    }
    mean = fv.variance.exact(fv.estimators.elbo(), model, *trained_, samples=1, nodes=20).mean
    assert mean["decoder"].keys() == TRAINED


def test_a_stopped_run_with_frozen_parameters_continues_from_its_checkpoint(data, tmp_path):
    start, whole, _ = trained(data, shards=2)
    steps = iter(range(1, 99))
    _, half_way, past = trained(data, shards=2, stop=lambda: next(steps) >= 3)
    path = checkpoint.save(tmp_path / "state.safetensors", half_way, {})
    loaded, _ = checkpoint.load(path, start)
    opt = fv.optim.adam(1e-2)
    after, _ = fv.train.fit(
        loaded, half(), fv.estimators.iwae(), opt, data, batch=11, samples=5, shards=2, compile=False, history=past
    )
    assert all(map(torch.equal, tree.leaves(after), tree.leaves(whole)))


def test_buffers_keep_their_bits_in_a_sum_of_shares():
    """The sum of the shares of a number may round to another number."""
    old = {"decoder": {"table": 0.1 * torch.arange(100.0), "moved": 0.1 * torch.arange(100.0)}}
    new = {"decoder": {"table": old["decoder"]["table"].clone(), "moved": old["decoder"]["moved"] + 1}}
    model = half()
    total = None
    for weight in (5 / 11, 3 / 11, 3 / 11):
        total = fv.estimators.engine.add_trees(total, fv.estimators.engine.share_of_state(model, new, old, weight))
    assert not torch.equal(total["decoder/table"][0], old["decoder"]["table"]), "a sum of shares rounds"
    found = fv.estimators.engine.state_of_shares(total, old)["decoder"]
    assert torch.equal(found["table"], old["decoder"]["table"])
    torch.testing.assert_close(found["moved"], new["decoder"]["moved"])
