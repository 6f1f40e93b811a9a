import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.figures import decoding
from tests.support.oracles import assert_zero_mean


def test_the_plane_of_a_two_dimensional_latent_space_is_the_space_itself():
    origin, directions = decoding.latent_plane(fv.random.normal(fv.random.key(0), (5, 2)))
    assert torch.equal(origin, torch.zeros(2))
    assert torch.equal(directions, torch.eye(2))


def test_the_plane_of_a_larger_one_holds_the_first_two_principal_components():
    z = fv.random.normal(fv.random.key(0), (500, 5), torch.float64) * torch.tensor([0.1, 3.0, 0.1, 2.0, 0.1]) + 1
    origin, directions = decoding.latent_plane(z)
    torch.testing.assert_close(origin, z.mean(0))
    v = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh
    torch.testing.assert_close((directions @ v[:2].T).abs(), torch.eye(2, dtype=z.dtype), atol=1e-8, rtol=0)


def test_a_one_dimensional_latent_space_becomes_a_line():
    origin, directions = decoding.latent_plane(torch.tensor([[1.0], [3.0]]))
    assert origin == 2
    assert directions.abs().tolist() == [[1.0], [0.0]]


def test_the_decoded_grid_ascends_to_the_right_and_upwards():
    model = fv.vae(encoder=torch.nn.Identity, decoder=Corner, likelihood=fv.heads.normal_fixed(1.0), latent=2)
    key = fv.random.key(0)
    z = torch.tensor([[-1.0, 0.0], [1.0, 4.0]]).repeat(50, 1)
    images, extent = decoding.decoded_grid(model, *model.init(key), z)
    assert images.shape == (20, 20, 1, 1, 2)
    assert extent == (-4, 4, -4, 4)  # symmetric, and as far as the data
    at = images[:, :, 0, 0]
    torch.testing.assert_close(at[0, 0], torch.tensor([-3.8, -3.8]))  # the middle of the first cell
    torch.testing.assert_close(at[0, -1], torch.tensor([3.8, -3.8]))
    torch.testing.assert_close(at[-1, 0], torch.tensor([-3.8, 3.8]))
    images, extent = decoding.decoded_grid(model, *model.init(key), z, span=(0, 3), n=3)
    assert extent == (0, 3, 0, 3)
    torch.testing.assert_close(images[2, 0, 0, 0], torch.tensor([0.5, 2.5]))
    with pytest.raises(BadValue, match=r"span is tuple \(3, -3\): it must be two numbers, the lower first"):
        decoding.decoded_grid(model, *model.init(key), z, span=(3, -3))


def plane():
    """A model of "images" [1, 1, 2] that encodes and decodes two numbers as they are, with its parameters and state."""
    model = fv.vae(
        encoder=torch.nn.Flatten,
        decoder=Corner,
        posterior=fv.heads.delta,
        likelihood=fv.heads.normal_fixed(0.5),
        latent=2,
    )
    return model, *model.init(fv.random.key(0))


def test_latents_and_means_are_independent_of_the_chunk_size():
    x = fv.random.normal(fv.random.key(1), (1203, 1, 1, 2))
    z = decoding.latents(*plane(), x)
    assert torch.equal(z, x.flatten(1))
    assert torch.equal(decoding.decoded(*plane(), z), x)
    assert torch.equal(decoding.reconstructed(*plane(), x, fv.random.key(3)), x)
    assert torch.equal(decoding.reconstructed(*plane(), x), x)


def test_a_reconstruction_is_decoded_from_a_posterior_sample():
    model = fv.vae(
        encoder=lambda: torch.nn.Linear(2, 4), decoder=Corner, likelihood=fv.heads.normal_fixed(0.5), latent=2
    )
    params, state = model.init(fv.random.key(0))
    x, key = fv.random.normal(fv.random.key(1), (1203, 2)), fv.random.key(2)
    z = model.encode(params, state, x)[0].sample(fv.random.normal(key, (1203, 2)))
    torch.testing.assert_close(decoding.reconstructed(model, params, state, x, key).flatten(1), z)
    location = model.encode(params, state, x)[0].loc
    torch.testing.assert_close(decoding.reconstructed(model, params, state, x).flatten(1), location)
    assert not torch.allclose(z, location)


def test_an_interpolation_is_linear_from_the_first_item_to_the_second():
    first, second = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[1.0, 2.0]]])
    images = decoding.interpolated(*plane(), first, second, 5)
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    torch.testing.assert_close(images[:, 0, 0, 1], torch.tensor([4, 3.5, 3, 2.5, 2]))
    with pytest.raises(BadValue, match="steps is 1: it must be at least 2"):
        decoding.interpolated(*plane(), first, second, 1)


