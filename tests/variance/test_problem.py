"""Settings of replicates and their noise."""

from dataclasses import FrozenInstanceError

import pytest
import torch

import funcvae as fv
from funcvae.errors import BadType, BadValue
from funcvae.variance.problem import Problem, ReplicateSettings, noise_chunks
from tests.support.oracles import tiny

KEY = fv.random.key(5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"samples": 0}, BadValue, "samples is 0: it must be at least 1"),
        ({"replicates": 0}, BadValue, "replicates is 0: it must be at least 1"),
        ({"chunk": 0}, BadValue, "chunk is 0: it must be at least 1"),
        ({"noise": "iid"}, BadType, "noise is 'iid': it must be a function"),
        ({"groups": 3}, BadType, "groups is 3: it must be a list or tuple"),
        ({"groups": [3]}, BadType, "a pattern in groups is 3: it must be a string"),
        ({"train": 1}, BadType, "train is 1: it must be True or False"),
        ({"compile": None}, BadType, "compile is None: it must be True or False"),
    ],
)
def test_wrong_settings_raise_an_error(given, error, message):
    with pytest.raises(error, match=message):
        ReplicateSettings(**{"samples": 2, **given})


def test_settings_are_immutable_and_equal_by_value():
    settings = ReplicateSettings(2, groups=["encoder/*", "decoder"])
    assert settings == ReplicateSettings(2, groups=("encoder/*", "decoder"))
    assert hash(settings) == hash(ReplicateSettings(2, groups=("encoder/*", "decoder")))
    assert ReplicateSettings(2, groups="encoder").groups == ("encoder",)
    with pytest.raises(FrozenInstanceError):
        settings.samples = 3


def noise_of(scheme, chunk, replicates):
    model, params, state, x = tiny()
    params = fv.tree.map(torch.Tensor.float, params)
    problem = Problem(model, params, state, x.float(), KEY, ReplicateSettings(4, chunk=chunk))
    return noise_chunks(problem, scheme, replicates, compile=False)


@pytest.mark.parametrize("scheme", fv.noise.TABLE.values(), ids=fv.noise.TABLE)
def test_the_noise_has_the_same_bits_for_every_chunk(scheme):
    whole = torch.cat([eps for _, eps in noise_of(scheme, 50, range(50))])
    for chunk in (1, 3, 16, 17, 49):
        parts = list(noise_of(scheme, chunk, range(50)))
        assert [first for first, _ in parts] == list(range(0, 50, chunk))
        assert torch.equal(torch.cat([eps for _, eps in parts]), whole)
    assert torch.equal(torch.cat([eps for _, eps in noise_of(scheme, 4, range(21, 50))]), whole[21:])
    for r in (0, 17, 49):
        torch.testing.assert_close(whole[r], scheme(fv.random.fold_in(KEY, r), 4, (2, 2)), atol=1e-6, rtol=1e-6)


def test_large_noise_drawn_one_replicate_at_a_time_is_the_same(monkeypatch):
    together = [eps for _, eps in noise_of(fv.noise.iid, 4, range(9))]
    monkeypatch.setattr("funcvae.variance.problem._NOISE_BLOCK_NUMBERS", 3)
    alone = [eps for _, eps in noise_of(fv.noise.iid, 4, range(9))]
    torch.testing.assert_close(torch.cat(alone), torch.cat(together))
