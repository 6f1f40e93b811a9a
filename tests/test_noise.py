"""The i.i.d. scheme: standard normal draws with the samples' axis in front."""

import pytest
import torch

from funcvae import noise, random
from funcvae.errors import BadValue


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_iid_noise_is_random_normal_with_samples_in_front(dtype):
    key = random.key(0)
    eps = noise.iid(key, 5, (3, 2), dtype=dtype)
    assert eps.shape == (5, 3, 2)
    assert torch.equal(eps, random.normal(key, (5, 3, 2), dtype))


def test_iid_noise_under_vmap_over_keys_equals_a_loop():
    keys = random.split(random.key(1), 4)
    eps = torch.vmap(lambda k: noise.iid(k, 2, (3,)))(keys)
    assert torch.equal(eps, torch.stack([noise.iid(k, 2, (3,)) for k in keys]))


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_sample_is_an_error(n):
    with pytest.raises(BadValue, match="samples"):
        noise.iid(random.key(0), n, (3,))
