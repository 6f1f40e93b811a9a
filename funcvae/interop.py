"""Takes over a PyTorch VAE with its weights, and returns it with the trained weights.

model, params, state = from_module(net, encode="encode", decode="decode", latent=20)
net = to_module(net, params, state)
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from funcvae import heads, priors, random, tree
from funcvae._support import checks
from funcvae._support.checks import Count, Only
from funcvae._support.pickling import remembered
from funcvae.distributions import Posterior
from funcvae.errors import BadType, BadValue, FuncvaeError, unknown
from funcvae.model import CHECK_SEED, VAE, Trained, check_prior, log_p_x_given_z, vae, warn_of_probabilities
from funcvae.modules import KEY, Params, State

__all__ = ["from_module", "to_module"]

Call = Callable[[nn.Module, Tensor], Any]


def _a_net(name: str, value: Any) -> nn.Module:
    if callable(value) and not isinstance(value, nn.Module):
        what = f"the class {value.__name__}" if isinstance(value, type) else checks.describe(value)
        raise BadType(f"{name} is {what}: it must be a module; call it first")
    for path, tensor in _tensors(checks.instance(name, value, nn.Module)).items():
        if nn.parameter.is_lazy(tensor):
            raise BadValue(f"{path} of {name} has no shape before a forward pass: call {name} on a few data first")
        checks.not_on_meta(f"{path} of {name}", tensor)
    if any(isinstance(module, torch.jit.ScriptModule) for module in value.modules()):
        raise BadType(f"{name} has a ScriptModule, whose weights cannot be replaced: give the module it was made from")
    return value


def _a_call(name: str, value: Any) -> str | Call:
    if isinstance(value, nn.Module) or inspect.ismethod(value):
        raise BadType(f"{name} is bound to one module: give its name, such as {name}={name!r}, or a function of net")
    return value if isinstance(value, str) else checks.function(name, value)


Net = Annotated[nn.Module, Only(_a_net)]
Code = Annotated[Any, Only(_a_call)]  # the name of a method or of a submodule, or a function


@checks.arguments
def from_module(
    net: Net, *,
    encode: Code = "encode",
    decode: Code = "decode",
    latent: Count,
    posterior: Callable[[Any], Posterior] = heads.normal_logvar,
    likelihood: heads.Head = heads.bernoulli,
    prior: Callable[[], nn.Module] = priors.standard_normal,
) -> Trained:  # fmt: skip
    """Makes a VAE of a built PyTorch module, with its weights.

    A parameter belongs to the encoder or the decoder, whichever uses it, under its name in `net.state_dict()`, such as
    `params["encoder"]["fc1.weight"]`. Buffers and frozen parameters (`requires_grad=False`) are in the state, as is the
    key of a function that draws random numbers, such as dropout. What neither uses, such as a classifier, is left out.
    Both functions run once in each mode to find this out: `decode` on two latents, and `encode` on two data of zeros of
    the shape that the likelihood describes. `net` does not change, and later changes of `net` do not affect the model.

    `model.init` returns the weights of `net` for every key; only what `net` does not have, such as a learned prior, is
    drawn from the key (here, `random.key(0)`). To start from fresh weights, take over a new module.

    Args:
        net: the module, trained or not.
        encode: maps x [B, ...] to the argument of `posterior`: the name of a method ("encode") or of a submodule
            ("encoder", "model.encoder"), or a function (net, x) -> output. It must not sample.
        decode: maps z [B, Z] to the argument of `likelihood`, in the same way. Each tensor in its output starts with
            the axis B. Of an output that is an object, such as a dataclass, the tensors are kept. The head may use
            them by key, as in a dict, and as attributes.
        latent: Z, the number of latent dimensions.
        posterior, likelihood, prior: as in `vae`.

    Raises:
        BadType: net is a class or a factory, or has a ScriptModule; encode or decode is bound to a module; a head does
            not return a distribution.
        BadValue: net has no such method or submodule; encode or decode draws random numbers in evaluation mode;
            `heads.bernoulli_probs` gets numbers outside [0, 1]; a parameter is used by both encode and decode, or so is
            a buffer that they change; encode, decode or a head fails, or their shapes do not fit; net has a lazy
            parameter, is on the `meta` device or cannot be copied.

    Warns:
        UserWarning: `heads.bernoulli` gets probabilities, or a head of a logarithm a standard deviation.
    """
    model = _adopted(
        _copied(net), encode=encode, decode=decode, latent=latent, posterior=posterior, likelihood=likelihood,
        prior=prior,
    )  # fmt: skip
    device = next((t.device for t in _tensors(net).values()), torch.device("cpu"))
    trained = Trained(model, *model.init(random.key(0, device=device)))
    _try_model(*trained, z=_trial_latents(net, 3, 2, latent))
    return trained


@checks.arguments
def to_module(net: Net, params: Params, state: State) -> nn.Module:
    """Returns a copy of the module with trained parameters and buffers; the inverse of `from_module`.

    Its `state_dict()` loads strictly into `net`. What encoder and decoder do not use is as in `net`, and so are dtypes,
    devices and the training mode. A learned prior has no place in `net`: keep `params["prior"]` apart.

    Raises:
        BadType: params or state is not a dict of dicts of tensors.
        BadValue: params or state has a tensor that `net` lacks, or of another shape; or `net` cannot be copied.
    """
    made = _copied(net)
    tensors = _tensors(made)
    for what, whole in {"params": params, "state": state}.items():
        for part in ("encoder", "decoder"):
            if part not in whole:
                raise BadValue(f"{what} lacks {part!r}: it must be of the model that from_module returned")
            for name, value in checks.mapping(f"{what}[{part!r}]", whole[part]).items():
                if name == KEY:  # of random layers, whose module holds no key
                    continue
                into = tensors.get(name)
                if into is None:
                    raise BadValue(f"net has no {checks.describe(name)}, which {what}[{part!r}] has: give the same net")
                if checks.concrete(name, value).shape != into.shape:
                    raise BadValue(f"{name} of {what} has shape {list(value.shape)}: in net it is {list(into.shape)}")
                with torch.no_grad():
                    into.copy_(value)
    return made


@remembered
def _adopted(
    net: nn.Module, *, encode: str | Call, decode: str | Call, latent: int,
    posterior: Callable[[Any], Posterior], likelihood: heads.Head, prior: Callable[[], nn.Module],
) -> VAE:  # fmt: skip
    """The model of a module that nothing else changes."""
    into, out_of = _call("encode", encode, net), partial(_decoded, _call("decode", decode, net))
    head = partial(_headed, likelihood)
    out, decoder = _use(net, out_of, f"decode cannot take latents with latent={latent}", _trial_latents(net, 2, latent))
    x = _like_data(_tried("likelihood cannot take the output of decode", head, out))
    if likelihood is heads.bernoulli_probs and isinstance(out, Tensor):
        low, high = (float(value) for value in out.detach().aminmax())
        if low < 0 or high > 1:
            raise BadValue(
                f"decode returns numbers from {low:.3g} to {high:.3g}, and heads.bernoulli_probs takes probabilities: "
                "for logits, give likelihood=heads.bernoulli"
            )
    code, encoder = _use(net, into, "encode cannot take data of the shape that the likelihood describes", x)
    if posterior in (heads.normal_logvar, heads.normal_logsigma):
        _warn_of_a_scale(code)
    _check_apart(net, encoder, decoder)
    return vae(
        encoder=partial(copy.deepcopy, _part(net, encoder, into)),
        decoder=partial(copy.deepcopy, _part(net, decoder, out_of)),
        latent=latent, posterior=posterior, likelihood=head, prior=prior,
    )  # fmt: skip


def _warn_of_a_scale(code: Any) -> None:
    """Warns if the second output of an encoder is positive everywhere, as a standard deviation is."""
    second = code[1] if isinstance(code, tuple | list) and len(code) == 2 else None
    if isinstance(second, Tensor) and second[0].numel() > _FEW and bool((second > 0).all()):
        warnings.warn(
            "the second output of encode is positive everywhere, and the head takes a logarithm: for a standard "
            "deviation, give posterior=lambda out: fv.distributions.Normal(*out)", stacklevel=5,
        )  # fmt: skip


_FEW = 7
"""So many numbers of a datum may be positive by chance."""


# What a user gives for encode and decode, as a function (net, input) -> output


def _call(name: str, given: str | Call, net: nn.Module) -> Call:
    if not isinstance(given, str):
        return given
    found: Any = net
    for step in given.split("."):
        if not hasattr(found, step):
            raise unknown(f"method or submodule for {name}", step, _callables(found))
        found = getattr(found, step)
    checks.function(f"{given} of net", found)
    return partial(_call_named, tuple(given.split(".")))


def _call_named(path: tuple[str, ...], net: Any, x: Tensor) -> Any:
    for name in path:
        net = getattr(net, name)
    return net(x)


def _callables(of: Any) -> set[str]:
    """The names of submodules and of the methods that a module does not have from nn.Module."""
    methods = {name for name in dir(type(of)) if name[0] != "_" and callable(getattr(type(of), name))}
    return methods - set(dir(nn.Module)) | {"forward", *getattr(of, "_modules", ())}


def _decoded(decode: Call, net: nn.Module, z: Tensor) -> Any:
    """The output, which `vmap` must be able to batch: an object becomes the dict of its tensors."""
    out = decode(net, z)
    if isinstance(out, Tensor | tuple | list):
        return out
    named = out if isinstance(out, Mapping) else getattr(out, "__dict__", None)
    if named is None:
        raise BadType(f"decode returned {checks.describe(out)}: it must return tensors, alone or in a tuple or dict")
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _headed(head: heads.Head, out: Any) -> Any:
    return head(_Fields(out) if isinstance(out, dict) else out)


class _Fields(dict[str, Tensor]):
    """A dict whose values are attributes, too."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"no {name!r}, only {', '.join(self)}")


