"""Keys and draws equal to those of `jax.random`: Threefry-2x32 with 20 rounds and partitionable counters.

A key is an int32 tensor [2] that holds two 32-bit words; `key.view(torch.uint32)` shows them as JAX prints them. Every
function is pure: it neither reads nor changes a global generator. The same key gives the same bits on every device,
under `torch.func.vmap` (a batch of keys is [R, 2]) and in `torch.compile`. Use a key once: either
`split` it, or `fold_in` numbers, or draw from it.

`key`, `split`, `fold_in`, `bits`, `uniform`, `bernoulli` and `permutation` agree bit for bit with JAX (its default
`jax_threefry_partitionable=True`; float64 as under `jax_enable_x64`). `normal` agrees to rounding: within
2e-6 max(1, |x|) in float32.

Reference: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
"""

import math
from itertools import zip_longest
from typing import Annotated

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Dtype, Indices, Natural
from funcvae.errors import BadType, BadValue

__all__ = [
    "Key", "Shape", "bernoulli", "bits", "flat_indices", "fold_in", "key", "normal", "permutation", "split", "uniform",
]  # fmt: skip


def _is_key(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.int32 or value.layout != torch.strided:
        raise BadType(f"{name} is {checks.describe(value)}: it must be an int32 tensor [2], from random.key(seed)")
    if value.shape != (2,):
        advice = "use torch.func.vmap over a batch of keys"
        raise BadValue(f"{name} has shape {list(value.shape)}: it must be [2]; {advice}")
    return value


def _is_seed(name: str, value: int) -> int:
    return checks.that(lambda seed: 0 <= seed < 2**64, "between 0 and 2**64 - 1")(name, checks.whole(name, value))


Key = Annotated[Tensor, checks.Only(_is_key)]
"""A key, an int32 tensor [2], from which functions draw; see `key`."""
Shape = Annotated[tuple[int, ...], checks.sizes]
"""The shape of a tensor: a tuple of sizes, each 0 or more."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


@checks.arguments
def key(seed: Annotated[int, checks.Only(_is_seed)], *, device: torch.device | str | None = None) -> Key:
    """The key of a seed: the seed's high and low 32-bit words, int32 [2].

    Raises:
        Missing: the device is not available.
    """
    if device is not None:
        device = checks.device(device)
    return torch.tensor([_signed(seed >> 32), _signed(seed & 0xFFFFFFFF)], dtype=torch.int32, device=device)


@checks.arguments
def split(key: Key, num: Natural = 2) -> Tensor:
    """Splits a key into `num` new ones [num, 2]; key i is the hash of the counter (0, i)."""
    checks.fits("num", (num, 2), 8)
    return torch.stack(_threefry(key, *_counters(key, num)), dim=-1)


@checks.arguments
def fold_in(key: Key, data: int | Tensor) -> Key:
    """Derives a new key [2] from a key and a number (a step, an index): the hash of (0, data).

    As in JAX, `fold_in(k, i)` equals `split(k, n)[i]`: use only one of the two on a key.

    Args:
        data: an int in [0, 2**32), or an integer tensor without axes, for use under `vmap` and `torch.compile`.
    """
    if not isinstance(data, Tensor):
        if not 0 <= checks.integer("data", data) < 2**32:
            raise BadValue(f"data is {data}: it must lie between 0 and 2**32 - 1")
        low = torch.full((), _signed(int(data)), dtype=torch.int32, device=key.device)
    elif data.ndim or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise BadValue(f"data is {checks.describe(data)}: it must be an integer tensor without axes")
    else:
        low = data.to(key.device, torch.int32)
    return torch.stack(_threefry(key, torch.zeros_like(low), low), dim=-1)


@checks.arguments
def bits(key: Key, shape: Shape = (), *, at: Indices | None = None) -> Tensor:
    """Random 32-bit words: int32 of the given shape (`.view(torch.uint32)` for JAX's unsigned ones).

    Args:
        at: flat indices into the draw, from `flat_indices`. Only these numbers are drawn; the result has the shape of
            `at`. Indices outside of `shape` are not detected.
    """
    high, low, shape = _words(key, shape, at)
    return (high ^ low).reshape(shape)


@checks.arguments
def flat_indices(shape: Shape, *picked: Tensor | None, device: torch.device | str | None = None) -> Tensor:
    """Flat indices of the elements of an array at the picked indices along its first axes.

    `normal(key, shape, at=flat_indices(shape, None, rows))` equals `normal(key, shape)[:, rows]` but draws no other
    numbers. (Integers and uniform draws agree bit for bit, normal draws to rounding.)

    Args:
        shape: the shape of the whole array.
        picked: for each of the first axes, the indices [n], or None for all.
    """
    if len(picked) > len(shape):
        raise BadValue(f"picked has indices for {len(picked)} axes: shape {list(shape)} has {len(shape)}")
    stride = math.prod(shape)
    kind = torch.int32 if stride <= 2**31 else torch.int64  # the compiler makes slower loops of int64
    at = torch.zeros((), dtype=kind, device=device)
    for size, index in zip_longest(shape, picked):
        stride //= max(1, size)
        if index is None:
            checks.fits("shape", (*at.shape, size), 8)
            index = torch.arange(size, device=device)
        checks.same_device(at=at, index=checks.int32_or_int64("an index", checks.tensor("an index", index, "n")))
        at = at.unsqueeze(-1) + index.to(kind) * stride
    return at


@checks.arguments
def uniform(
    key: Key,
    shape: Shape = (),
    dtype: Dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    *,
    at: Indices | None = None,
) -> Tensor:
    """Uniform draws on [minval, maxval). In a very narrow interval, a draw may round to maxval.

    The leading bits of a random word become the mantissa of a float in [1, 2), from which 1 is subtracted: 23 bits of a
    32-bit word in float32, 52 bits of a 64-bit word in float64. For `at` see `bits`.
    """
    if dtype == torch.float32:
        unit = ((_bits(key, shape, at=at) >> 9) & (2**23 - 1) | 0x3F800000).view(torch.float32) - 1
    else:
        high, low, shape = _words(key, shape, at)
        word = (high.long() << 32) | (low.long() & 0xFFFFFFFF)
        unit = (((word >> 12) & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(torch.float64).reshape(shape) - 1
    if (minval, maxval) == (0.0, 1.0):
        return unit
    most = torch.finfo(dtype).max
    if not (-most <= minval <= maxval <= most and maxval - minval <= most):
        raise BadValue(f"minval is {minval} and maxval is {maxval}: {dtype} must hold them, with minval <= maxval")
    # Bounds and width are rounded to dtype, then multiplied and added with one rounding, as XLA's fused
    # multiply-add does. In float32, computing in float64 gives this result on every device.
    low_, high_ = (torch.full((), v, dtype=dtype, device=unit.device) for v in (minval, maxval))
    return torch.maximum(low_, (unit.double() * (high_ - low_).double() + low_).to(dtype))


@checks.arguments
def normal(key: Key, shape: Shape = (), dtype: Dtype = torch.float32, *, at: Indices | None = None) -> Tensor:
    """Standard normal draws: √2 · erfinv(u), with u uniform on (-1, 1). For `at` see `bits`.

    Equal to `jax.random.normal` to rounding (in float32 within 2e-6 max(1, |x|)), and equal to rounding on all devices.
    """
    above_minus_one = -1.0 + 2.0 ** (-24 if dtype == torch.float32 else -53)  # keeps erfinv finite
    return math.sqrt(2) * _erfinv(2 * _uniform(key, shape, dtype, at=at) + above_minus_one)


@checks.arguments
def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Shape | None = None, *, at: Indices | None = None) -> Tensor:
    """Booleans that are True with probability p. The shape is that of p unless given. For `at` see `bits`."""
    if not isinstance(p, Tensor):
        if not 0 <= checks.number("p", p) <= 1:
            raise BadValue(f"p is {p}: a probability must lie between 0 and 1")
        p = torch.full((), p, dtype=torch.float32, device=key.device)
    u = _uniform(key, tuple(p.shape) if shape is None else shape, checks.float32_or_float64("p", p.dtype), at=at)
    try:
        return u < p
    except RuntimeError as error:
        reason = checks.one_line(str(error))
        raise BadValue(f"p is {checks.describe(p)}, the draw has shape {list(u.shape)}: {reason}") from None


@checks.arguments
def permutation(key: Key, x: int | Tensor) -> Tensor:
    """A random permutation of range(x), int64 [x], or of the rows of a tensor.

    As in JAX, each round sorts stably by random words. There are enough rounds that ties leave no visible bias.
    """
    if isinstance(x, Tensor):
        n = len(checks.tensor("x", x, "n ..."))
    else:
        n = checks.at_least(0)("x", checks.integer("x", x))
        checks.fits("x", (n,), 8)
    order = torch.arange(n, device=key.device)
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))):
        key, round_key = split(key)
        unsigned = _bits(round_key, (n,)) ^ -(2**31)  # with the sign bit flipped, int32 sorts as uint32
        order = order[unsigned.argsort(stable=True)]
    return x[order] if isinstance(x, Tensor) else order


def _threefry(key: Key, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypts the counter words (x0, x1) with the 20-round Threefry-2x32 block cipher.

    int32 arithmetic wraps around, as the cipher requires. Updates are in place, because eager speed depends on the
    number of operations.
    """
    k0, k1 = key.unbind()
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, x1 + k1
    layout, compiling = (x0.shape, x0.stride()), torch.compiler.is_compiling()
    for i in range(5):
        for j, r in enumerate(_ROTATIONS[i % 2]):
            x0 += x1
            # Rotated left by r: x1 · 2^r is x1 << r, and the operator >> keeps the sign.
            x1 = (x1 >> (32 - r)).bitwise_and_((1 << r) - 1).add_(x1, alpha=1 << r)
            x1 ^= x0
            if j % 2 and compiling:
                # Each round uses each word more than once. The compiler would repeat the earlier rounds for every use
                # and take minutes. `as_strided` makes it store the words in variables.
                x0, x1 = x0.as_strided(*layout).clone(), x1.as_strided(*layout).clone()
        x0 += schedule[(i + 1) % 3]
        x1 += schedule[(i + 2) % 3] + (i + 1)
    return x0, x1


def _words(key: Key, shape: Shape, at: Tensor | None) -> tuple[Tensor, Tensor, Shape]:
    """The two words of each number of a draw, flat, and the shape of the draw."""
    if at is None:
        checks.fits("shape", shape, 8)
        return *_threefry(key, *_counters(key, math.prod(shape))), shape
    checks.same_device(key=key, at=at)
    flat = at.flatten()
    if flat.dtype == torch.int32:
        return *_threefry(key, torch.zeros_like(flat), flat), tuple(at.shape)
    return *_threefry(key, (flat >> 32).int(), flat.int()), tuple(at.shape)


def _counters(key: Key, n: int) -> tuple[Tensor, Tensor]:
    """The 64-bit counters 0 … n-1 as (high, low) words."""
    if n <= 2**31:
        low = torch.arange(n, dtype=torch.int32, device=key.device)
        return torch.zeros_like(low), low
    count = torch.arange(n, device=key.device)
    return (count >> 32).int(), count.int()


def _signed(word: int) -> int:
    """The int32 with the same bits as an unsigned 32-bit word."""
    return word - 2**32 if word >= 2**31 else word


# Giles' single-precision polynomials in w = -log(1 - x²), highest power first: (w < 5, w >= 5).
# Reference: Giles (2010), "Approximating the erfinv function".
_GILES = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)


def _erfinv(x: Tensor) -> Tensor:
    """The inverse error function. float32 uses Giles' polynomials, as XLA does: `torch.erfinv` is slow on CPUs."""
    if x.dtype == torch.float64:
        return torch.erfinv(x)
    # On CPUs log1p takes ten times as long as log, and log is accurate enough here: where x² > ½, 1 - x² is
    # exact, and elsewhere its rounding moves the result by a tenth of a unit in the last place. (A GPU might fuse
    # 1 - x·x and then differ from XLA in the tails.)
    w = -torch.log1p(-x * x) if x.is_cuda else -torch.log(1 - x * x)
    near = w < 5
    t = torch.where(near, w - 2.5, w.sqrt() - 3)
    p = torch.zeros_like(x)
    for c, c_tail in _GILES:
        p = torch.addcmul(torch.where(near, x.new_full((), c), c_tail), p, t)
    return p * x


_bits, _uniform = checks.unchecked(bits), checks.unchecked(uniform)
