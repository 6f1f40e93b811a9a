"""Turns any `nn.Module` into a pure (init, apply) pair. Only this module uses `functional_call`.

```python
net = functional(lambda: nn.Linear(3, 2))
params, state = net.init(key)
out, state = net.apply(params, state, x, train=True)
```
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from traceback import walk_tb
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from funcvae import random, tree
from funcvae._support import checks, finding_draws
from funcvae._support.keyed_draws import InFactory, InForward, let_compiler_dispatch
from funcvae._support.pickling import by_call, remembered
from funcvae._support.reprs import short_repr
from funcvae.errors import BadType, BadValue

__all__ = [
    "KEY", "Apply", "Functional", "Network", "Params", "State", "advance", "for_part", "functional", "network",
]  # fmt: skip

Params = dict[str, Any]
"""Parameters: a dict of tensors by name, or of such dicts for the parts of a model."""
State = dict[str, Any]
"""What a network carries from one call to the next, such as running means, in the form of `Params`; {} if empty."""

KEY = "random_key"
"""The name in the state of a network's key, from which its random layers draw. Other networks have no key."""


class Apply(Protocol):
    """A network as a pure function of its parameters, its state and its inputs."""

    def __call__(self, params: Params, state: State, *inputs: Any, train: bool) -> tuple[Any, State]:
        """The output and the new state of the network."""
        ...


@short_repr
@by_call
class Functional(NamedTuple):
    """A pure network.

    `init(key)` returns (params, state): flat dicts of tensors with the names that the module gives them. `state` holds
    the buffers and the frozen parameters, and "random_key" if the module has random layers. `apply(params, state,
    *inputs, train=...)` returns (output, new state) and does not modify its arguments.
    """

    init: Callable[[random.Key], tuple[Params, State]]
    """Makes (params, state) from a key."""
    apply: Apply
    """Maps (params, state, inputs) to the output and the new state."""


class Network(NamedTuple):
    """What `functional` returns, but without checks of the arguments."""

    init: Callable[[random.Key], tuple[Params, State]]
    apply: Apply
    check: Callable[..., None]  # raises BadType or BadValue for params or state that `apply` cannot take
    frozen: frozenset[str]  # the names in the state of the frozen parameters
    inputs: int  # the number of inputs that the module takes


@remembered
def functional(factory: Callable[[], nn.Module]) -> Functional:
    """Turns a factory of any `nn.Module` into a pure (init, apply) pair.

    `init` runs the factory and makes every random draw of the module's initialisers from the key: draw i uses
    `fold_in(key, i)`. The global generator of torch is neither read nor changed. A draw with a generator of the
    factory's own is left as it is, so it is the same for every key. Parameters and buffers are on the device of the
    key. Under `vmap` over keys, `init` runs key by key. (Draws from other libraries, such as numpy, are not detected
    and not reproducible.)

    A parameter with `requires_grad=False` is frozen: a constant in the state, which nothing trains, averages or sends
    to other processes. A buffer may change in every forward pass, so use a frozen parameter for a constant.

    `apply` works under `grad`, `vmap` and `torch.compile(fullgraph=True)`. The module works on copies of its inputs,
    which it may change in place, and of its buffers, which are returned as the new state. So BatchNorm in training mode
    also works under an outer `vmap`: each mapped slice has its own statistics.

    Random layers, such as dropout or noise in `forward`, draw from the key "random_key" in the state. In training mode,
    `apply` splits it in two: draw i of the call uses `fold_in` of the first with i, and the second is the key of the
    new state. In evaluation mode nothing may be drawn. A module gets a key if it has layers of torch that draw (dropout
    with p > 0, RReLU, recurrent and attention layers with dropout), or if the code of its `forward` calls a random
    function of torch. For code in which this is not found, set `draws_in_forward = True` in the class of the layer.

    Raises:
        BadType: the argument is not a factory of a new `nn.Module`; the factory draws with an operator that cannot be
            drawn from a key, or with a generator that starts in another state at each call; or (from `apply`) the
            module uses activation checkpointing.
        BadValue: a tensor of the module is named "random_key"; or (from `apply`) params or state has other names or
            shapes than `init` returns; the module changes a parameter in `forward`; or it draws random numbers there
            without a key, in evaluation mode, or by a function that cannot draw from a key. (Draws without a key are
            not detected under `torch.compile`: call your own module once without it.)
    """
    net = network(factory)
    return Functional(net.init, checks.after(net.check)(net.apply))