# The tensors and submodules that a function of a module uses


class _Use(NamedTuple):
    tensors: set[str]  # with all names of each
    changed: set[str]  # the buffers that were changed
    draws: bool  # whether it draws random numbers


class _Recorder(TorchDispatchMode):
    """Records the memory of every tensor that an operator takes, which reading a shape or a device is not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {_memory(leaf) for leaf in tree.leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided and tensor.numel() else id(tensor)


@torch.enable_grad()
def _use(net: nn.Module, call: Call, failed: str, x: Tensor) -> tuple[Any, _Use]:
    """The output for x, and what was used in training and evaluation mode."""
    trial, name, draws = _copied(net), failed.split()[0], False
    before, recorder = _tensors(trial), _Recorder()
    for train in (True, False):
        trial.train(train)
        with _restored_generators() as have_drawn:
            with recorder:
                out = _tried(failed, call, trial, x.clone())
            drawn = have_drawn()
        if drawn and not train:
            raise BadValue(
                f"{name} draws random numbers in evaluation mode: it must return the parameters of a distribution, "
                "and no sample of it"
            )
        draws |= drawn
    used = {path for path, t in before.items() if _memory(t) in recorder.seen}
    if not used:
        raise BadValue(f"{name} uses no parameter or buffer: it must use those of the module that it is given")
    after, kept = _tensors(trial), _tensors(net)
    changed = {path for path in after.keys() & kept if not torch.equal(after[path], kept[path])}
    return out, _Use(used, changed, draws)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by all of their names."""
    return dict(chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)))


