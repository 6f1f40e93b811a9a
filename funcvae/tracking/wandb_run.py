"""A tracker that logs to Weights & Biases."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from funcvae._support.progress import notice
from funcvae.errors import Missing
from funcvae.tracking.optional_packages import import_package
from funcvae.tracking.protocol import Images, Tracker, UntilItFails, by_tag, sheet
from funcvae.train.settings import Row

__all__ = ["wandb"]


@contextmanager
def wandb(folder: Path, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Logs a run to Weights & Biases, in the project "funcvae" or that of WANDB_PROJECT.

    Charts against "step", the number of steps: see `tensorboard`. The first row starts the wandb run, with its files in
    FOLDER/wandb. A resumed run continues it; if it was not tracked before, the rows in `past` are logged first.

    With WANDB_MODE=offline nothing leaves the machine; `wandb sync FOLDER/wandb/offline-run-*` uploads it later.

    Raises:
        Missing: wandb is not installed, or has no API key.
    """
    package = import_package("wandb", extra="wandb")
    if package.setup().settings.mode == "online" and not package.login(prompt=False, verify=False):
        raise Missing("wandb has no API key: run `wandb login`, or set WANDB_MODE=offline")
    run = _WandbRun(package, folder, config, past)
    tracker, status = UntilItFails("wandb", run), 1
    try:
        yield tracker
        status = 0
    finally:
        tracker.attempt(run.finish, status)


class _WandbRun:
    def __init__(self, package: Any, folder: Path, config: dict[str, Any], past: Iterable[Row]) -> None:
        self._package, self._folder, self._config, self._past = package, folder, config, past
        self._run: Any = None

    def log(self, row: Row) -> None:
        self._add(row["step"], by_tag(row))

    def show(self, step: int, images: Images) -> None:
        self._add(step, {f"images/{name}": self._package.Image(sheet(x)) for name, x in images.items()})

    def finish(self, status: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=status)

    def _add(self, step: int, values: dict[str, Any]) -> None:
        if self._run is None:
            self._start()
        self._run.log({"step": step, **values})

    def _start(self) -> None:
        earlier = sorted(path.name for path in self._folder.glob("wandb/*run-*-*"))  # offline-run-DATE_TIME-ID
        run_id = earlier[-1].partition("run-")[2].partition("-")[2] if earlier else None
        settings = self._package.Settings(console="off", silent=True, disable_git=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._package.init(
            project=self._package.setup().settings.project or "funcvae", name=self._folder.name, dir=self._folder,
            id=run_id, resume="allow", reinit="create_new", config=self._config, settings=settings,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        if not self._run.offline:
            notice(f"wandb shows the run at {self._run.url}")
        if not earlier:
            for row in self._past:
                self.log(row)
