"""Training, the variance lab and evaluation stay on the device of their tensors and never wait for the host.

No GPU is needed to show this. Tensors on the device `meta` have no values, so reading one raises: `.item()`,
`bool(tensor)`, `.tolist()`, a copy to the CPU. `OnMeta` raises for what else would wait or fail on a GPU.

Every system, estimator, noise scheme, optimizer, schedule, head and prior occurs once.
"""

from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import funcvae as fv
from funcvae import estimators, heads, noise, optim, priors, runs, tree
from funcvae._support import examples
from funcvae.data import Dataset
from funcvae.distributed import by_samples
from funcvae.distributed.sharding import GradientSettings
from funcvae.estimators.types import by_step
from funcvae.evaluate.importance_sampling import _sampler
from funcvae.model import as_is
from funcvae.models.recipe import binarize
from funcvae.runs.prepare import prepare
from funcvae.train.drawing import _Together
from funcvae.train.settings import StepSettings
from funcvae.train.step import run_step
from funcvae.train.task import Task
from funcvae.variance import online_moments
from funcvae.variance.problem import Problem, ReplicateSettings, gradients, noise_chunks
from tests.support.models import B, N, made
from tests.support.optimizers import params_and_grads
from tests.support.posteriors import PRIORS, flow_vae, full_normal_vae, two_layers_vae
from tests.support.specs import CONTINUOUS, SPECS

KEY = fv.random.key(0)
OPT = optim.sgd(0.1)
WAITS = {  # what waits for the host, and why
    "sobol": "torch makes the points of the Sobol sequence on the CPU; they are constants, which compiled code keeps",
    "from_torch": "every class of torch.optim begins in its own way, so an update reads whether it is the first",
}


class OnMeta(TorchFunctionMode):
    """Raises if a function of torch makes a tensor on another device than `meta`, or takes tensors on two devices.

    Also raises if it copies Python's numbers to a tensor: a GPU waits for that copy.
    """

    COPIES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, returned = devices((args, kwargs)), devices(out)
        assert returned <= {"meta"}, f"{func} makes a tensor on {returned}"
        assert len(given) < 2, f"{func} takes tensors on {given}"
        assert func not in self.COPIES, f"{func} copies numbers to the device"
        return out


def devices(t):
    return {leaf.device.type for leaf in tree.leaves(t) if isinstance(leaf, Tensor)}


def to_meta(t):
    return tree.map(lambda leaf: leaf.to("meta"), t)


@cache
def first_batch():
    """The rows and the keys of the first step."""
    with OnMeta():
        rows, keys = fv.train.batches(to_meta(KEY), B, B, 0)
        return rows[0], keys[0]


def check_step(task, ts):
    """Makes the first step of a run."""
    task, ts, (rows, keys) = task._replace(train=to_meta(task.train)), to_meta(ts), first_batch()
    run = run_step(task, lambda: False)
    with OnMeta():
        (inputs,) = run.inputs(iter([(rows, keys, examples.take(task.train, rows))]), ts.params)
        assert devices(run.step(ts, *inputs)) == {"meta"}


def zeros(key, n, shape, *, dtype=torch.float32):
    """Noise that takes little time."""
    return torch.zeros(n, *shape, dtype=dtype, device=key.device)


def check_step_of(model, spec, x=None, noise=zeros, **settings):
    x = torch.ones(B, 3) if x is None else x
    settings = StepSettings(batch=B, samples=N, compile=False, noise=noise, **settings)
    task = Task(model.unchecked(), estimators.parse_scheduled(spec), OPT, x, settings)
    check_step(task, fv.train.init(model, OPT, KEY))


