"""Keys and draws, equal to `jax.random`: Threefry-2x32 with 20 rounds and partitionable counters.

A key is an int32 tensor [2] that holds two 32-bit words; `key.view(torch.uint32)` shows them as JAX prints them. Every
function is pure: it reads no global generator and changes none, so the same key always gives the same bits, on every
device, under `torch.func.vmap` (a batch of keys is [R, 2]) and inside `torch.compile`. A key is used once: `split` it,
`fold_in` a number, or draw from it, but never two of these.

`key`, `split`, `fold_in`, `bits`, `uniform`, `bernoulli` and `permutation` agree with JAX (its default
`jax_threefry_partitionable=True`; float64 as under `jax_enable_x64`) bit for bit, `normal` to rounding: within
2e-6 max(1, |x|) in float32.

Reference: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
"""

import math
from itertools import zip_longest

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadType, BadValue

__all__ = [
    "Key", "Shape", "bernoulli", "bits", "checked", "flat_indices", "fold_in", "key", "normal", "permutation", "split",
    "uniform",
]  # fmt: skip

Key = Tensor
Shape = tuple[int, ...]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """The key of a seed: the seed's high and low 32-bit words, int32 [2].

    Raises:
        BadValue: the seed is negative or needs more than 64 bits.
        Missing: there is no such device.
    """
    seed = checks.integer("seed", seed, most=math.inf)
    if not 0 <= seed < 2**64:
        raise BadValue(f"seed is {checks.describe(seed)}: it must lie between 0 and 2**64 - 1")
    if device is not None:
        device = checks.device(device)
    return torch.tensor([_signed(seed >> 32), _signed(seed & 0xFFFFFFFF)], dtype=torch.int32, device=device)


def split(key: Key, num: int = 2) -> Tensor:
    """`num` new keys [num, 2] in place of one; key i is the hash of the counter (0, i)."""
    checked(key)
    checks.fits("num", (num := checks.integer("num", num, 0), 2))
    return torch.stack(_threefry(key, *_counters(key, num)), dim=-1)


def fold_in(key: Key, data: int | Tensor) -> Key:
    """A new key [2] from a key and a number (a step, an index): the hash of (0, data).

    `fold_in(k, i)` equals `split(k, n)[i]`, as in JAX; so never do both to one key.

    Args:
        data: an int in [0, 2**32) or an integer tensor of no dimensions, for use under `vmap` and `torch.compile`.
    """
    checked(key)
    if not isinstance(data, Tensor):
        data = checks.integer("fold_in's number", data, most=math.inf)
        if not 0 <= data < 2**32:
            raise BadValue(f"fold_in got {checks.describe(data)}: it must lie between 0 and 2**32 - 1")
        low = torch.full((), _signed(data), dtype=torch.int32, device=key.device)
    elif data.ndim or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise BadValue(
            f"fold_in got a {data.dtype} tensor {list(data.shape)}: it must be a whole number, no dimensions"
        )
    else:
        low = (data if key.is_meta else checks.concrete("fold_in's number", data)).to(key.device, torch.int32)
    return torch.stack(_threefry(key, torch.zeros_like(low), low), dim=-1)


def bits(key: Key, shape: Shape = (), *, at: Tensor | None = None) -> Tensor:
    """Random 32-bit words, int32 of the given shape (`.view(torch.uint32)` for JAX's unsigned ones).

    Args:
        key: used up.
        shape: of the draw.
        at: flat indices into the draw, int32 or int64, as `flat_indices` gives them: only these numbers are made, and
            returned in the shape of `at`. (It is not checked that they lie in `shape`.)
    """
    high, low, shape = _words(key, shape, at)
    return (high ^ low).reshape(shape)


