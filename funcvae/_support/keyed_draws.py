"""Random draws of torch from a key, in place of torch's global generators.

`InFactory` serves the draws of a module's initialisers, and `InForward` those of its forward pass: draw i uses
`fold_in(key, i)`. A draw that names a generator of its own is left as it is.
"""

import math
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from funcvae import random
from funcvae._support import checks
from funcvae.errors import BadType, BadValue

__all__ = ["FUNCTIONS", "METHODS", "InFactory", "InForward", "let_compiler_dispatch"]

Draw = Callable[[random.Key, Any, Any], Any]
"""Maps a key, and the arguments and keywords of a random function of torch, to its result."""


class InFactory(TorchDispatchMode):
    """Draws from a key below autograd, where every random operator of an initialiser arrives."""

    def __init__(self, key: random.Key) -> None:
        super().__init__()
        self.key, self.count = key, 0
        self.generator_states: list[Tensor] = []  # the state of the generator before each draw that names one

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # True would import the compiler, which takes longer than importing torch
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        named = [g for g in (*args, *kwargs.values()) if isinstance(g, torch.Generator) and not _is_global(g)]
        if named:
            self.generator_states.append(named[0].get_state())
            return func(*args, **kwargs)
        draw = _DRAWS.get(func.overloadpacket.__name__)
        if draw is None:
            raise BadType(
                f"the factory calls {func}, which cannot be drawn from a key: give it generator=torch.Generator()."
                f"manual_seed(0), made in the factory, or use {', '.join(sorted(_DRAWS))}"
            )
        key = _fold_in(self.key, self.count)
        self.count += 1
        return draw(key, args, {name: value for name, value in kwargs.items() if name != "generator"})


class InForward(TorchFunctionMode):
    """Draws from a key above `torch.func`, so under `vmap` the key may be batched. The compiler can trace it."""

    def __init__(self, key: random.Key) -> None:
        super().__init__()
        self.key, self.count = key, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inner = _PYTHON.get(func)
        if inner is not None:
            with self:  # torch has left the mode
                return inner(*args, **kwargs)
        draw, generator = _OF_FUNCTION.get(func), kwargs.get("generator")
        if draw is None or (generator is not None and not _is_global(generator)):
            return func(*args, **kwargs)
        key = _fold_in(self.key, self.count)
        self.count += 1
        return draw(key, args, {name: value for name, value in kwargs.items() if name != "generator"})


def let_compiler_dispatch() -> bool:
    """Lets torch's compiler see the mode for all random functions; returns whether it can.

    Torch 2.14 skips `randn_like`, `rand_like` and `normal`, which would then draw from a global generator.
    """
    import torch._dynamo.variables.torch as traced

    if not hasattr(traced, "get_overridable_functions"):
        return False
    traced.get_overridable_functions().update(f for f in _OF_FUNCTION if f in torch.overrides.get_ignored_functions())
    return True


def _is_global(generator: Any) -> bool:
    """Whether a generator is one of torch's own. (They are compared by address, because each call wraps them anew.)"""
    own: list[Any] = [torch.default_generator, *torch.cuda.default_generators]
    return any(generator._cdata == each._cdata for each in own)


def _bind(args: Any, kwargs: Any, *names: tuple[str, Any]) -> list[Any]:
    """The leading arguments of a function, by position or by name, with their defaults."""
    values = list(args[: len(names)])
    return values + [kwargs.get(name, default) for name, default in names[len(values) :]]


def _draw_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_SELF = ("self", None)


# Values for the elements of a tensor.