@pytest.mark.parametrize("name", fv.models.SYSTEMS)
def test_systems(name, monkeypatch):
    # The initial weights do not matter here, and to draw those of the ResNet takes seconds.
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda t, *_, **__: nn.init.zeros_(t))
    config = runs.configure(name, batch=B, compile=False, out="unused")
    shape = [8 if size is None else size for size in config.system.recipe.shape]
    x = (255 * fv.random.uniform(KEY, (B, *shape))).byte()
    setup = prepare(config, lambda config: Dataset("draws", x, x, None, None))
    check_step(setup.task, setup.start)


@pytest.mark.parametrize("name", ["conditional", "dropout", "learned_prior"])
def test_models_with_a_condition_random_layers_and_a_prior_of_the_user(name):
    model, _, _, x, _ = made(name)
    check_step_of(model, "iwae", x)


@pytest.mark.parametrize("spec", [*SPECS, *(f"{name}:linear:0:1:10" for name in estimators.SCHEDULABLE)])
def test_estimators(spec):
    model, *tensors = made("bernoulli" if spec in SPECS and spec not in CONTINUOUS else "batch_norm")
    check_step_of(model, spec)
    step, *tensors = to_meta((torch.tensor(0), *tensors))
    estimator_at = by_step(estimators.parse_scheduled(spec))
    with OnMeta():
        assert estimator_at(step).evaluate(model.unchecked(), *tensors).is_meta


@pytest.mark.parametrize(
    ("model", "spec", "settings"),
    [
        ("batch_norm", "quadratic_cv:1", {"chunk": 3}),
        ("dropout", "iwae", {"shards": 2}),
        ("batch_norm", "quadratic_cv:1", {"shards": 2, "split": by_samples}),
    ],
)
def test_chunks_and_shards(model, spec, settings):
    check_step_of(made(model)[0], spec, noise=noise.iid, **settings)


@pytest.mark.parametrize("name", noise.TABLE)
def test_noise_schemes(name, monkeypatch):
    if name in WAITS:
        with pytest.raises(AssertionError, match=r"makes a tensor on \{'cpu'\}"):
            check_step_of(made("batch_norm")[0], "iwae", noise=noise.TABLE[name])
        points = noise._sobol_points(N, 2, torch.device("meta"))
        monkeypatch.setattr(noise, "_sobol_points", lambda *_: points)
    check_step_of(made("batch_norm")[0], "iwae", noise=noise.TABLE[name])


@pytest.mark.parametrize("observe", [as_is, binarize])
def test_draws_for_several_steps(observe):
    model, params, _, x, _ = made("batch_norm")
    params, x, (_, keys) = *to_meta((params, x)), first_batch()
    gradient = GradientSettings(model.unchecked(), lambda step: estimators.iwae(), N, N, observe, noise.iid)
    with OnMeta():
        assert devices(_Together(gradient, 50, params).at_once([(keys, x)] * 2)) == {"meta"}


def small(outputs, posterior=heads.normal_logvar, prior=priors.standard_normal, likelihood=heads.bernoulli):
    return fv.vae(
        encoder=lambda: nn.Linear(3, outputs), decoder=lambda: nn.Linear(6, 3), latent=6,
        posterior=posterior, prior=prior, likelihood=likelihood,
    )  # fmt: skip


PARTS = {  # a model with each head and prior, and an estimator for it
    **{
        name: (partial(small, 6, q, p), "iwae" if "concrete" in name else "rloo") for name, (p, q, *_) in PRIORS.items()
    },
    "bernoulli_probs": (partial(small, 12, likelihood=heads.bernoulli_probs), "iwae"),
    "coupling_flow": (flow_vae, "iwae"),
    "delta": (partial(small, 6, heads.delta), "elbo"),
    "full_normal": (full_normal_vae, "elbo"),
    "mixture": (partial(small, 12, prior=priors.mixture(3, 6)), "iwae"),
    "normal_fixed": (partial(small, 12, likelihood=heads.normal_fixed(0.5)), "iwae"),
    "normal_logsigma": (partial(small, 12, heads.normal_logsigma), "iwae"),
    "normal_logvar": (partial(small, 12, heads.normal_logvar), "iwae"),
    "signed_normal": (partial(small, 12, heads.signed_normal), "elbo"),
    "standard_normal": (partial(small, 12, prior=priors.standard_normal), "elbo"),
    "two_layers": (two_layers_vae, "iwae"),
}


