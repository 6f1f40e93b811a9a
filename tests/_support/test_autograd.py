"""`autograd.vjp` equals `torch.func.vjp` in every gradient mode and under transforms."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from funcvae import tree
from funcvae._support.autograd import vjp
from tests.support.oracles import assert_close as assert_close_to

assert_close = partial(assert_close_to, atol=1e-6, rtol=1e-6)


def f(a, b):
    """A tree of outputs, one of which has no gradient."""
    return {"x": a["w"].sin() * b, "y": (a["w"] ** 2).sum(), "z": torch.ones(2)}, (a["v"] * 3, {})


A = {"w": torch.tensor([0.3, -1.2]), "v": torch.tensor([2.0])}
B = torch.tensor([1.5, 0.5])
C = {"x": torch.tensor([1.0, -2.0]), "y": torch.tensor(0.7), "z": torch.ones(2)}


@pytest.mark.parametrize("how", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_values_gradients_and_aux_equal_those_of_torch(how):
    known, pull_known, aux_known = torch.func.vjp(f, A, B, has_aux=True)
    with how():
        value, pull, aux = vjp(f, A, B, has_aux=True)
        for retain in (True, False):
            assert_close(pull(C, retain_graph=retain), pull_known(C))
    assert_close(value, known)
    assert_close(aux, aux_known)
    assert all(not leaf.requires_grad for leaf in [*tree.leaves(value), *tree.leaves(aux)])


@torch.no_grad()
def test_vjp_works_under_vmap_and_grad():
    def slope(b):
        value, pull = vjp(lambda b: (b**3).sum(), b)
        return pull(torch.ones_like(value))[0]

    b = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert_close(torch.vmap(slope)(b), 3 * b**2)
    assert_close(torch.func.grad(lambda b: slope(b).sum())(b), 6 * b)


@pytest.mark.parametrize("how", [torch.no_grad, nullcontext])
def test_vjp_takes_primals_without_leaves(how):
    with how():
        value, pull = vjp(lambda empty: torch.ones(2), {})
        assert torch.equal(value, torch.ones(2))
        assert pull(torch.ones(2)) == ({},)
