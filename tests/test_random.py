"""Keys and draws against jax.random and Random123, and properties of keys."""

import json
import math
import random as python_random
from pathlib import Path

import numpy as np
import pytest
import torch

from funcvae import random
from funcvae.errors import BadType, BadValue

REFERENCE = Path(__file__).parent / "reference"
ROWS = json.loads((REFERENCE / "jax_random.json").read_text())["rows"]
ROWS_X64 = json.loads((REFERENCE / "jax_random_x64.json").read_text())["rows"]

# (counter, key, output), from Random123's kat_vectors for threefry2x32, 20 rounds.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]

by_seed = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"seed{row['seed']}")
by_seed_x64 = pytest.mark.parametrize("row", ROWS_X64, ids=lambda row: f"seed{row['seed']}")
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def words(t):
    """int32 words as unsigned integers, as JAX prints them."""
    return t.contiguous().view(torch.uint32).tolist()


def of_words(*unsigned):
    return torch.tensor(unsigned, dtype=torch.uint32).view(torch.int32)


def threefry(counter, key):
    return tuple(words(torch.stack(random._threefry(of_words(*key), *of_words(*counter).unbind()))))


def threefry_in_integers(counter, key, rotations=((13, 15, 26, 6), (17, 29, 16, 24)), groups=5):
    """The cipher with Python integers and `groups` of four rounds. Other rotations and groups give wrong variants."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = ((c + k) % 2**32 for c, k in zip(counter, key, strict=True))
    for i in range(groups):
        for r in rotations[i % 2]:
            x0 = (x0 + x1) % 2**32
            x1 = ((x1 << r | x1 >> (32 - r)) % 2**32) ^ x0
        x0 = (x0 + schedule[(i + 1) % 3]) % 2**32
        x1 = (x1 + schedule[(i + 2) % 3] + i + 1) % 2**32
    return x0, x1


def assert_matches_ks(draws, cdf):
    """Kolmogorov-Smirnov test with P(√n D > 1.95) = 0.001; D is the largest gap of the distribution functions."""
    n = draws.numel()
    u = cdf(draws.double().sort().values)
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    gap = torch.maximum((grid[1:] - u).max(), (u - grid[:-1]).max())
    assert math.sqrt(n) * gap < 1.95, f"sqrt(n) D = {math.sqrt(n) * gap}"


def assert_mean(samples, mean, z=5.0):
    """Asserts that the mean of the samples lies within z standard errors of `mean`."""
    samples = samples.double()
    error = (samples.mean() - mean) / (samples.std() / math.sqrt(samples.numel()))
    assert abs(error) < z, f"{error} standard errors"


def phi(x):
    return torch.special.ndtr(x)


# The cipher


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_threefry_gives_random123s_known_answers(counter, key, output):
    assert threefry(counter, key) == output
    assert threefry_in_integers(counter, key) == output


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers_catch_fewer_rounds_and_swapped_rotations(counter, key, output):
    assert threefry_in_integers(counter, key, groups=3) != output
    assert threefry_in_integers(counter, key, rotations=((17, 29, 16, 24), (13, 15, 26, 6))) != output


# Against jax.random


@by_seed
def test_keys_equal_jax(row):
    key = random.key(row["seed"])
    assert words(key) == row["key"]
    assert words(random.split(key)) == row["split_2"]
    assert words(random.split(key, 5)) == row["split_5"]
    assert words(random.fold_in(key, 0)) == row["fold_in_0"]
    assert words(random.fold_in(key, 123456789)) == row["fold_in_123456789"]


@by_seed
def test_bits_and_uniform_equal_jax_bit_for_bit(row):
    key = random.key(row["seed"])
    assert words(random.bits(key, (7,))) == row["bits_7"]
    assert words(random.bits(key, (2, 3))) == row["bits_2x3"]
    assert random.uniform(key, (7,)).tolist() == row["uniform_7"]
    assert random.uniform(key, (2, 3), minval=-2.0, maxval=3.0).tolist() == row["uniform_2x3_lo_m2_hi_3"]


@by_seed
def test_bernoulli_and_permutation_equal_jax_exactly(row):
    key = random.key(row["seed"])
    assert random.bernoulli(key, 0.3, (16,)).int().tolist() == row["bernoulli_p03_16"]
    assert random.permutation(key, 10).tolist() == row["permutation_10"]
    assert random.permutation(key, 1000)[:12].tolist() == row["permutation_1000_first_12"]


@by_seed
def test_normal_equals_jax_to_2e_6(row):
    key = random.key(row["seed"])
    for shape, name in (((7,), "normal_7"), ((2, 3), "normal_2x3")):
        want = torch.tensor(row[name])
        error = (random.normal(key, shape) - want).abs() / want.abs().clamp(min=1)
        assert error.max() <= 2e-6


@by_seed_x64
def test_float64_uniform_equals_jax_bit_for_bit(row):
    key = random.key(row["seed"])
    assert words(key) == row["key"]
    assert random.uniform(key, (7,), torch.float64).tolist() == row["uniform_7"]


@by_seed_x64
def test_float64_draws_equal_jax_to_1e_14(row):
    key = random.key(row["seed"])
    extremes = random.normal(key, (1000,), torch.float64).aminmax()
    for got, name in (
        (random.uniform(key, (2, 3), torch.float64, -2.0, 3.0), "uniform_2x3_lo_m2_hi_3"),
        (random.normal(key, (7,), torch.float64), "normal_7"),
        (torch.stack(extremes), "normal_1000_extremes"),
    ):
        torch.testing.assert_close(got, torch.tensor(row[name], dtype=torch.float64), rtol=1e-14, atol=1e-14)


# Distributions, on fixed keys


@by_dtype
def test_uniform_is_uniform(dtype):
    u = random.uniform(random.key(3), (200_000,), dtype)
    assert u.dtype == dtype
    assert_matches_ks(u, lambda x: x)
    assert_mean(u, 1 / 2)
    assert_mean((u - 0.5) ** 2, 1 / 12)
    assert_mean((u[1:] - 0.5) * (u[:-1] - 0.5), 0)


@by_dtype
def test_normal_is_standard_normal(dtype):
    z = random.normal(random.key(4), (200_000,), dtype)
    assert z.dtype == dtype
    assert_matches_ks(z, phi)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert_mean(z.double() ** power, moment)


def test_the_ks_and_moment_tests_catch_a_scale_off_by_three_percent():
    z = 1.03 * random.normal(random.key(4), (200_000,))
    with pytest.raises(AssertionError):
        assert_matches_ks(z, phi)
    with pytest.raises(AssertionError):
        assert_mean(z**2, 1)


def force_words(monkeypatch, dtype):
    """Makes the first random word all ones, the second all zeros."""
    low = torch.tensor([-1, 0], dtype=torch.int32)
    high = low if dtype == torch.float64 else torch.zeros_like(low)  # a 32-bit word is the xor of the two
    monkeypatch.setattr(random, "_threefry", lambda key, *counters: (high, low))


@by_dtype
def test_uniform_lies_between_0_inclusive_and_1_exclusive(dtype, monkeypatch):
    force_words(monkeypatch, dtype)
    mantissa = 23 if dtype == torch.float32 else 52
    assert random.uniform(random.key(0), (2,), dtype).tolist() == [1 - 2.0**-mantissa, 0.0]


@by_dtype
def test_normal_is_finite_at_both_ends_of_uniform(dtype, monkeypatch):
    force_words(monkeypatch, dtype)
    top, bottom = random.normal(random.key(0), (2,), dtype).tolist()
    edge = 2.0 ** (-24 if dtype == torch.float32 else -53)
    want = -torch.special.ndtri(torch.tensor(edge / 2, dtype=torch.float64)).item()
    assert bottom == pytest.approx(-want, rel=1e-6)
    assert 5 < top < want + 1e-6


def test_float64_uniform_uses_52_bits():
    scaled = random.uniform(random.key(5), (1000,), torch.float64) * 2**52
    assert torch.equal(scaled, scaled.round())
    assert not torch.equal(scaled / 2, (scaled / 2).round())


def test_bernoulli_has_the_given_probabilities():
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    draws = random.bernoulli(random.key(6), p.expand(40_000, 5)).double()
    assert draws[:, 0].sum() == 0
    assert draws[:, 4].sum() == 40_000
    for i in (1, 2, 3):
        assert_mean(draws[:, i], p[i])


def test_permutation_puts_each_item_in_each_place_equally_often():
    orders = torch.vmap(lambda k: random.permutation(k, 4))(random.split(random.key(7), 20_000))
    for item in range(4):
        for place in range(4):
            assert_mean((orders[:, place] == item).double(), 1 / 4)


# Properties of keys


def test_fold_in_equals_an_element_of_split():
    key = random.key(8)
    keys = random.split(key, 6)
    for i in range(6):
        assert torch.equal(random.fold_in(key, i), keys[i])
        assert torch.equal(random.fold_in(key, torch.tensor(i)), keys[i])


@pytest.mark.parametrize("data", [2**31 - 1, 2**31, 2**32 - 1])
def test_fold_in_of_a_tensor_equals_fold_in_of_the_int(data):
    key = random.key(8)
    assert torch.equal(random.fold_in(key, torch.tensor(data)), random.fold_in(key, data))


def test_distinct_keys_draw_distinct_uncorrelated_numbers():
    a, b = (random.normal(k, (50_000,)) for k in random.split(random.key(9)))
    assert_mean(a * b, 0)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: random.split(k, 3),
        lambda k: random.fold_in(k, 7),
        lambda k: random.bits(k, (5,)),
        lambda k: random.uniform(k, (5,)),
        lambda k: random.uniform(k, (5,), torch.float64),
        lambda k: random.normal(k, (5, 2)),
        lambda k: random.normal(k, (5,), torch.float64),
        lambda k: random.bernoulli(k, 0.4, (5,)),
        lambda k: random.permutation(k, 9),
    ],
)
def test_vmap_over_keys_equals_a_loop(draw):
    keys = random.split(random.key(10), 4)
    before = keys.clone()
    assert torch.equal(torch.vmap(draw)(keys), torch.stack([draw(k) for k in keys]))
    assert torch.equal(keys, before)


def test_vmap_of_fold_in_over_its_data_equals_split():
    key = random.key(10)
    folded = torch.vmap(lambda i: random.fold_in(key, i))(torch.arange(4))
    assert torch.equal(folded, random.split(key, 4))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_gives_the_same_bits_and_uniforms_and_normals_to_8_ulps(backend):
    def draws(key):
        keys = random.split(key, 3)
        return keys, random.fold_in(key, 3), random.uniform(keys[0], (64,)), random.normal(keys[1], (4096,))

    *exact, normal = draws(random.key(11))
    *exact_compiled, normal_compiled = torch.compile(draws, fullgraph=True, backend=backend)(random.key(11))
    for eager, compiled in zip(exact, exact_compiled, strict=True):
        assert torch.equal(eager, compiled)
    ulp = 2.0 ** (normal.abs().clamp(min=2.0**-20).log2().floor() - 23)
    assert ((normal - normal_compiled).abs() / ulp).max() <= 8


def test_a_draw_is_a_prefix_of_a_longer_draw_of_any_shape():
    key = random.key(12)
    assert torch.equal(random.bits(key, (3, 4)).flatten(), random.bits(key, (20,))[:12])
    assert random.normal(key).shape == ()
    assert torch.equal(random.normal(key), random.normal(key, (1,))[0])


def test_no_global_generator_is_read_or_changed():
    def states():
        kind, numbers, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), kind, numbers.tolist(), rest, python_random.getstate()

    def everything():
        key = random.key(13)
        return [
            random.split(key),
            random.fold_in(key, 1),
            random.bits(key, (3,)),
            random.uniform(key, (3,)),
            random.normal(key, (3,)),
            random.bernoulli(key, 0.5, (3,)),
            random.permutation(key, 5),
        ]

    before = states()
    first = everything()
    assert states() == before
    torch.rand(3), np.random.rand(3), python_random.random()  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


# Permutations


def test_permutation_of_a_tensor_permutes_its_rows():
    x = torch.arange(12.0).reshape(6, 2)
    key = random.key(14)
    assert torch.equal(random.permutation(key, x), x[random.permutation(key, 6)])
    assert torch.equal(x, torch.arange(12.0).reshape(6, 2))


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_contains_every_number_once(n):
    order = random.permutation(random.key(15), n)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


# A part of a draw


WHOLE = (4, 7, 3)
PICKED = {
    "all": (),
    "samples": (torch.tensor([3, 0]),),
    "rows": (None, torch.tensor([6, 2, 3])),
    "both": (torch.tensor([1]), torch.tensor([0, 5])),
    "none": (None, torch.tensor([], dtype=torch.int64)),
}
by_part = pytest.mark.parametrize("picked", PICKED.values(), ids=PICKED.keys())


def part_of(t, picked):
    """The elements at the picked indices along the first axes, by torch's own indexing."""
    for axis, index in enumerate(picked):
        t = t if index is None else t.index_select(axis, index)
    return t