def _check_apart(net: nn.Module, encoder: _Use, decoder: _Use) -> None:
    for name, tensor in _tensors(net).items():
        if name in encoder.tensors & decoder.tensors:
            if tensor.requires_grad:
                raise BadValue(
                    f"encode and decode both use the parameter {name!r}, but each parameter must belong to the encoder "
                    "or to the decoder, because estimators treat their gradients differently: untie or freeze it"
                )
            if name in encoder.changed | decoder.changed:
                raise BadValue(f"encode and decode both use the buffer {name!r} and change it: give each its own")


def _part(net: nn.Module, use: _Use, call: Call) -> "_Part":
    """A copy of a module with those tensors alone that a function uses."""
    net = copy.deepcopy(net)
    for path, module in list(net.named_modules(remove_duplicate=False)):
        prefix = f"{path}." if path else ""
        for held in (module._parameters, module._buffers):
            for name, tensor in list(held.items()):
                if tensor is not None and prefix + name not in use.tensors:
                    del held[name]
                    vars(module)[name] = _Unused(prefix + name, tensor)
        for name, child in module._modules.items():
            names = {f"{prefix}{name}.{path}" for path in (_tensors(child) if child else ())}
            if names and not names & use.tensors:
                module._modules[name] = _Hidden(child)
    return _Part(net, call, use.draws)