def _uniform(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    x, low, high = _bind(args, kwargs, _SELF, ("from", 0.0), ("to", 1.0))
    return random.uniform(key, tuple(x.shape), _draw_dtype(x), low, high)


def _normal(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    x, mean, std = _bind(args, kwargs, _SELF, ("mean", 0.0), ("std", 1.0))
    return mean + std * random.normal(key, tuple(x.shape), _draw_dtype(x))


def _exponential(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    x, rate = _bind(args, kwargs, _SELF, ("lambd", 1.0))
    return -torch.log1p(-random.uniform(key, tuple(x.shape), _draw_dtype(x))) / rate


def _bernoulli(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    x, p = _bind(args, kwargs, _SELF, ("p", 0.5))
    return random.bernoulli(key, p, tuple(x.shape))


def _integers(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    """Integers below `to`, or from `from` on: the remainders of 63-bit words, almost equally likely."""
    bounds = [*args[1:], *(kwargs[name] for name in ("from", "to", "low", "high") if name in kwargs)]
    if not bounds:
        raise BadType("random_() without bounds cannot be drawn from a key: give it bounds")
    low, high = bounds if len(bounds) == 2 else (0, bounds[0])
    first, second = random.bits(key, (2, args[0].numel())).long()
    word = (first & 0x7FFFFFFF) << 32 | second & 0xFFFFFFFF
    return (low + word % (high - low)).view(args[0].shape)


# Draws: in-place functions fill their argument. Others first make zeros by the corresponding function, with the
# requested shape, dtype and device. (Under `vmap`, the zeros are not batched and the values may be.)


def _fill(values: Draw) -> Draw:
    return lambda key, args, kwargs: args[0].copy_(values(key, args, kwargs))


def _make(zeros: Callable[..., Tensor], values: Draw) -> Draw:
    def draw(key: random.Key, args: Any, kwargs: Any) -> Tensor:
        like = zeros(*args, **kwargs)
        return values(key, (like,), {}).to(like)

    return draw


def _bernoulli_of(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    x, p = _bind(args, kwargs, ("input", None), ("p", None))
    return _bernoulli(key, (x, x if p is None else p), {}).to(x)


def _normal_around(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    mean, std, size = _bind(args, kwargs, ("mean", 0.0), ("std", 1.0), ("size", None))
    if size is None:
        like = torch.zeros_like(mean + std)
    else:
        like = torch.zeros(size, dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    return _normal(key, (like, mean, std), {}).to(like)


def _permutation(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    (n,) = _bind(args, kwargs, ("n", None))
    return random.permutation(key, n).to(kwargs.get("dtype") or torch.int64)


def _integers_of_size(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    bounds = [*args, *(kwargs[name] for name in ("low", "high", "size") if name in kwargs)]
    size = bounds.pop()
    like = {name: value for name, value in kwargs.items() if name in ("dtype", "device")}
    zeros = torch.zeros(size, **{"dtype": torch.int64, **like})
    return _integers(key, (zeros, *bounds), {}).to(zeros)


_DRAWS: dict[str, Draw] = {
    "uniform_": _fill(_uniform),
    "normal_": _fill(_normal),
    "exponential_": _fill(_exponential),
    "bernoulli_": _fill(_bernoulli),
    "random_": _fill(_integers),
    "rand": _make(torch.zeros, _uniform),
    "randn": _make(torch.zeros, _normal),
    "rand_like": _make(torch.zeros_like, _uniform),
    "randn_like": _make(torch.zeros_like, _normal),
    "bernoulli": _bernoulli_of,
    "normal": _normal_around,
    "randperm": _permutation,
    "randint": _integers_of_size,
}


# Layers: each has torch's formula.


def _dropout(key: random.Key, args: Any, kwargs: Any, *, feature: bool = False, alpha: float = 0.0) -> Tensor:
    """x·kept/(1-p), where `kept` is one with probability 1-p; with `feature`, each channel is kept or dropped whole.

    With alpha, dropped elements become -alpha, and a([x or -alpha] + alpha p) has the mean and variance of x if those
    are 0 and 1: a = ((1 + alpha² p)(1 - p))^-½.
    """
    x, p, train = _bind(args, kwargs, ("input", None), ("p", 0.5), ("train", True))
    if not train or p == 0:
        return x
    shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if feature else tuple(x.shape)
    kept = random.bernoulli(key, 1 - p, shape).to(x.dtype)
    if p == 1:
        return x * kept
    if not alpha:
        return x * (kept / (1 - p))
    a = ((1 + alpha**2 * p) * (1 - p)) ** -0.5
    return x * (a * kept) + a * alpha * (kept - 1 + p)


def _rrelu(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    """x where it is positive, otherwise x times a uniform slope."""
    x, low, high, train = _bind(args, kwargs, ("input", None), ("lower", 1 / 8), ("upper", 1 / 3), ("training", False))
    slope = _uniform(key, (x, low, high), {}).to(x) if train else (low + high) / 2
    return torch.where(x > 0, x, x * slope)


def _attention(key: random.Key, args: Any, kwargs: Any) -> Tensor:
    """dropout(softmax(q kᵀ scale + mask)) v."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = (None, None, None, None, 0.0, False, None, False)
    q, k, v, mask, p, causal, scale, grouped = _bind(args, kwargs, *zip(names, defaults, strict=True))
    if p == 0:
        return F.scaled_dot_product_attention(*args, **kwargs)
    if grouped:
        k, v = (each.repeat_interleave(q.shape[-3] // each.shape[-3], -3) for each in (k, v))
    logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return _dropout(key, (logits.softmax(-1), p), {}) @ v


def _recurrent(function: Callable[..., Any], key: random.Key, args: Any, kwargs: Any) -> Any:
    """Runs the layers of a recurrent network one after another, with dropout between them."""
    at = 2 if isinstance(args[3], bool) else 3  # a packed sequence has the sizes of its batches before the state
    (x, *sizes), hidden, weights = args[: at - 1], args[at - 1], args[at]
    biases, layers, p, train, *rest = args[at + 1 :]
    if not train or p == 0 or layers == 1:
        return function(*args, **kwargs)
    of_layer, last = len(weights) // layers, []
    for i in range(layers):
        own = hidden.chunk(layers)[i] if isinstance(hidden, Tensor) else [h.chunk(layers)[i] for h in hidden]
        x = _dropout(_fold_in(key, i), (x, p), {}) if i else x
        part = weights[i * of_layer : (i + 1) * of_layer]
        x, *new = function(x, *sizes, own, part, biases, 1, 0.0, train, *rest)
        last.append(new)
    return x, *map(torch.cat, zip(*last, strict=True))


_ALPHA = 1.7580993408473766  # of SELU: its scale times its alpha
_CHANNELS, _SELU = partial(_dropout, feature=True), partial(_dropout, alpha=_ALPHA)
_DROPOUTS: dict[str, Draw] = {
    "dropout": _dropout,
    "feature_dropout": _CHANNELS,
    "alpha_dropout": _SELU,
    "feature_alpha_dropout": partial(_CHANNELS, alpha=_ALPHA),
    "rrelu": _rrelu,
}


def _refuse(name: str) -> Draw:
    def draw(key: random.Key, args: Any, kwargs: Any) -> Any:
        raise BadValue(f"the module calls {name} in forward, which cannot be drawn from a key: use {_KNOWN}")

    return draw


_KNOWN = ", ".join(sorted({*_DRAWS, *_DROPOUTS}))
_REFUSED = (
    "binomial", "cauchy_", "geometric_", "log_normal_", "multinomial", "native_dropout", "poisson", "randint_like",
    "_sample_dirichlet", "_standard_gamma",
)  # fmt: skip
_IN_FORWARD: dict[str, Draw] = {
    **{name: _refuse(name) for name in _REFUSED},
    **_DRAWS,
    **_DROPOUTS,
    **{f"{name}_": _fill(draw) for name, draw in _DROPOUTS.items()},
    "scaled_dot_product_attention": _attention,
    **{name: partial(_recurrent, getattr(torch, name)) for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")},
}
_OF_FUNCTION: dict[Any, Draw] = {
    getattr(place, name): draw
    for name, draw in _IN_FORWARD.items()
    for place in (torch, Tensor, F)
    if hasattr(place, name) and not isinstance(getattr(place, name), FunctionType)
}


def _false(*args: Any) -> bool:
    return False


def _within_mode(function: FunctionType) -> FunctionType:
    """The same Python function of torch, but without its first lines, which would call the mode again."""
    own = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    own |= dict.fromkeys([name for name in own if name.startswith("has_torch_function")], _false)
    return FunctionType(function.__code__, own, function.__name__, function.__defaults__)


_PYTHON: dict[Any, FunctionType] = {
    getattr(F, name): _within_mode(getattr(F, name))
    for name in (
        "alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "gumbel_softmax",
        "multi_head_attention_forward", "rrelu",
    )
}  # fmt: skip

_LAYERS = ("gru", "lstm", "multi_head_attention_forward", "rnn_relu", "rnn_tanh", "scaled_dot_product_attention")
FUNCTIONS = frozenset(f for f in (*_OF_FUNCTION, *_PYTHON) if f.__name__ not in _LAYERS)
"""The random functions and methods of torch."""
METHODS = frozenset({f.__name__ for f in FUNCTIONS if hasattr(Tensor, f.__name__)} | {"rsample"})
"""The names of random methods of tensors and of torch's distributions."""

_fold_in = checks.unchecked(random.fold_in)
