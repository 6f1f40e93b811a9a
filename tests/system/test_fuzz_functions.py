"""A few cases of tests/fuzz/functions.py, and tests that it finds errors."""

import sys
import time
import warnings

import functions as fuzz
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import TARGETS, Target

import funcvae as fv
from funcvae.errors import BadValue, FuncvaeError


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cases", [200, pytest.param(600, marks=pytest.mark.slow)])
def test_a_few_hundred_cases_pass(capsys, cases):
    assert fuzz.main(["--cases", str(cases)]) == 0
    out, error = capsys.readouterr()
    assert f"{cases} cases" in out
    assert "0 failures" in out
    assert not error.strip()


def test_every_public_function_is_called_or_excluded_with_a_reason():
    assert not fuzz.uncovered()
    assert fuzz.LEFT_OUT.keys() <= fuzz.public() - TARGETS.keys()


def test_a_function_that_is_not_called_is_reported(capsys, monkeypatch):
    monkeypatch.delitem(TARGETS, "bounds.iwae")
    assert fuzz.main(["--cases", "1"]) == 1
    assert "not called: bounds.iwae" in capsys.readouterr().err


def takes_memory(log_w):
    np.ones(2**25)


def warns(log_w):
    warnings.warn("careful", stacklevel=1)


def doubles(log_w):
    log_w *= 2


def two_lines(log_w):
    raise BadValue("one\ntwo")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda log_w: log_w.no_such, "AttributeError"),
        (lambda log_w: 1 / 0, "ZeroDivisionError"),
        (lambda log_w: sys.exit(3), "SystemExit"),
        (lambda log_w: time.sleep(3), "Hung: after 1 seconds"),
        (takes_memory, "took 2"),
        (warns, "UserWarning: careful"),
        (two_lines, "BadValue is not one line"),
        (doubles, "changed an argument"),
    ],
)
def test_a_broken_function_is_reported(capsys, monkeypatch, broken, message):
    monkeypatch.setattr(fuzz, "PATIENCE", 1)
    monkeypatch.setattr(fuzz.limits, "MEMORY", 100)
    target = TARGETS["bounds.iwae"]._replace(call=broken)
    assert fuzz.main(["--cases", "1"], {"bounds.iwae": target}) == 1
    assert message in capsys.readouterr().err


def test_cases_are_reproducible():
    first, second = (fuzz.drawn(list(TARGETS.values()), 5, 17) for _ in range(2))
    assert first[0] is second[0]
    assert {name: fuzz.shown(value) for name, value in first[1].items()} == {
        name: fuzz.shown(value) for name, value in second[1].items()
    }


def test_one_case_shows_its_arguments_and_what_it_raised(capsys):
    wrong: Target = TARGETS["bounds.iwae"]._replace(call=lambda log_w: log_w.no_such)
    assert fuzz.main(["--case", "3"], {"bounds.iwae": wrong}) == 1
    out, error = capsys.readouterr()
    assert "log_w = " in out
    assert "no_such" in error


# What hypothesis finds of shapes and numbers:

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(), st.integers(), max_size=2),
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 3), max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.float16])


@given(st.integers(-1, 2**64), st.lists(st.integers(-1, 4), max_size=3).map(tuple), DTYPES)
@settings(max_examples=200)
def test_draws_have_the_requested_shape_or_are_an_error(seed, shape, dtype):
    def draw():
        return fv.random.normal(fv.random.key(seed), shape, dtype)

    if 0 <= seed < 2**64 and all(n >= 0 for n in shape) and dtype in (torch.float32, torch.float64):
        x = draw()
        assert (x.shape, x.dtype) == (shape, dtype)
        assert x.isfinite().all()
    else:
        with pytest.raises(FuncvaeError):
            draw()


@given(st.sampled_from(["seed", "shape", "dtype"]), ANYTHING)
@settings(max_examples=100)
def test_a_draw_takes_no_other_argument(name, value):
    given = {"seed": 3, "shape": (2,), "dtype": torch.float32, name: value}
    if not (name == "seed" and type(value) is int and 0 <= value < 2**64) and not (name == "shape" and value == []):
        with pytest.raises(FuncvaeError):
            fv.random.normal(fv.random.key(given["seed"]), given["shape"], given["dtype"])


@given(
    SHAPES, DTYPES, st.sampled_from([fv.bounds.elbo, fv.bounds.iwae, fv.bounds.renyi(0.5), fv.bounds.tvo((0, 0.5, 1))])
)
@settings(max_examples=200)
def test_bounds_need_log_weights_of_at_least_one_sample(shape, dtype, bound):
    log_w = torch.zeros(shape, dtype=dtype)
    if shape and shape[0] and dtype.is_floating_point:
        value = bound(log_w)
        assert list(value.shape) == shape[1:]
        assert (value == 0).all()
    else:
        with pytest.raises(FuncvaeError):
            bound(log_w)


@given(SHAPES, DTYPES)
@settings(max_examples=40)
def test_an_estimator_takes_only_noise_that_suits_the_model(shape, dtype):
    model = fv.models.gaussian2d_vae(2, 3)
    params, state = model.init(fv.random.key(0))
    x, eps = torch.zeros(3, 2), torch.zeros(shape, dtype=dtype)
    if len(shape) == 3 and shape[0] and shape[1:] == [3, 2] and dtype == torch.float32:
        assert fv.estimators.iwae()(model, params, state, x, eps, train=True).bound.shape == (3,)
    else:
        with pytest.raises(FuncvaeError):
            fv.estimators.iwae()(model, params, state, x, eps, train=True)