def flat_indices(shape: Shape, *picked: Tensor | None, device: torch.device | str | None = None) -> Tensor:
    """Flat indices of some elements of an array: those at the picked indices along its first axes.

    `normal(key, shape, at=flat_indices(shape, None, rows))` is `normal(key, shape)[:, rows]`, with no more draws than
    that (bit for bit where all is exact, and to rounding for the normal).

    Args:
        shape: of the whole array.
        picked: for each of its first axes the indices [n], or None for all.
        device: of the result.
    """
    shape = checks.shape("shape", shape, 0)
    stride = math.prod(shape)
    if len(picked) > len(shape):
        raise BadValue(f"there are indices for {len(picked)} axes, and shape {list(shape)} has {len(shape)}")
    kind = torch.int32 if stride <= 2**31 else torch.int64  # of which the compiler makes slower loops
    at = torch.zeros((), dtype=kind, device=device)
    for size, index in zip_longest(shape, picked):
        stride //= max(1, size)
        if index is None:
            index = torch.arange(size, device=device)
        checks.same_device(indices=at, index=checks.tensor("an index", index, "n"))
        at = at.unsqueeze(-1) + index.to(kind) * stride
    return at


def uniform(
    key: Key,
    shape: Shape = (),
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    *,
    at: Tensor | None = None,
) -> Tensor:
    """Uniform draws on [minval, maxval). (Where the interval is so narrow that rounding reaches maxval, it does.)

    The leading bits of a random word become the mantissa of a float in [1, 2), less 1: 23 bits of a 32-bit word in
    float32, 52 bits of a 64-bit word in float64. For `at` see `bits`.
    """
    if checks.dtype("dtype", dtype) == torch.float32:
        unit = (_shift_right(bits(key, shape, at=at), 9) | 0x3F800000).view(torch.float32) - 1
    else:
        high, low, shape = _words(key, shape, at, 8)
        word = (high.long() << 32) | (low.long() & 0xFFFFFFFF)
        unit = (((word >> 12) & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(torch.float64).reshape(shape) - 1
    minval, maxval = checks.number("minval", minval), checks.number("maxval", maxval)
    if (minval, maxval) == (0.0, 1.0):
        return unit
    most = torch.finfo(dtype).max
    if not (-most <= minval <= maxval <= most and maxval - minval <= most):
        told = f"{dtype} must hold both, and how far they are apart; and minval is not above maxval"
        raise BadValue(f"minval is {minval} and maxval {maxval}: {told}")
    # Bounds and width are rounded to dtype, then multiplied and added with one rounding, as XLA's fused
    # multiply-add does: in float32 the detour through float64 gives just that, on every device.
    low_, high_ = (torch.full((), v, dtype=dtype, device=unit.device) for v in (minval, maxval))
    return torch.maximum(low_, (unit.double() * (high_ - low_).double() + low_).to(dtype))


def normal(key: Key, shape: Shape = (), dtype: torch.dtype = torch.float32, *, at: Tensor | None = None) -> Tensor:
    """Standard normal draws: √2 · erfinv(u), with u uniform on (-1, 1). For `at` see `bits`.

    Equal to `jax.random.normal` to rounding (float32: within 2e-6 max(1, |x|)), and between devices likewise.
    """
    above_minus_one = -1.0 + 2.0 ** (
        -24 if checks.dtype("dtype", dtype) == torch.float32 else -53
    )  # keeps erfinv finite
    return math.sqrt(2) * _erfinv(2 * uniform(key, shape, dtype, at=at) + above_minus_one)


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Shape | None = None, *, at: Tensor | None = None) -> Tensor:
    """Booleans that are True with probability p; the shape is p's unless given. For `at` see `bits`."""
    checked(key)
    if not isinstance(p, Tensor):
        if not 0 <= checks.number("p", p) <= 1:
            raise BadValue(f"p is {p}: a probability lies between 0 and 1")
        p = torch.full((), p, dtype=torch.float32, device=key.device)
    checks.tensor("p", p)
    u = uniform(key, tuple(p.shape) if shape is None else shape, p.dtype, at=at)
    checks.broadcast("the draw", u, "p", p)
    return u < p


def permutation(key: Key, x: int | Tensor) -> Tensor:
    """A random permutation of range(x), int64 [x], or of a tensor's rows.

    As in JAX, rounds of a stable sort by random words: enough rounds that ties leave no visible bias.
    """
    checked(key)
    if isinstance(x, Tensor):
        checks.tensor("x", x, "n ...")
        checks.same_device(key=key, x=x)
        n = len(x)
    else:
        n = checks.integer("x", x, 0)
        checks.fits("x", (n,), 8)
    order = torch.arange(n, device=key.device)
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))):
        key, round_key = split(key)
        unsigned = bits(round_key, (n,)) ^ -(2**31)  # with the sign bit flipped, int32 sorts as uint32
        order = order[unsigned.argsort(stable=True)]
    return x[order] if isinstance(x, Tensor) else order


