"""Optimizers as pure functions: state in, state out, on the device of the tensors. Learning rates may be schedules.

A `Schedule` maps the number of steps made to a number. A `Mask` maps the path of a parameter, such as
"encoder/linear1.weight", to whether weight decay applies to it. `EXAMPLES` and `SCHEDULES` have examples, by name, of
the strings that `parse` and `parse_schedule` read.
"""

from funcvae.optim.adaptive import AdamState, adam, adamw
from funcvae.optim.momentum import SGDState, sgd
from funcvae.optim.protocol import Mask, Optimizer
from funcvae.optim.schedules import Schedule, constant, cosine, exponential, linear, piecewise, repeat, warmup_cosine
from funcvae.optim.specs import EXAMPLES, SCHEDULES, needs_steps, parse, parse_schedule
from funcvae.optim.torch_classes import TorchState, from_torch
from funcvae.optim.transforms import Transform, add_decayed_weights, chain, clip_by_global_norm

__all__ = [
    "EXAMPLES", "SCHEDULES", "AdamState", "Mask", "Optimizer", "SGDState", "Schedule", "TorchState", "Transform",
    "adam", "adamw", "add_decayed_weights", "chain", "clip_by_global_norm", "constant", "cosine", "exponential",
    "from_torch", "linear", "needs_steps", "parse", "parse_schedule", "piecewise", "repeat", "sgd", "warmup_cosine",
]  # fmt: skip
