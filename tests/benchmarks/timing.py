"""Interleaved timing, for several benchmarks."""

import time
from collections.abc import Callable


def interleaved(sides: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 10) -> dict[str, float]:
    """Median milliseconds of each side. The sides take turns, so that other programs disturb them equally."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(values)[rounds // 2] for name, values in times.items()}


def marked(ratio: float, limit: float | None, form: str = ".2f") -> str:
    """The ratio as text, with the limit if the ratio exceeds it."""
    return f"{ratio:{form}}" + (f" (over {limit:{form}})" if limit is not None and ratio > limit else "")
