"""Names of estimators: parsing, lines of weights, and papers."""

import pytest
import torch

from funcvae.errors import BadValue
from funcvae.estimators import EXAMPLES, SCHEDULABLE, TABLE, Estimator, needs_steps, parse, parse_scheduled, weights_of
from tests.support.oracles import noise, tiny
from tests.support.specs import every_estimator


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("iwea", "unknown estimator 'iwea': did you mean 'iwae'"),
        ("zzzz", "choose from: arm, beta_elbo, ciwae, disarm"),
        ("beta_elbo", "write beta_elbo:BETA, as in beta_elbo:4$"),
        ("miwae", "write miwae:M, as in miwae:2$"),
        ("tvo", "write tvo:PARTITION, as in tvo:0:0.5:1$"),
        ("renyi:0.5:1", "write renyi:ALPHA"),
        ("miwae:1.5", "'1.5' is not a whole number"),
        ("tvo:0:a:1", "'0:a:1' is not a number"),
        ("renyi:1", "alpha is 1, where the Rényi bound is the ELBO"),
        ("renyi:inf", "alpha is inf: it must be finite"),
        ("vr_iwae_dreg:1", r"alpha is 1.0: it must lie in \[0, 1\)"),
        ("vr_iwae_dreg:-1", "alpha is -1.0"),
        ("ovis:2", "gamma is 2.0: it must be between 0 and 1"),
        ("ciwae:1.5", "beta is 1.5: it must be between 0 and 1"),
        ("miwae:0", "m is 0: it must be at least 1"),
        ("piwae:0", "m is 0: it must be at least 1"),
        ("tvo:0:0.7:0.3:1", r"partition is \(0.0, 0.7, 0.3, 1.0\): it must rise from 0 to 1"),
        ("tvo:0.5:1", "it must rise from 0 to 1"),
        ("tvo:0:0.5", "it must rise from 0 to 1"),
        ("tvo:0", "it must rise from 0 to 1"),
        ("rebar:0.7", "write rebar:ETA:TEMPERATURE, as in rebar:0.7:0.6"),
        ("rebar:0.7:0", "temperature is 0.0: it must be positive"),
        ("rebar:nan:1", "eta is nan: it must be finite"),
        ("quadratic_cv", "write quadratic_cv:GAMMA, as in quadratic_cv:1"),
        ("quadratic_cv:inf", "gamma is inf: it must be finite"),
        ("disarm:2", "write disarm$"),
        ("beta_elbo:", "'' is not a number"),
        ("beta_elbo:x", "'x' is not a number"),
        ("beta_elbo:-1", "beta is -1.0: it must be at least 0"),
        ("beta_elbo:nan", "beta is nan"),
        ("iwae:2", "write iwae$"),
        ("iwae:", "write iwae$"),
        ("", "unknown estimator ''"),
        ("free_bits", "write free_bits:LEAST, as in free_bits:0.1"),
        (
            "beta_elbo:linear:0:1:10",
            "changes with the training step, and here .*: give a number, as in ",
        ),
    ],
)
def test_the_error_for_a_wrong_name_says_what_to_write(spec, message):
    with pytest.raises(BadValue, match=message):
        parse(spec)


@every_estimator
def test_parsing_the_name_of_an_estimator_gives_the_same_estimator(spec):
    estimator = parse(spec)
    assert estimator.name == spec
    assert parse(estimator.name).claims == estimator.claims


def test_every_estimator_has_one_line_of_weights_and_a_paper():
    for name, spec in EXAMPLES.items():
        line = weights_of(name)
        assert "\n" not in line
        assert len(line) <= 112
        assert line.startswith("path " if parse(spec).weights else ("mean_k ", "Σ_n ", "Σ_k "))
        assert parse(spec).claims.papers


@pytest.mark.parametrize("name", SCHEDULABLE)
@pytest.mark.parametrize(
    ("spec", "steps", "step", "value"),
    [("linear:0:1:10", None, 4, 0.4), ("linear:0:1", 20, 5, 0.25), ("repeat:10:linear:0:1:5", None, 13, 0.6)],
)
def test_an_argument_may_be_a_schedule(name, spec, steps, step, value):
    at, x = parse_scheduled(f"{name}:{spec}", steps), (*tiny(), noise(3, 2, 2))
    known = TABLE[name](value)
    torch.testing.assert_close(at(torch.tensor(step))(*x, train=True).bound, known(*x, train=True).bound)
    assert needs_steps(f"{name}:{spec}") == (steps is not None)


def test_a_spec_without_a_schedule_is_its_estimator():
    assert set(SCHEDULABLE) == {"beta_elbo", "free_bits"}
    for spec in EXAMPLES.values():
        found = parse_scheduled(spec)
        assert isinstance(found, Estimator)
        assert found.name == spec
        assert not needs_steps(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("beta_elbo:linaer:0:1", "unknown schedule 'linaer': did you mean 'linear'"),
        ("beta_elbo:linear:0", r"write linear:START:END\[:STEPS\], as in linear:"),
        ("beta_elbo:linear:0:1", "schedule 'linear:0:1' needs a number of steps"),
        ("iwae:linear:0:1:9", "estimator 'iwae:linear:0:1:9': write iwae$"),
        ("renyi:linear:0:1:9", "estimator 'renyi:linear:0:1:9': write renyi:ALPHA"),
        ("beta_elbo", "write beta_elbo:BETA"),
        ("beta_elbo:-1", "beta is -1.0"),
    ],
)
def test_the_error_for_a_wrong_schedule_says_what_to_write(spec, message):
    with pytest.raises(BadValue, match=message):
        parse_scheduled(spec)
