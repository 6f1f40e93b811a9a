import torch

import funcvae as fv
from funcvae import pictures


def test_the_plane_of_a_two_dimensional_latent_space_is_the_space_itself():
    origin, directions = pictures.latent_plane(fv.random.normal(fv.random.key(0), (5, 2)))
    assert torch.equal(origin, torch.zeros(2))
    assert torch.equal(directions, torch.eye(2))


def test_the_plane_of_a_larger_one_holds_the_first_two_principal_components():
    z = fv.random.normal(fv.random.key(0), (500, 5), torch.float64) * torch.tensor([0.1, 3.0, 0.1, 2.0, 0.1]) + 1
    origin, directions = pictures.latent_plane(z)
    torch.testing.assert_close(origin, z.mean(0))
    v = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh
    torch.testing.assert_close((directions @ v[:2].T).abs(), torch.eye(2, dtype=z.dtype), atol=1e-8, rtol=0)


def test_a_single_latent_dimension_is_drawn_on_a_line():
    origin, directions = pictures.latent_plane(torch.tensor([[1.0], [3.0]]))
    assert origin == 2
    assert directions.abs().tolist() == [[1.0], [0.0]]


def test_the_decoded_grid_ascends_to_the_right_and_upwards():
    model = fv.vae(encoder=torch.nn.Identity, decoder=Corner, likelihood=fv.heads.normal_fixed(1.0), latent=2)
    key = fv.random.key(0)
    ts = fv.train.TrainState(torch.zeros(()), key, *model.init(key), None)
    z = torch.tensor([[-1.0, 0.0], [1.0, 4.0]]).repeat(50, 1)
    images, (left, right, bottom, top) = pictures.decoded_grid(model, ts, z)
    assert images.shape == (20, 20, 1, 1, 2)
    assert (left, right, bottom, top) == (-1, 1, 0, 4)
    at = images[:, :, 0, 0]
    torch.testing.assert_close(at[0, 0], torch.tensor([-0.95, 0.1]))  # the middle of the first cell
    torch.testing.assert_close(at[0, -1], torch.tensor([0.95, 0.1]))
    torch.testing.assert_close(at[-1, 0], torch.tensor([-0.95, 3.9]))


class Corner(torch.nn.Module):
    """Decodes z to an "image" of its two coordinates."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(-1, (1, 1, 2))
