"""The optimizers of `torch.optim` as pure functions."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.pickling import remembered
from funcvae._support.reprs import short_repr
from funcvae.errors import BadType, BadValue
from funcvae.optim.protocol import Optimizer, Rate, check_gradient, first_step, rate_at
from funcvae.tree import FloatTensors, Tree

__all__ = ["TorchState", "from_torch"]


@short_repr
class TorchState(NamedTuple):
    """The state of an optimizer of `torch.optim`."""

    step: Tensor
    """The number of updates made, an int64 tensor without axes."""
    slots: Tree
    """The tensors that the optimizer keeps for each parameter: like params, with a dict in place of each leaf. They are
    zero before the first update, which makes them."""


@remembered
@checks.arguments
def from_torch(kind: type, lr: Rate, **options: Any) -> Optimizer:
    """Makes an optimizer from a class of `torch.optim`, or one of the same kind, such as `torch.optim.RMSprop`.

    Each update makes the torch optimizer anew, with copies of the tensors that it kept, so it is pure. `torch.compile`
    cannot follow it: a training step with it runs eagerly, with the warning `funcvae.compilation.Uncompiled`, and more
    slowly than with `adam`, `adamw` or `sgd`. It reads the step number, so on a GPU it waits for the device.

    Args:
        kind: the class. All state that it keeps must be tensors, one dict for each parameter.
        lr: a number, or a schedule, as in `adam`.
        options: other arguments of the class, such as `momentum=0.9`.

    >>> opt = from_torch(torch.optim.Adagrad, lr=0.01)

    Raises:
        BadType: kind is not a class of optimizers, needs a closure, such as LBFGS, or keeps more than tensors for each
            parameter.
        BadValue: lr is negative, or the class does not allow these options.
    """
    if not issubclass(kind, torch.optim.Optimizer):
        raise BadType(f"kind is {kind.__name__}: it must be a class of torch.optim, such as torch.optim.RMSprop")
    name = f"torch.optim.{kind.__name__}"
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        raise BadType(f"{name} calls a closure that computes the loss again: use one that needs only the gradient")

    def made(leaves: list[Tensor], rate: float) -> torch.optim.Optimizer:
        parameters = [torch.nn.Parameter(leaf.detach().clone()) for leaf in leaves]
        new: Any = kind
        try:
            return new(parameters, lr=rate, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadValue(f"{name}: {checks.one_line(str(error))}") from None

    def stepped(opt: torch.optim.Optimizer, grads: list[Tensor]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The new parameters, and the tensors that the optimizer keeps for each."""
        (group,) = opt.param_groups
        for p, g in zip(group["params"], grads, strict=True):
            p.grad = g.detach().clone()
        before = dict(group)
        opt.step()
        if any(before.get(key) is not value for key, value in group.items()):
            raise BadType(f"{name} keeps state in its param_groups: it must keep tensors for each parameter")
        slots = [dict(opt.state[p]) for p in group["params"]]
        for slot in slots:
            for key, value in slot.items():
                checks.tensor(f"the state {key!r} of {name}", value)
        return [p.detach() for p in group["params"]], slots

    @checks.arguments
    def init(params: FloatTensors) -> TorchState:
        step = first_step(params)
        leaves, structure = tree.flatten(params)
        # A step on copies, for the structure of the state.
        _, slots = stepped(made(leaves, rate=1e-3), [torch.zeros_like(leaf) for leaf in leaves])
        return TorchState(step, structure.unflatten(tree.zeros_like(slots)))

    @checks.arguments
    def update(grads: FloatTensors, state: TorchState, params: FloatTensors) -> tuple[Tree, TorchState]:
        if torch.compiler.is_compiling():
            raise NotImplementedError(f"{name} runs eagerly")
        opt = made(tree.leaves(params), float(rate_at(lr, state.step)))
        rows = tree.rows(params, grads, state.slots)
        for p, g, _ in rows:
            check_gradient(g, p)
        if state.step > 0:  # until then, the optimizer starts by itself
            for p, (_, _, slot) in zip(opt.param_groups[0]["params"], rows, strict=True):
                opt.state[p] = tree.map(torch.clone, slot)
        new, slots = stepped(opt, [g for _, g, _ in rows])
        structure = tree.structure(params)
        return structure.unflatten(new), TorchState(state.step + 1, structure.unflatten(slots))

    made([torch.zeros(1, 1)], rate=1e-3)  # checks the options
    return Optimizer(init, update)
