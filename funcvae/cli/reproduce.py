"""Commands that reproduce steps of a run: `verify` and `replay`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from funcvae import runs, tree
from funcvae.cli.options import DataOptions, Flat, RunPath
from funcvae.errors import BadValue
from funcvae.train import checkpoint
from funcvae.train.replaying import Replay

__all__ = ["replay", "verify"]

MOVED = DataOptions()


def verify(
    run: RunPath,
    /,
    *,
    steps: int | None = None,
    tolerance: float = runs.TOLERANCE,
    moved: Annotated[DataOptions, Flat] = MOVED,
) -> None:
    """Make a run's first steps again, and compare losses and parameters: to the bit, where the environment is the same.

    Prints what came of it; exit status 1 says that they are not the same.

    Args:
        run: The run's folder, in which nothing is written.
        steps: How many; the first epoch's unless given.
        tolerance: Largest relative difference allowed where versions, machine or device differ.
        moved: Where the data are now.
    """
    verdict = runs.verify(run, steps, tolerance=tolerance, data=moved.data, data_dir=moved.data_dir)
    print(f"{run}: {verdict}")
    if not verdict.holds:
        sys.exit(1)


def replay(
    run: RunPath,
    step: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="STEP")]],
    /,
    *,
    out: str | None = None,
    moved: Annotated[DataOptions, Flat] = MOVED,
) -> None:
    """Make one step of a run again, from the nearest checkpoint before it, and say what went into it and came out.

    Args:
        run: The run's folder, in which nothing is written.
        step: Which, counted from 0 as in metrics.jsonl.
        out: Safetensors file for all of it: rows, x, eps, log_w, bound and grads.
        moved: Where the data are now.
    """
    if out is not None and Path(out).suffix != ".safetensors":
        raise BadValue(f"--out {out}: give the name of a safetensors file, NAME.safetensors")
    config, found = runs.replay(run, step, data=moved.data, data_dir=moved.data_dir)
    print(f"{run}: step {step} of {config.estimator} with {config.samples} samples, a batch of {len(found.rows)}")
    print("\n".join(_replay_lines(found)))
    if out is not None:
        arrays = {name: getattr(found, name) for name in ("rows", "x", "eps", "log_w", "bound", "grads")}
        print(checkpoint.save(Path(out), arrays, {"run": run, "step": step}))


def _replay_lines(found: Replay) -> Iterator[str]:
    """Describes a replay: each array's size and range, and how many of its numbers are not finite."""
    for name, value in found.metrics._asdict().items():
        yield f"{name:34}{float(value):14.7g}"
    arrays = {"x": found.x, "eps": found.eps, "log_w": found.log_w, "bound": found.bound}
    arrays |= {f"grads/{name}": leaf for name, leaf in tree.named_leaves(found.grads).items()}
    after = tree.named_leaves(found.after.params).items()
    arrays |= {f"after/{name}": leaf for name, leaf in after if not leaf.isfinite().all()}
    yield f"{'array':34}{'norm':>14}{'least':>14}{'greatest':>14}  not finite"
    for name, array in arrays.items():
        good = array[array.isfinite()].double()
        least, greatest = (float(good.min()), float(good.max())) if len(good) else (float("nan"),) * 2
        line = f"{name:34}{float(good.norm()):14.7g}{least:14.7g}{greatest:14.7g}  {array.numel() - len(good)}"
        yield line + _nonfinite_rows(name, array, found.rows)
    yield f"rows of the training data: {_first_rows(found.rows)}"


def _nonfinite_rows(name: str, array: Tensor, rows: Tensor) -> str:
    """The training rows whose numbers are not finite, where the array has an axis of the batch."""
    axis = {"x": 0, "bound": 0, "eps": 1, "log_w": 1}.get(name)
    if axis is None or bool(array.isfinite().all()):
        return ""
    bad = array.isfinite().logical_not().movedim(axis, 0).flatten(1).any(1) if array.ndim > 1 else ~array.isfinite()
    return f" (rows {_first_rows(rows[bad])})"


def _first_rows(rows: Tensor) -> str:
    """The first few row numbers."""
    return ", ".join(map(str, rows[:_MAX_ROWS].tolist())) + ", …" * (len(rows) > _MAX_ROWS)


_MAX_ROWS = 16
