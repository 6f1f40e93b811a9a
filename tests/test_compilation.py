"""Compiled functions, freed memory that the process keeps, and the precision of matrix products."""

import gc
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch

import funcvae as fv
from funcvae import compilation
from funcvae.errors import BadType, BadValue
from funcvae.estimators import parse


def test_compiling_pays_for_many_or_large_steps_without_convolutions():
    """The rule, by hand: 4 tensors cost 5.2 s; a step of 1,000 numbers saves 0.405 ms, one of 10⁷ saves 50.4 ms."""
    dense = [torch.zeros(3, 2), torch.zeros(3), torch.zeros(2, 3), torch.zeros(2)]
    assert not compilation.pays(12_839, dense, 1000)
    assert compilation.pays(12_840, dense, 1000)
    assert not compilation.pays(103, dense, 10**7)
    assert compilation.pays(104, dense, 10**7)
    assert not compilation.pays(10**9, [*dense, torch.zeros(3, 3, 2, 2)], 10**7)


def times(c):
    def f(x, *, plus=0.0):
        return c * x + plus

    return f


def test_two_closures_of_one_function_have_separate_graphs():
    """A call does not check the closure, so each compiled function needs graphs of its own."""
    x = torch.arange(3.0)
    twice, thrice = (compilation.compiled(times(c)) for c in (2, 3))
    for _ in range(2):
        torch.testing.assert_close(twice(x), 2 * x)
        torch.testing.assert_close(thrice(x), 3 * x)


class Times:
    def __init__(self, c):
        self.c = c

    def __call__(self, x):
        return self.c * x

    def method(self, x):
        return self.c * x


WAYS = {
    "closure": lambda c: times(c),
    "partial": lambda c: partial(lambda x, c: c * x, c=c),
    "object": lambda c: Times(c),
    "method": lambda c: Times(c).method,
    "decorated": lambda c: torch.no_grad()(times(c)),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_function_has_separate_graphs_and_uses_its_arguments(way):
    for c in (2.0, 3.0):
        f = compilation.compiled(WAYS[way](c))
        for n in (1, 2):
            torch.testing.assert_close(f(torch.ones(n)), torch.full((n,), c))


@pytest.mark.usefixtures("backend")
def test_more_sets_of_shapes_than_the_compiler_keeps_still_work():
    f = compilation.compiled(times(2))
    for n in [*range(1, 12), 1]:
        torch.testing.assert_close(f(torch.ones(n)), torch.full((n,), 2.0))


def test_outputs_of_a_cuda_graph_are_copied_unless_they_are_arguments():
    kept, fresh = torch.ones(2), torch.ones(3)
    out = compilation._copied((kept, fresh, 3, print), ((kept, len), {"k": True}))
    assert out[0] is kept
    assert out[1] is not fresh
    assert torch.equal(out[1], fresh)
    assert out[2:] == (3, print)


def test_an_error_of_the_function_is_raised_unchanged():
    def f(x):
        raise BadValue("the function's own error")

    fast = compilation.compiled(f)
    with pytest.raises(BadValue, match="the function's own error"):
        fast(torch.ones(1))


@pytest.mark.usefixtures("backend")
def test_a_compiled_function_uses_shapes_dtypes_and_numbers_of_its_arguments():
    f = compilation.compiled(times(2))
    for x in (torch.ones(2, 3), torch.ones(2, dtype=torch.float64)):
        assert f(x).dtype == x.dtype
        torch.testing.assert_close(f(x), 2 * x)
        torch.testing.assert_close(f(x, plus=1.5), 2 * x + 1.5)
        torch.testing.assert_close(f(x, plus=2.5), 2 * x + 2.5)
    with torch.no_grad():
        assert not f(torch.ones(2, requires_grad=True)).requires_grad
    assert f(torch.ones(2, requires_grad=True)).requires_grad


def test_without_a_compiler_it_warns_and_returns_the_function_itself(monkeypatch):
    monkeypatch.setattr(compilation, "available", lambda: False)
    f = times(2)
    with pytest.warns(compilation.Uncompiled, match="no C\\+\\+ compiler was found"):
        assert compilation.compiled(f) is f


def test_a_function_that_cannot_be_compiled_runs_eagerly_with_one_warning_that_names_the_line():
    def f(x):
        return x * 2 if x.sum() > 0 else x  # a branch on a value

    for _ in range(2):  # each compiled function warns once
        fast = compilation.compiled(f)
        with pytest.warns(compilation.Uncompiled) as warned:
            assert torch.equal(fast(torch.ones(2)), torch.full((2,), 2.0))
        (message,) = {str(warning.message) for warning in warned}
        line = f.__code__.co_firstlineno + 1
        assert message == (
            f"the compiler cannot compile this: Data-dependent branching ({__file__}, line {line}, in f); "
            "running without torch.compile, which is slower"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(fast(-torch.ones(2)), -torch.ones(2))


def test_precision_holds_inside_the_context_and_is_restored():
    def inside():
        with compilation.precision("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(BadValue, match="'low'"), compilation.precision("low"):
        pass
    with pytest.raises(BadType), compilation.precision(1):
        pass


@pytest.mark.parametrize("name", ["highest", "medium"])
def test_fit_trains_at_the_given_precision(monkeypatch, name):
    seen = []
    model, opt = fv.models.gaussian2d_vae(hidden=4), fv.optim.adam()
    x = fv.random.normal(fv.random.key(0), (8, 2))
    ts = fv.train.init(model, opt, fv.random.key(1))
    watch = lambda step, ts: seen.append(torch.get_float32_matmul_precision())  # noqa: E731
    fv.train.fit(ts, model, parse("elbo"), opt, x, batch=4, compile=False, precision=name, watch=watch)
    assert seen == [name, name]


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_keep_freed_keeps_freed_memory_in_the_process():
    program = """if True:
        import torch, funcvae.compilation as compilation
        def held():
            return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
        def grown():
            before = held(); x = torch.ones(2**24); y = x + 1; del x, y
            return held() - before
        first = grown(); compilation.keep_freed(); second = grown()
        print(first, second)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned < 20 < 100 < kept


@pytest.mark.parametrize(
    ("threshold", "during"), [((700, 10, 10), 10_000), ((0, 10, 10), 0), ((50_000, 10, 10), 50_000)]
)
def test_pythons_garbage_collector_is_as_before_after_a_compilation(threshold, during, backend):
    before = gc.get_threshold()
    gc.set_threshold(*threshold)
    try:
        with compilation._few_collections():
            assert gc.get_threshold()[0] == during
        assert gc.get_threshold() == threshold
        compiled = compilation.compiled(lambda x: x + 1)
        compiled(torch.ones(2))
        assert gc.get_threshold() == threshold
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("key", [None, lambda: "key"])
def test_a_torch_whose_hashes_cannot_be_made_ahead_compiles(monkeypatch, backend, key):
    codecache = pytest.importorskip("torch._inductor.codecache")
    if key is None:
        monkeypatch.delattr(codecache, "triton_key")
    else:
        monkeypatch.setattr(codecache, "triton_key", key)
    compilation._hash_ahead()
    assert compilation.compiled(lambda x: x + 1)(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.slow
def test_options_of_the_compiler_are_used():
    f, x = partial(torch.tanh), torch.full((64,), 1e-8)  # enough for vectorized code
    torch.testing.assert_close(compilation.compiled(f)(x), x)
    assert (compilation.compiled(f, options={"cpp.use_decompose_tanh": True})(x) == 0).all()
