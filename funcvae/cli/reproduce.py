"""Commands that reproduce steps of a run: `verify` and `replay`."""

import sys
from pathlib import Path

from torch import Tensor

from funcvae import runs, tree
from funcvae._support import examples
from funcvae._support.tables import table
from funcvae.cli.options import DataOptions, Int, OutputOptions, progress_bar
from funcvae.train import checkpoint
from funcvae.train.replaying import Replay

__all__ = ["replay", "verify"]

LACKING, OUTPUT = DataOptions(), OutputOptions()


def verify(
    run: str, /, *, steps: Int | None = None, tolerance: float = runs.TOLERANCE, lacking: DataOptions = LACKING
) -> None:
    """Reproduce the first steps of a run, and compare losses and parameters bit by bit.

    Prints the result. Exit status 1: the steps differ.

    Args:
        run: The run folder; nothing is written to it.
        steps: Number of steps. By default those of the first epoch.
        tolerance: Largest relative difference allowed if versions, machine or device differ.
        lacking: What the folder of the run lacks.
    """
    with progress_bar("step") as progress:
        verdict = runs.verify(run, steps, tolerance=tolerance, **vars(lacking), progress=progress)
    print(f"{run}: {verdict}")
    if not verdict.holds:
        sys.exit(1)


def replay(run: str, step: Int, /, *, output: OutputOptions = OUTPUT, lacking: DataOptions = LACKING) -> None:
    """Reproduce one step of a run from the nearest checkpoint before it, and describe its inputs and results.

    With --out, also writes them to a safetensors file: rows, x, eps, log_w, bound and grads.

    Args:
        run: The run folder; nothing is written to it.
        step: The step, counted from 0 as in metrics.jsonl.
        output: Where to write them.
        lacking: What the folder of the run lacks.
    """
    output.check(".safetensors")
    config, found = runs.replay(run, step, **vars(lacking))
    samples = f"{config.samples} sample{'s' * (config.samples != 1)}"
    print(f"{run}: step {step} of {config.estimator} with {samples}, a batch of {len(found.rows)}")
    print(_describe(found))
    if output.out is not None:
        arrays = {name: getattr(found, name) for name in ("rows", "x", "eps", "log_w", "bound", "grads")}
        print(checkpoint.save(Path(output.out), arrays, {"run": run, "step": step}, over=output.force))


def _describe(found: Replay) -> str:
    """The metrics of a replay, and for each array its norm, its range, and its number of non-finite values."""
    arrays = {f"x {name}".strip(): x for name, x in examples.tensors(found.x).items()}
    arrays |= {"eps": found.eps, "log_w": found.log_w, "bound": found.bound}
    arrays |= {f"grads/{name}": leaf for name, leaf in tree.named_leaves(found.grads).items()}
    after = tree.named_leaves(found.after.params).items()
    arrays |= {f"after/{name}": leaf for name, leaf in after if not leaf.isfinite().all()}
    rows = []
    for name, array in arrays.items():
        good = array[array.isfinite()].double()
        least, greatest = (float(good.min()), float(good.max())) if len(good) else (float("nan"),) * 2
        bad = f"{array.numel() - len(good)}{_nonfinite_rows(name, array, found.rows)}"
        rows.append((name, *(f"{number:.7g}" for number in (float(good.norm()), least, greatest)), bad))
    return "\n".join([
        table([(name, f"{float(value):.7g}") for name, value in found.metrics._asdict().items()]),
        table(rows, ("array", "norm", "least", "greatest", "not finite"), "<>>><"),
        f"rows of the training data: {_first_rows(found.rows)}",
    ])  # fmt: skip


def _nonfinite_rows(name: str, array: Tensor, rows: Tensor) -> str:
    """The training rows with numbers that are not finite, if the array has a batch axis."""
    axis = {"x": 0, "bound": 0, "eps": 1, "log_w": 1}.get(name)
    if axis is None or bool(array.isfinite().all()):
        return ""
    bad = array.isfinite().logical_not().movedim(axis, 0).flatten(1).any(1) if array.ndim > 1 else ~array.isfinite()
    return f" (rows {_first_rows(rows[bad])})"


def _first_rows(rows: Tensor) -> str:
    return ", ".join(map(str, rows[:_MAX_ROWS].tolist())) + ", …" * (len(rows) > _MAX_ROWS)


_MAX_ROWS = 16