def network(factory: Callable[[], nn.Module]) -> Network:
    """Returns `functional` without checks, and what its callers need to know of the module."""
    if isinstance(factory, nn.Module):
        raise BadType(f"functional takes a factory, not a module: write lambda: {type(factory).__name__}(...)")
    if not callable(factory):
        raise BadType(f"functional takes a factory of an nn.Module, not {checks.describe(factory)}")

    # One skeleton for each mode, so that calls do not interfere. Their values are never used, so they are moved to
    # `meta`, where they need no memory. (A module with plain tensor attributes cannot be built on `meta`.)
    draws, others = InFactory(random.key(0)), InFactory(random.key(0))
    module, other = _build(factory, draws), _build(factory, others)
    _check_independent(module, other)
    if not all(map(torch.equal, draws.generator_states, others.generator_states)):
        raise BadType(
            "the factory draws with a torch.Generator that starts in another state at each call: make and seed it in "
            "the factory"
        )
    aliases = _aliases(module)
    shapes = [_shapes(tensors) for tensors in _split(module)]  # of params and state
    if KEY in shapes[0] | shapes[1]:
        raise BadValue(f"{type(module).__name__} has a tensor named {KEY!r}, the name of a network's key: rename it")
    frozen = frozenset(name for name, p in module.named_parameters() if not p.requires_grad)
    skeletons = {True: module.to("meta").train(), False: other.to("meta").eval()}
    keyed = finding_draws.draws(module)
    if keyed:
        shapes[1][KEY] = torch.Size([2])
    compilable = not keyed or let_compiler_dispatch()
    attention = any(isinstance(layer, nn.MultiheadAttention) for layer in module.modules())
    tried: list[bool] = []

    def check(params: Params, state: State, *inputs: Any, train: bool = False) -> None:
        checks.flag("train", train)
        _check("params", params, shapes[0])
        _check("state", state, shapes[1])
        held = [*params.values(), *state.values()]
        for value in tree.leaves(inputs):
            if isinstance(value, Tensor) and held:
                checks.same_device(input=checks.tensor("an input", value), params=held[0])

    @torch.enable_grad()  # autograd disables it in a Function
    def made(key: random.Key) -> list[Tensor]:
        params, state = _split(_build(factory, InFactory(key.cpu())).to(key.device))
        own = [random.fold_in(key, _KEY_NUMBER)] if keyed else []
        return [t.detach() for t in (*params.values(), *state.values(), *own)]

    @checks.arguments
    def init(key: random.Key) -> tuple[Params, State]:
        tensors = iter(_PerKey.apply(made, checks.concrete("key", key)))
        params, state = ({name: next(tensors) for name in names} for names in shapes)
        return params, state

    def apply(params: Params, state: State, *inputs: Any, train: bool) -> tuple[Any, State]:
        if not torch.compiler.is_compiling() and not tried:
            rows = tree.map(lambda x: x[:2] if isinstance(x, Tensor) and x.ndim else x, inputs)  # take little memory
            for mode in skeletons:
                _check_forward(module, partial(run, inputs=rows, train=mode), params, state)
            tried.append(True)
        return run(params, state, inputs, train)

    def run(params: Params, state: State, inputs: tuple[Any, ...], train: bool) -> tuple[Any, State]:
        if not compilable and torch.compiler.is_compiling():
            raise BadValue("this torch cannot compile random layers")
        rest = {name: v for name, v in state.items() if name != KEY}
        held = {name: v if name in frozen else _copy_for(inputs, v) for name, v in rest.items()}
        tensors = {**params, **held}
        tensors |= {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
        # The module may change its inputs in place. (A tree of one tensor would take longer.)
        inputs = tuple(_copy(x) if isinstance(x, Tensor) else tree.map(_copy, x) for x in inputs)
        key, next_key = _split_key(state[KEY]) if train and keyed else (None, state.get(KEY))
        draws = nullcontext() if key is None else InForward(key)
        with _attention_for_transforms() if attention else nullcontext(), _no_draws(inputs, train, keyed), draws:
            out = functional_call(skeletons[train], tensors, inputs, tie_weights=False)
        new = {name: v if name in frozen else tensors[name] for name, v in rest.items()}
        return out, {**new, KEY: next_key} if keyed else new

    return Network(init, apply, check, frozen, _inputs(module.forward))


def _inputs(forward: Callable[..., Any]) -> int:
    """The number of inputs that a function takes by position."""
    kinds = [each.kind for each in inspect.signature(forward).parameters.values()]
    several = inspect.Parameter.VAR_POSITIONAL in kinds
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sys.maxsize if several else sum(kind in positional for kind in kinds)


def advance(state: State) -> State:
    """The state of a network or of a model with the keys that a call in training mode returns."""
    return _with_keys(state, lambda key: _split_key(key)[1])


def for_part(state: State, number: int | Tensor) -> State:
    """The state of a network or of a model for one of several parts that draw independently, such as shards.

    Numbers [n] yield a batch of keys [n, 2].
    """

    def new(key: random.Key) -> random.Key:
        use, _ = _split_key(key)
        if isinstance(number, Tensor) and number.ndim:
            return torch.vmap(_fold_in, (None, 0))(use, number)
        return _fold_in(use, number)

    return _with_keys(state, new)


def _with_keys(state: State, new: Callable[[random.Key], random.Key]) -> State:
    return {
        name: new(v) if name == KEY else _with_keys(v, new) if isinstance(v, dict) else v for name, v in state.items()
    }


class _PerKey(torch.autograd.Function):
    """Calls a function of a key; under `vmap`, key by key."""

    @staticmethod
    def forward(make: Callable[[random.Key], list[Tensor]], key: random.Key) -> tuple[Tensor, ...]:
        return tuple(make(key))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, make: Callable[[random.Key], list[Tensor]], keys: Tensor) -> Any:
        each = [_PerKey.apply(make, key) for key in keys.unbind(in_dims[1])]
        stacked = tuple(map(torch.stack, zip(*each, strict=True)))
        return stacked, (0,) * len(stacked)