def checked(key: Key) -> Key:
    """The key itself, if it is one: raises BadType or BadValue where it is not an int32 tensor [2]."""
    if not isinstance(key, Tensor) or key.dtype != torch.int32:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise BadType(f"a key is an int32 tensor [2], as random.key(seed) makes it: this is {got}")
    checks.tensor("key", key)
    if key.shape != (2,):
        raise BadValue(f"a key has shape [2], this has {list(key.shape)}: use torch.func.vmap over a batch of keys")
    return key


def _threefry(key: Key, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The 20-round Threefry-2x32 block cipher of the counter words (x0, x1).

    int32 arithmetic wraps as wanted. The updates in place are of tensors made here: eager speed is the count of calls.
    """
    k0, k1 = key.unbind()
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for j, r in enumerate(_ROTATIONS[i % 2]):
            x0 += x1
            x1 = _shift_right(x1, 32 - r).add_(x1, alpha=1 << r)  # rotated left by r: x1 · 2^r is x1 << r
            x1 ^= x0
            if j % 2 and torch.compiler.is_compiling():
                # Each round names each word more than once; the compiler would write the earlier rounds out again for
                # every mention, and take minutes. What as_strided looks at, it gives a name of its own first.
                x0, x1 = (x.as_strided(x.shape, x.stride()).clone() for x in (x0, x1))
        x0 += schedule[(i + 1) % 3]
        x1 += schedule[(i + 2) % 3] + (i + 1)
    return x0, x1


def _words(key: Key, shape: Shape, at: Tensor | None, itemsize: int = 4) -> tuple[Tensor, Tensor, Shape]:
    """The two words of each number of a draw, in a row, and the shape that they come in."""
    checked(key)
    if at is None:
        shape = checks.shape("shape", shape, itemsize)
        return *_threefry(key, *_counters(key, math.prod(shape))), shape
    checks.shape("shape", shape, 0)
    if checks.tensor("at", at).dtype not in (torch.int32, torch.int64):
        raise BadType(f"at is {at.dtype}: flat indices are int32 or int64, as random.flat_indices gives them")
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


def _shift_right(x: Tensor, r: int) -> Tensor:
    """Logical right shift of int32 words (torch's own carries the sign along)."""
    return (x >> r).bitwise_and_((1 << (32 - r)) - 1)


def _signed(word: int) -> int:
    """An unsigned 32-bit word as the int32 with the same bits."""
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
    """The inverse error function; in float32 by Giles' polynomials, as XLA does, for `torch.erfinv` is slow on CPUs."""
    if x.dtype == torch.float64:
        return torch.erfinv(x)
    # On CPUs log1p takes ten times as long as log, and here log is as good: where x² > ½ the difference is exact, and
    # elsewhere its rounding moves the result by a tenth of a unit in the last place. (A GPU might fuse 1 - x·x, and in
    # the tails leave what XLA computes.)
    w = -torch.log1p(-x * x) if x.is_cuda else -torch.log(1 - x * x)
    near = w < 5
    t = torch.where(near, w - 2.5, w.sqrt() - 3)
    p = torch.zeros_like(x)
    for c, c_tail in _GILES:
        p = torch.addcmul(torch.where(near, x.new_full((), c), c_tail), p, t)
    return p * x
