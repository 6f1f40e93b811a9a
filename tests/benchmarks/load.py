"""Memory and speed of a long run at its beginning and at its end; checks that all its rows can be read.

python tests/benchmarks/load.py [--steps 200000]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from funcvae import runs, tracking, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    args = parser.parse_args()
    epochs = -(-args.steps * args.batch // 10_000)
    steps = epochs * 10_000 // args.batch
    marks = {steps * tenth // 10 for tenth in range(11)}
    measured: dict[int, tuple[float, float]] = {}

    def measure(step: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # resident
        measured[step] = time.perf_counter(), pages * resource.getpagesize() / 2**20

    @contextmanager
    def watch(run: Path, config: dict[str, Any], past: Iterable[Any]) -> Iterator[tracking.Tracker]:
        def track(row: train.Row) -> None:
            if row["kind"] == "step" and (made := row["step"] + 1) in marks | {100}:
                measure(made)

        yield SimpleNamespace(log=track, show=lambda step, images: None)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = runs.configure(
            "gaussian2d_vae", epochs=epochs, batch=args.batch, checkpoint_every=args.checkpoint_every, out=str(out)
        )
        runs.run(config, trackers=[watch])
        rows = [row["step"] for row in tracking.MetricsReader(out / "metrics.jsonl") if row["kind"] == "step"]
        size = (out / "metrics.jsonl").stat().st_size / 2**20

    tenth = steps // 10
    first = (tenth - 100) / (measured[tenth][0] - measured[100][0])  # without the first hundred steps, which warm up
    last = tenth / (measured[steps][0] - measured[steps - tenth][0])
    print(f"{steps:,} steps of gaussian2d_vae, batch {args.batch}, a checkpoint every {args.checkpoint_every}")
    complete = "complete" if rows == [*range(steps)] else "INCOMPLETE"
    tenths = ", ".join(f"{measured[mark][1]:.1f}" for mark in sorted(measured))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"resident memory at 10% and at 100%   {measured[tenth][1]:.1f} and {measured[steps][1]:.1f} MiB")
    print(f"steps a second, first and last tenth {first:.1f} and {last:.1f} = {last / first:.3f}")
    print(f"metrics.jsonl                        {size:.1f} MiB, {len(rows):,} rows of steps, {complete}")
    print(f"memory after 100 steps, by tenths    {tenths} MiB; peak, figures included, {peak:.1f} MiB")


if __name__ == "__main__":
    main()