@pytest.mark.parametrize("name", sorted(PARTS.keys() | {*heads.__all__, *priors.__all__} - {"Head", "Output"}))
def test_heads_and_priors(name):
    make, spec = PARTS[name]
    check_step_of(make(), spec)


OPTIMIZERS = {
    **{name: optim.parse(spec, 0.1) for name, spec in optim.EXAMPLES.items()},
    **{name: optim.adamw(optim.parse_schedule(form.split("as in ")[1], 10)) for name, form in optim.SCHEDULES.items()},
    "chain": optim.chain(
        optim.clip_by_global_norm(1.0), optim.add_decayed_weights(0.1, lambda path: path == "w"), optim.sgd(0.1)
    ),
    "from_torch": optim.from_torch(torch.optim.NAdam, 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_and_schedules(name):
    opt, (params, (grads,)) = OPTIMIZERS[name], to_meta(params_and_grads(1))
    if name in WAITS:
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
            opt.update(grads, opt.init(params), params)
        return
    with OnMeta():
        state = opt.init(params)
        assert devices((state, opt.update(grads, state, params), opt.update_(grads, state, params))) == {"meta"}


@pytest.mark.parametrize(("name", "settings"), [("batch_norm", {}), ("dropout", {"train": True, "fresh_layers": True})])
def test_replicates_and_their_sums(name, settings):
    model, *tensors, x, _ = made(name)
    params, state, x, key = to_meta((*tensors, x, KEY))
    problem = Problem(model.unchecked(), params, state, x, key, ReplicateSettings(N, chunk=2, **settings))
    gradient = gradients((estimators.iwae(), estimators.dreg()), problem.model, problem.names, problem.settings.train)
    with OnMeta():
        for first, eps in noise_chunks(problem, noise.iid, range(4), compile=False):
            of_each, log_w, bounds = gradient(params, problem.state_of(range(first, first + 2)), x, eps)
        centers = [[leaf[0] for leaf in grads] for grads in of_each]
    assert devices((of_each, log_w, bounds)) == {"meta"}
    for center, grads in zip(centers, of_each, strict=True):
        sums = online_moments.empty_sums(center, order=4)  # their total is on the CPU
        with OnMeta():
            flat = online_moments.zero_powers(sums)
            rows = online_moments.sum_powers_(center, online_moments.power_views(flat, sums), grads)
            means = online_moments.mean(sums._replace(n=2))
        assert devices((flat, rows, means)) == {"meta"}


def test_evaluation():
    model, *tensors, x, _ = made("batch_norm")
    params, state, x, key = to_meta((*tensors, x, KEY))
    model = model.unchecked()
    draw, weigh = _sampler(model, B, torch.float32)
    with OnMeta():
        q, _ = model.encode(params, state, x)
        log_w = weigh(params, state, x, q, draw(key, torch.arange(N, device="meta")))
    assert log_w.is_meta


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z: z * z.sum().item(),
        lambda z: z if z.sum() > 0 else -z,
        lambda z: z @ torch.eye(2),
        lambda z: z * torch.tensor(2.0),
        lambda z: z * z.new_tensor(2.0),
        lambda z: z * z.detach().cpu().to("meta"),
    ],
)
def test_a_wait_or_a_tensor_on_the_cpu_is_found(wrong):
    class Wrong(nn.Linear):
        def forward(self, z):
            return super().forward(wrong(z))

    model = fv.vae(encoder=lambda: nn.Linear(3, 4), decoder=lambda: Wrong(2, 3), latent=2)
    with pytest.raises((AssertionError, RuntimeError, fv.errors.BadValue)):
        check_step_of(model, "iwae")
