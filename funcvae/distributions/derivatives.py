"""Whether samples have the derivatives of their values."""

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.distributions.types import Posterior
from funcvae.errors import BadType

__all__ = ["is_reparameterised"]


def is_reparameterised(q: Posterior) -> bool:
    """Whether the derivatives of `q.sample(eps)` in the fields of q are those of its values.

    This is `q.reparameterised` if q has that attribute. Otherwise each field f is moved, to half of its values or,
    where they are close to zero, by 0.1, and the change of the sample is compared with the integral of its derivative:

        sample(f + m) - sample(f) = ∫_0^1 d/dt sample(f + t m) dt

    A sample that has steps (a threshold, `round`) or that is detached from a field does not satisfy this.

    Raises:
        BadType: q is not a tree of tensors, or its samples cannot be compared.
    """
    if hasattr(q, "reparameterised"):
        return bool(q.reparameterised)
    try:
        return all(_has_derivative(q, i) for i, field in enumerate(tree.leaves(q)) if field.is_floating_point())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BadType(
            f"the samples of the {type(q).__name__} posterior cannot be compared with their derivatives: set its "
            f"attribute reparameterised to True or False ({checks.one_line(str(error))})"
        ) from error


@torch.inference_mode(False)
@torch.enable_grad()
def _has_derivative(q: Posterior, i: int) -> bool:
    """Whether the change of a sample with field i of q equals the integral of its derivative."""
    fields, kind = tree.flatten(q)
    fields = [field.detach().to(torch.float64, copy=True) if field.is_floating_point() else field for field in fields]
    move = torch.where(fields[i].abs() < 0.2, 0.1 * torch.where(fields[i] < 0, -1, 1), fields[i] / -2)
    noise_key, *keys = random.split(random.key(_CHECK_SEED, device=move.device), 5)
    shape = (-(-_CHECK_NUMBERS // q.loc.numel()), *q.loc.shape)
    eps = random.normal(noise_key, shape, torch.float64)
    directions = [random.normal(key, shape, torch.float64) for key in keys]  # an error is orthogonal to none of them

    def sample(t: Tensor) -> Tensor:
        return kind.unflatten([*fields[:i], fields[i] + t * move, *fields[i + 1 :]]).sample(eps.clone())

    def slopes(t: Tensor) -> Tensor:
        """The derivative of the sample in t along each of the directions."""
        z = sample(t.requires_grad_())
        if not z.requires_grad:
            return torch.zeros(len(directions), dtype=t.dtype, device=t.device)
        grads = [torch.autograd.grad(z, t, along, retain_graph=True, materialize_grads=True)[0] for along in directions]
        return torch.stack(grads)

    change = (sample(move.new_ones(())) - sample(move.new_zeros(()))).detach()
    changes = torch.stack([(change * along).sum() for along in directions])
    for nodes in (8, 128):  # a steep function or one with kinks takes more
        points, weights = (move.new_tensor(each) / 2 for each in leggauss(nodes))
        integral = sum(weight * slopes(0.5 + point) for point, weight in zip(points, weights, strict=True))
        if not (changes.isfinite().all() and integral.isfinite().all()):
            raise ValueError("they are not finite")
        if ((changes - integral).abs() <= 0.03 * change.norm() + 1e-9).all():
            return True
    return False


_CHECK_SEED, _CHECK_NUMBERS = 2**63 + 2, 2**16
