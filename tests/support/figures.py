"""Runs without their figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from funcvae import figures
from funcvae.figures import of_results


@contextmanager
def without_figures() -> Iterator[None]:
    """Runs and commands draw no figures, which would take longer than a short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, path, over=True: Path(path))
        patch.setattr(figures, "save_gif", lambda frames, path, **options: Path(path))
        patch.setattr(of_results, "of_run", lambda *trained, **options: {})
        patch.setattr(of_results, "evolution_frames", lambda *points, **options: [])
        yield