class _Learned(torch.nn.Module):
    """The prior N(1, 0.5²)."""

    def forward(self, z):
        return fv.distributions.Normal(torch.ones_like(z), torch.full_like(z, 0.5))


def test_a_traversal_varies_one_latent_in_deviations_of_the_prior():
    model, params, state = plane()
    item = torch.tensor([[[[7.0, 4.0]]]])
    images = decoding.traversed(model, params, state, item, [1, 0], [-2, 0, 3])[:, :, 0, 0]
    torch.testing.assert_close(images[0], torch.tensor([[7.0, -2.0], [7, 0], [7, 3]]))
    torch.testing.assert_close(images[1], torch.tensor([[-2.0, 4.0], [0, 4], [3, 4]]))
    learned = fv.vae(
        encoder=torch.nn.Flatten, decoder=Corner, posterior=fv.heads.delta, prior=_Learned,
        likelihood=fv.heads.normal_fixed(0.5), latent=2,
    )  # fmt: skip
    images = decoding.traversed(learned, *learned.init(fv.random.key(0)), item, [0], [-2, 0])[0, :, 0, 0]
    torch.testing.assert_close(images, torch.tensor([[0.0, 4.0], [1, 4]]))
    with pytest.raises(BadValue, match="a latent in rows is 2"):
        decoding.traversed(model, params, state, item, [2], [0])
    with pytest.raises(BadValue, match="item has 2 items: it must have 1"):
        decoding.traversed(model, params, state, item.expand(2, -1, -1, -1), [0], [0])


def test_samples_are_prior_samples_decoded_with_and_without_noise():
    key = fv.random.key(2)
    means = decoding.samples(*plane(), key, 20_000, drawn=False).flatten(1).double()
    draws = decoding.samples(*plane(), key, 20_000).flatten(1).double()
    assert_zero_mean(means)
    assert_zero_mean(means**2 - 1)
    assert_zero_mean((draws - means) / 0.5)
    assert_zero_mean(((draws - means) / 0.5) ** 2 - 1)
    assert_zero_mean((draws - means) * means)  # the decoder's noise is not the prior's
    z_key, x_key = fv.random.split(key)
    x = fv.random.normal(z_key, (20_000, 2)) + 0.5 * fv.random.normal(x_key, (20_000, 1, 1, 2)).flatten(1)
    torch.testing.assert_close(draws, x.double())  # independent of the chunk size
    with pytest.raises(BadValue, match="n is 0"):
        decoding.samples(*plane(), key, 0)


class Corner(torch.nn.Module):
    """Decodes z to an "image" of its two coordinates."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(-1, (1, 1, 2))


class _OfLabels(torch.nn.Module):
    """Decodes (z, c) to z with c in place of its first number, which shows the condition."""

    def forward(self, z, c):
        return torch.cat([c.unsqueeze(1).to(z), z[:, 1:]], 1)


def test_figures_of_a_conditional_model_use_the_condition_of_each_item():
    model = fv.vae(
        encoder=lambda: Labelled(), decoder=_OfLabels, latent=2, likelihood=fv.heads.normal_fixed(1.0),
        modelled=lambda data: data["x"], condition=lambda data: data["y"],
    )  # fmt: skip
    trained = (model, *model.init(fv.random.key(0)))
    data = {"x": fv.random.normal(fv.random.key(1), (7, 2)), "y": torch.arange(7)}
    assert decoding.reconstructed(*trained, data, fv.random.key(2))[:, 0].tolist() == list(range(7))
    drawn = decoding.samples(*trained, fv.random.key(2), 7, drawn=False, condition=data["y"])
    assert drawn[:, 0].tolist() == list(range(7))
    first, second = ({name: x[i] for name, x in data.items()} for i in (3, 5))
    assert decoding.interpolated(*trained, first, second, 4)[:, 0].tolist() == [3] * 4
    with pytest.raises(BadValue, match="the model is conditional: give the conditions"):
        decoding.samples(*trained, fv.random.key(2), 7)
    with pytest.raises(BadValue, match="the condition has 7 items: it must have 5"):
        decoding.samples(*trained, fv.random.key(2), 5, condition=data["y"])


class Labelled(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 4)

    def forward(self, data):
        return super().forward(data["x"]).chunk(2, -1)
