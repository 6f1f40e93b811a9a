"""Noise schemes: marginal distributions, antithetic properties, and dependence on the key alone."""

import math
from functools import partial

import pytest
import torch

from funcvae import noise, random
from funcvae.errors import BadValue
from tests.support.oracles import assert_zero_mean
from tests.support.specs import slow_but

SCHEMES = list(noise.TABLE.values())
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@both_dtypes
def test_iid_noise_equals_random_normal_with_a_leading_sample_axis(dtype):
    key = random.key(0)
    eps = noise.iid(key, 5, (3, 2), dtype=dtype)
    assert eps.shape == (5, 3, 2)
    assert torch.equal(eps, random.normal(key, (5, 3, 2), dtype))


@both_dtypes
@every_scheme
def test_vmap_over_keys_equals_a_loop(scheme, dtype):
    keys = random.split(random.key(1), 4)
    eps = torch.vmap(lambda k: scheme(k, 4, (3, 2), dtype=dtype))(keys)
    torch.testing.assert_close(eps, torch.stack([scheme(k, 4, (3, 2), dtype=dtype) for k in keys]))
    assert eps.dtype == dtype


@both_dtypes
def test_numbered_noise_uses_a_key_for_each_number(dtype):
    key, numbers = random.key(0), torch.tensor([7, 0, 2**31 + 5])
    eps = noise.numbered(key, numbers, (3, 2), dtype=dtype)
    for number, one in zip(numbers, eps, strict=True):
        torch.testing.assert_close(one, random.normal(random.fold_in(key, number), (3, 2), dtype))
    assert noise.numbered(key, numbers[:0], (3, 2), dtype=dtype).shape == (0, 3, 2)
    assert eps.dtype == dtype