def _build(factory: Callable[[], nn.Module], draws: InFactory) -> nn.Module:
    try:
        with draws:
            module = factory()
    except BadType:
        raise
    except TypeError as error:
        reason, called = checks.one_line(str(error)), error.__traceback__
        if called and called.tb_next:  # raised by the factory's code, not by the call
            raise BadType(f"the factory raised TypeError: {reason}") from error
        raise BadType(f"the factory must take no arguments: {reason}") from error
    if not isinstance(module, nn.Module):
        raise BadType(f"the factory must return an nn.Module: it returned {type(module).__name__}")
    return module


def _split(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a module that are learned, and those of its state: buffers and frozen parameters."""
    learned, state = dict[str, Tensor](), dict(module.named_buffers())
    for name, p in module.named_parameters():
        (learned if p.requires_grad else state)[name] = p
    return learned, state


def _check_independent(module: nn.Module, other: nn.Module) -> None:
    """Raises BadType if two modules share a part that holds tensors, which moving to `meta` would destroy."""
    parts = set(other.modules())
    for name, part in module.named_modules():
        if part in parts and (part is module or next(chain(part.parameters(), part.buffers()), None) is not None):
            which = f"{type(part).__name__} {name!r}" if name else type(part).__name__
            raise BadType(
                f"functional takes a factory of new modules: this one returns the same {which} twice; make it in the "
                "factory, or copy it there with copy.deepcopy"
            )


def _shapes(named: dict[str, Tensor]) -> dict[str, torch.Size]:
    if lazy := [name for name, t in named.items() if nn.parameter.is_lazy(t)]:
        raise BadType(f"{lazy[0]} has no shape before a forward pass: give its layer the number of inputs")
    return {name: t.shape for name, t in named.items()}


def _check(what: str, given: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    """Raises unless these are tensors of the names and shapes that `init` returns."""
    if wrong := sorted(checks.mapping(what, given).keys() ^ shapes.keys(), key=str):
        lacks = "lacks" if wrong[0] in shapes else "has unexpected"
        raise BadValue(f"{what} {lacks} {checks.describe(wrong[0])}: it must be of this network, as init returns it")
    for name, shape in shapes.items():
        if checks.tensor(name, given[name]).shape != shape:
            raise BadValue(f"{name} of {what} has shape {list(given[name].shape)}: it must be {list(shape)}")


def _aliases(module: nn.Module) -> dict[str, str]:
    """Maps each further name of a tensor to its first: tied weights, which moving to `meta` would untie."""
    names: dict[int, str] = {}
    tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: first for name, t in tensors if (first := names.setdefault(id(t), name)) != name}


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _copy_for(inputs: tuple[Any, ...], buffer: Tensor) -> Tensor:
    """A copy of a buffer for the module to update in place.

    A zero made from the input is added to a float buffer, so that `vmap` batches the copy exactly when the input is.
    """
    x = next((x for x in tree.leaves(inputs) if isinstance(x, Tensor)), buffer)
    return buffer + x.new_zeros((), dtype=buffer.dtype) if buffer.is_floating_point() else buffer.clone()


def _check_forward(module: nn.Module, run: Callable[[Params, State], Any], params: Params, state: State) -> None:
    """Raises BadType if a module uses `torch.utils.checkpoint`, BadValue if it changes a parameter.

    Checkpointing fails under `vjp`: it would run the layers again in the backward pass, when the module no longer has
    these parameters. Any other error is left to the call itself.
    """
    with torch.inference_mode(False):  # where tensors count their changes
        params, state = tree.map(torch.clone, (params, state))
    tensors = {**params, **state}
    before = {name: t._version for name, t in tensors.items()}
    try:
        torch.func.vjp(lambda params: run(params, state), params)
    except Exception as error:
        if any(frame.f_code.co_filename == checkpoint.__file__ for frame, _ in walk_tb(error.__traceback__)):
            raise BadType(
                f"{type(module).__name__} uses torch.utils.checkpoint, which funcvae does not support: call the layers "
                "directly; to save memory, use the argument chunk of fit, or estimators.in_chunks"
            ) from None
    with suppress(Exception):
        run(params, state)
    if changed := [name for name, t in tensors.items() if t._version != before[name]]:
        raise BadValue(
            f"{type(module).__name__} changes the parameter {changed[0]!r} in forward: make it a buffer, or change a "
            "copy of it"
        )


@contextmanager
def _attention_for_transforms() -> Iterator[None]:
    """Restricts attention to operators with batching rules and derivatives, which its fused kernels lack."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _no_draws(inputs: tuple[Any, ...], train: bool, keyed: bool) -> Iterator[None]:
    """Raises BadValue for a draw from a global generator of torch, and restores its state. Inactive while compiling."""
    if torch.compiler.is_compiling():
        yield
        return
    on_cuda = {x.device.index for x in tree.leaves(inputs) if isinstance(x, Tensor) and x.is_cuda}
    generators = [torch.default_generator, *(torch.cuda.default_generators[i] for i in on_cuda)]
    before = [generator.get_state() for generator in generators]
    advice = "draw only if self.training"
    if train:
        advice = (
            "use functions of torch such as randn_like and dropout"
            if keyed
            else "set draws_in_forward = True in its class"
        )
    message, drawn = f"the module draws random numbers in forward without a key: {advice}", False
    try:
        yield
    except RuntimeError as error:  # raised by `vmap` itself
        if "called random operation" in str(error):
            raise BadValue(message) from error
        raise
    finally:
        for generator, state in zip(generators, before, strict=True):
            if not torch.equal(generator.get_state(), state):
                generator.set_state(state)
                drawn = True
    if drawn:
        raise BadValue(message)


_KEY_NUMBER = 2**31 - 1  # no draw of an initialiser has it
_fold_in, _split_key = checks.unchecked(random.fold_in), checks.unchecked(random.split)