@by_part
def test_flat_indices_agree_with_torchs_indexing(picked):
    numbers = torch.arange(math.prod(WHOLE)).view(WHOLE)
    assert torch.equal(random.flat_indices(WHOLE, *picked), part_of(numbers, picked))


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [
        *((name, None, dtype) for name in PICKED for dtype in (torch.float32, torch.float64)),
        ("both", "aot_eager", torch.float32),
        pytest.param("both", "aot_eager", torch.float64, marks=pytest.mark.slow),
        pytest.param("samples", "aot_eager", torch.float32, marks=pytest.mark.slow),
        pytest.param("samples", "aot_eager", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_a_draw_at_flat_indices_is_a_part_of_the_whole_draw(dtype, name, backend):
    picked = PICKED[name]
    key, p = random.key(21), random.uniform(random.key(22), WHOLE, dtype)
    draws = {
        "bits": lambda at=None: random.bits(key, WHOLE, at=at),
        "uniform": lambda at=None: random.uniform(key, WHOLE, dtype, at=at),
        "between": lambda at=None: random.uniform(key, WHOLE, dtype, -2.0, 3.0, at=at),
        "normal": lambda at=None: random.normal(key, WHOLE, dtype, at=at),
        "bernoulli": lambda at=None: random.bernoulli(key, p if at is None else part_of(p, picked), WHOLE, at=at),
    }

    def drawn():
        at = random.flat_indices(WHOLE, *picked)
        return {name: draw(at) for name, draw in draws.items()}

    if backend:
        torch._dynamo.reset()
        drawn = torch.compile(drawn, fullgraph=True, dynamic=False, backend=backend)
    for name, part in drawn().items():
        whole = part_of(draws[name](), picked)
        assert part.dtype == whole.dtype
        if name == "normal":
            torch.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(part, whole), name
    torch._dynamo.reset()


def test_a_part_of_a_draw_that_exceeds_memory():
    """Its indices exceed 2**32, so the high word of the counter is tested as well."""
    key, shape = random.key(23), (2**20, 2**20)
    at = random.flat_indices(shape, torch.tensor([5, 2**19]), torch.tensor([7]))
    expected = []
    for i in at.flatten().tolist():
        high, low = threefry_in_integers((i >> 32, i % 2**32), words(key))
        expected.append(high ^ low)
    assert at.max() > 2**32
    assert words(random.bits(key, shape, at=at).flatten()) == expected


def test_wrong_indices_are_an_error():
    with pytest.raises(BadValue, match=r"picked has indices for 3 axes: shape \[4, 7\] has 2"):
        random.flat_indices((4, 7), None, None, torch.arange(2))
    with pytest.raises(BadValue, match=r"an index has shape \[1, 2\]"):
        random.flat_indices((4, 7), torch.ones(1, 2, dtype=torch.int64))
    for draw in (random.bits, random.uniform, random.normal):
        with pytest.raises(BadType, match=r"at is a torch\.float32 tensor \[2\]: it must be int32 or int64"):
            draw(random.key(0), (4, 7), at=torch.ones(2))


# Errors


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_an_error(seed):
    with pytest.raises(BadValue, match=r"between 0 and 2\*\*64 - 1"):
        random.key(seed)


@pytest.mark.parametrize("data", [-1, 2**32])
def test_folding_in_an_int_outside_32_bits_is_an_error(data):
    with pytest.raises(BadValue, match=r"between 0 and 2\*\*32 - 1"):
        random.fold_in(random.key(0), data)


@pytest.mark.parametrize(
    "draw",
    [
        random.split,
        lambda k: random.fold_in(k, 1),
        random.bits,
        random.uniform,
        random.normal,
        random.bernoulli,
        lambda k: random.permutation(k, 3),
        lambda k: random.normal(k, (2,), torch.float64),
    ],
)
class TestWrongKeys:
    def test_a_batch_of_keys_needs_vmap(self, draw):
        with pytest.raises(BadValue, match="vmap"):
            draw(random.split(random.key(0), 3))

    def test_a_key_has_two_words(self, draw):
        with pytest.raises(BadValue, match=r"it must be \[2\]"):
            draw(torch.zeros(3, dtype=torch.int32))

    @pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0], ids=["f32", "i64", "int"])
    def test_a_key_is_int32(self, draw, wrong):
        with pytest.raises(BadType, match=r"random\.key\(seed\)"):
            draw(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_draws_are_float32_or_float64(dtype):
    with pytest.raises(BadType, match="float32 or"):
        random.uniform(random.key(0), (2,), dtype)
    with pytest.raises(BadType, match="float32 or"):
        random.normal(random.key(0), (2,), dtype)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_draws_on_cuda_equal_those_on_the_cpu():
    here, there = random.key(16), random.key(16, device="cuda")
    assert torch.equal(random.bits(there, (1000,)).cpu(), random.bits(here, (1000,)))
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(random.uniform(there, (1000,), dtype).cpu(), random.uniform(here, (1000,), dtype))
    assert torch.equal(random.permutation(there, 1000).cpu(), random.permutation(here, 1000))
    a, b = random.normal(there, (1000,)).cpu(), random.normal(here, (1000,))
    assert ((a - b).abs() / b.abs().clamp(min=1)).max() <= 2e-6