@every_scheme
def test_the_same_key_gives_the_same_bits_and_another_key_does_not(scheme):
    first, again, other = (scheme(random.key(seed), 4, (3, 2)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


@pytest.mark.parametrize("scheme", slow_but((noise.iid, noise.moment_matched), SCHEMES))
def test_compiled_equals_eager(scheme):
    torch._dynamo.reset()
    compiled = torch.compile(lambda key: scheme(key, 4, (3, 2)), fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(random.key(3)), scheme(random.key(3), 4, (3, 2)))
    torch._dynamo.reset()


@every_scheme
def test_each_sample_is_standard_normal_and_independent_over_data_and_latents(scheme):
    keys = random.split(random.key(5), 20_000)
    eps = torch.vmap(lambda k: scheme(k, 4, (2, 2), dtype=torch.float64))(keys).flatten(2)  # [R, 4, B·Z]
    assert_zero_mean(eps)
    for power, moment in ((2, 1), (3, 0), (4, 3), (6, 15)):
        assert_zero_mean(eps**power - moment)
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64)
    below = (eps.unsqueeze(-1) < grid).double()
    assert_zero_mean(below - torch.special.ndtr(grid))
    for sample in range(4):
        for i in range(4):
            for j in range(i):
                assert_zero_mean(eps[:, sample, i] * eps[:, sample, j])
                assert_zero_mean(eps[:, sample, i] ** 2 * eps[:, sample, j] ** 2 - 1)


def test_the_second_half_of_mirrored_noise_is_minus_the_first():
    eps = noise.mirrored(random.key(0), 6, (3, 2))
    assert torch.equal(eps[3:], -eps[:3])
    assert torch.equal(eps[:3], noise.iid(random.key(0), 3, (3, 2)))


@pytest.mark.parametrize("half", [2, 3, 8, 50])
def test_moment_matched_halves_have_opposite_means_and_opposite_quantiles_of_variance(half):
    eps = noise.moment_matched(random.key(1), 2 * half, (30, 7), dtype=torch.float64)
    first, second = eps.split(half)
    torch.testing.assert_close(second.mean(0), -first.mean(0))
    shape = torch.tensor((half - 1) / 2, dtype=torch.float64)
    squares = [(part - part.mean(0)).square().sum(0) for part in (first, second)]
    up, down = (torch.special.gammainc(shape.expand_as(t), t / 2) for t in squares)
    torch.testing.assert_close(up + down, torch.ones_like(up), rtol=0, atol=1e-12)


def test_moment_matched_halves_are_jointly_standard_normal():
    keys = random.split(random.key(9), 20_000)
    second = torch.vmap(lambda k: noise.moment_matched(k, 6, (1, 1), dtype=torch.float64))(keys)[:, 3:, 0, 0]
    for i in range(3):
        for j in range(i):
            assert_zero_mean(second[:, i] * second[:, j])
            assert_zero_mean(second[:, i] ** 2 * second[:, j] ** 2 - 1)
    assert_zero_mean(second.var(1) - 1)
    assert_zero_mean((second.var(1) - 1) ** 2 - 1)  # Var of χ²_2/2


def test_moment_matched_noise_is_finite_for_two_equal_samples():
    for seed in (46, 52):
        eps = noise.moment_matched(random.key(seed), 4, (1000, 200))
        assert (eps[0] == eps[1]).any()
        assert eps.isfinite().all()


def test_two_moment_matched_samples_equal_two_mirrored_samples():
    assert torch.equal(noise.moment_matched(random.key(0), 2, (3,)), noise.mirrored(random.key(0), 2, (3,)))


@pytest.mark.parametrize("n", [2, 8, 64])
def test_sobol_points_fill_every_interval_once(n):
    eps = noise.sobol(random.key(2), n, (5, 9), dtype=torch.float64)
    cell = (torch.special.ndtr(eps) * n).floor()
    assert torch.equal(cell.sort(0).values, torch.arange(n, dtype=torch.float64).reshape(n, 1, 1).expand_as(cell))
    plain = noise.iid(random.key(2), n, (5, 9), dtype=torch.float64)
    assert not torch.equal((torch.special.ndtr(plain) * n).floor().sort(0).values, cell.sort(0).values)


def test_sobol_points_fill_every_square_of_the_first_two_dimensions_once():
    eps = noise.sobol(random.key(2), 64, (5, 2), dtype=torch.float64)
    cell = (torch.special.ndtr(eps) * 8).floor()
    square = (8 * cell[..., 0] + cell[..., 1]).sort(0).values
    assert torch.equal(square, torch.arange(64, dtype=torch.float64).unsqueeze(1).expand_as(square))


def test_sobol_digits_are_scrambled_and_not_only_shifted():
    differences = []
    for seed in range(8):
        eps = noise.sobol(random.key(seed), 4, (1,), dtype=torch.float64)
        digits = (torch.special.ndtr(eps[:, 0]) * 2**20).long()
        differences.append(int(digits[1] ^ digits[2]))  # a shift does not change this
    assert len(set(differences)) == 8
    assert len({d.bit_length() for d in differences}) == 1  # scrambling does not change the first digit that differs


def test_sobol_noise_integrates_a_smooth_function_better_than_iid_noise():
    keys = random.split(random.key(0), 200)
    spread = {}
    for scheme in (noise.iid, noise.sobol):
        eps = torch.vmap(lambda k, scheme=scheme: scheme(k, 256, (2,), dtype=torch.float64))(keys)
        spread[scheme] = (eps.sum(-1) / 2).tanh().exp().mean(1).std()
    assert spread[noise.sobol] < spread[noise.iid] / 10


@pytest.mark.parametrize("n", [0, -1])
@every_scheme
def test_fewer_than_one_sample_is_an_error(scheme, n):
    with pytest.raises(BadValue, match=f"(n|samples) is {n}: "):
        scheme(random.key(0), n, (3,))


@pytest.mark.parametrize("scheme", [noise.mirrored, noise.moment_matched])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_antithetic_noise_of_an_odd_number_of_samples_is_an_error(scheme, n):
    with pytest.raises(BadValue, match=f"samples is {n}: antithetic noise comes in pairs"):
        scheme(random.key(0), n, (3,))


def test_sobol_noise_of_too_many_dimensions_is_an_error():
    with pytest.raises(BadValue, match=r"shape is \(30000,\): its last axis must have 1 to 21201 dimensions"):
        noise.sobol(random.key(0), 2, (30_000,))


# A part of the noise.


def without_rows(key, n, shape, *, dtype=torch.float32):
    """A user's scheme that cannot draw a part."""
    return noise.iid(key, n, shape, dtype=dtype).flip(0)


def by_row(key, n, shape, *, dtype=torch.float32, rows=None):
    """A user's scheme that can draw a part of the data."""
    return noise.mirrored(key, n, shape, dtype=dtype, rows=rows)


class Callable:
    def __call__(self, key, n, shape, **options):
        return noise.sobol(key, n, shape, **options)


USERS = {"without rows": without_rows, "with rows": by_row, "an object": Callable(), "partial": partial(noise.iid)}
close_to = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


@both_dtypes
@pytest.mark.parametrize("scheme", [*SCHEMES, *USERS.values()], ids=[*noise.TABLE, *USERS])
def test_a_part_equals_the_same_part_of_the_whole(scheme, dtype):
    key, shape = random.key(6), (7, 3)
    whole, draw = scheme(key, 4, shape, dtype=dtype), noise.in_parts(scheme)
    samples, rows = torch.tensor([3, 1]), torch.tensor([6, 0, 2])
    close_to(draw(key, 4, shape, dtype=dtype), whole)
    close_to(draw(key, 4, shape, dtype=dtype, samples=samples), whole[samples])
    close_to(draw(key, 4, shape, dtype=dtype, rows=rows), whole[:, rows])
    both = draw(key, 4, shape, dtype=dtype, samples=samples, rows=rows)
    close_to(both, whole[samples][:, rows])
    assert both.dtype == dtype


@pytest.mark.parametrize("scheme", slow_but((noise.sobol, without_rows), [*SCHEMES, without_rows]))
def test_a_compiled_part_equals_the_same_part_of_the_whole(scheme):
    torch._dynamo.reset()
    draw = torch.compile(noise.in_parts(scheme), fullgraph=True, dynamic=False, backend="aot_eager")
    key, samples, rows = random.key(6), torch.tensor([3, 1]), torch.tensor([6, 0, 2])
    close_to(draw(key, 4, (7, 3), samples=samples, rows=rows), scheme(key, 4, (7, 3))[samples][:, rows])
    torch._dynamo.reset()


def test_a_part_draws_only_the_samples_and_rows_that_it_needs(monkeypatch):
    drawn = []
    normal = random.normal

    def counted(*args, **options):
        drawn.append(normal(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(noise, "_normal", counted)
    pick = torch.tensor([1])
    for scheme, samples in ((noise.iid, 1), (noise.mirrored, 2), (noise.moment_matched, 2)):
        noise.in_parts(scheme)(random.key(0), 4, (7, 3), samples=pick, rows=pick)
        assert drawn.pop().shape == (samples, 1, 3)


def test_accepts_is_true_if_a_function_has_the_argument():
    assert noise.accepts(noise.iid, "samples")
    assert noise.accepts(partial(noise.sobol), "rows")
    assert not noise.accepts(noise.sobol, "samples")
    assert not noise.accepts(min, "rows")  # it has no signature


def test_names_and_independence_of_the_schemes():
    assert [noise.name_of(scheme) for scheme in SCHEMES] == list(noise.TABLE)
    assert [noise.is_independent(scheme) for scheme in SCHEMES] == [True, False, False, False]
    assert noise.parse("sobol") is noise.sobol
    with pytest.raises(BadValue, match="unknown noise 'sobl': did you mean 'sobol'"):
        noise.parse("sobl")


def test_opposite_chi2_is_its_own_inverse():
    t = torch.logspace(-4, 1.5, 50, dtype=torch.float64)
    for dof in (1, 2, 5):
        torch.testing.assert_close(noise._opposite_chi2(noise._opposite_chi2(t, dof), dof), t, rtol=1e-6, atol=0)
    torch.testing.assert_close(  # closed form for two degrees of freedom: exp(-t/2) + exp(-t'/2) = 1
        noise._opposite_chi2(t, 2), -2 * torch.log1p(-torch.exp(-t / 2)), rtol=1e-12, atol=0
    )
    median = torch.tensor(2 * math.log(2), dtype=torch.float64)
    torch.testing.assert_close(noise._opposite_chi2(median, 2), median)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_scheme
def test_noise_on_cuda_equals_that_on_the_cpu(scheme):
    here, there = (scheme(random.key(3, device=device), 4, (3, 2)) for device in ("cpu", "cuda"))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-5)