class _Part(nn.Module):
    """A function of a module as a module. Its tensors have the names that they have in that module."""

    net: nn.Module
    call: Call
    draws_in_forward: bool

    def __init__(self, net: nn.Module, call: Call, draws: bool) -> None:
        super().__init__()
        self.draws_in_forward = draws
        vars(self).update(_parameters=net._parameters, _buffers=net._buffers, _modules=net._modules)
        vars(self).update(net=net, call=call)  # not registered as a submodule, which would prefix the names

    def train(self, mode: bool = True) -> "_Part":
        self.net.train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.call(self.net, x)


class _Hidden(nn.Module):
    """A submodule of which no tensor is used. The compiler does not see its layers, some of which it cannot trace."""

    module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        vars(self)["module"] = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "module" not in vars(self):
            raise AttributeError(name)
        return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class _Unused:
    """Replaces a tensor that a network does not use: it has a shape, dtype and device, but no values."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.shape, self.dtype, self.device = name, tensor.shape, tensor.dtype, tensor.device

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (name, *_) = [leaf.name for leaf in tree.leaves((args, kwargs)) if isinstance(leaf, cls)]
        raise BadValue(
            f"encode or decode uses {name!r} for these data, but not for those on which from_module tried it: the "
            "parameters that it uses must not depend on its input"
        )


# Trials


def _trial_latents(net: nn.Module, *sizes: int) -> Tensor:
    like = next((t for t in _tensors(net).values() if t.is_floating_point()), torch.zeros(()))
    return random.normal(random.key(CHECK_SEED), sizes).to(like)


def _like_data(p: Any) -> Tensor:
    leaf = next(iter(tree.leaves(p)), None)
    return torch.zeros_like(checks.tensor("the first parameter of the likelihood", leaf).detach())


def _try_model(model: VAE, params: Params, state: State, z: Tensor) -> None:
    """Encodes, and decodes latents [N, B, Z], so that errors of the heads are found now."""
    x = _like_data(model.decode(params, state, z[0])[0])
    q, _ = _tried("posterior cannot take the output of encode for data", lambda x: model.encode(params, state, x), x)
    p, _ = _tried("likelihood cannot take the output of decode for", lambda z: model.decode(params, state, z), z)
    _tried("each tensor that decode returns must start with the axis B: for data", lambda x: log_p_x_given_z(p, x), x)
    check_prior(q, model.prior(params, state, z)[0])
    warn_of_probabilities(p, lambda: model.decode(params, state, 100 * z)[0])


def _tried(failed: str, f: Callable[..., Any], *args: Any) -> Any:
    """f of the arguments; an error in the user's code becomes one line that starts with `failed`."""
    try:
        return f(*args)
    except (FuncvaeError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {checks.one_line(str(error))}"
        raise BadValue(f"{failed} ({checks.describe(args[-1])}): {reason}") from error


def _copied(net: nn.Module) -> nn.Module:
    """A deep copy. Tensors with a graph, which a module may keep from its last call, are detached."""
    held = [value for module in net.modules() for value in (*vars(module).values(), *module._buffers.values())]
    try:
        return copy.deepcopy(net, {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf})
    except Exception as error:
        raise BadValue(f"net cannot be copied: {checks.one_line(str(error))}") from error


@contextmanager
def _restored_generators() -> Iterator[Callable[[], bool]]:
    """Restores the global generators of torch; yields a function that returns whether they have been used."""
    before = [(g, g.get_state()) for g in (torch.default_generator, *torch.cuda.default_generators)]
    try:
        yield lambda: any(not torch.equal(generator.get_state(), state) for generator, state in before)
    finally:
        for generator, state in before:
            generator.set_state(state)
