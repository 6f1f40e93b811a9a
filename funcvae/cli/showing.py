"""The command that shows what runs are and how they went: `show`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from funcvae import figures, runs
from funcvae.cli.options import Flag, OutputOptions
from funcvae.errors import BadValue
from funcvae.figures import of_results
from funcvae.runs.folder import METRICS
from funcvae.runs.summary import short_names
from funcvae.tracking import MetricsReader

__all__ = ["show"]

OUTPUT = OutputOptions()


def show(*run: Path, wide: Flag = False, output: OutputOptions = OUTPUT) -> None:
    """Show what a run is and how it went, or set several runs side by side.

    Several runs give a table of the settings that differ and of the results, and a figure of their test bounds. If
    these have different targets, such as the ELBO and L_5, the figure names them. Runs may be unfinished.

    Args:
        run: One run folder, or several.
        wide: Print one table, even if it does not fit the terminal.
        output: The figure of several runs, by default runs.png in the folder that holds the first run; or, if it is
            given, that of the training of one run.
    """
    if not run:
        raise BadValue("give one run folder, or several; `funcvae list runs FOLDER` lists them")
    output.check(*figures.ENDINGS)
    summaries = [runs.summarize(each) for each in run]
    if len(run) == 1:
        print(summaries[0])
        if output.out is not None:
            history, system = runs.history_of(run[0]), summaries[0].settings["system"]
            title = f"Training of {system}"
            output.save(of_results.training(history, name=summaries[0].target or "bound", title=title), output.out)
        return
    print(runs.side_by_side(summaries, wide=wide))
    if len({each.settings.get("data") for each in summaries}) > 1:
        print("no figure: bounds on different data cannot be compared")
        return
    if (figure := _curves(summaries)) is None:
        print("no figure: a run has not made an epoch yet")
        return
    output.save(figure, output.out or run[0].parent / f"runs.{output.format}")


def _curves(summaries: Sequence[runs.Summary]) -> Figure | None:
    """The test bounds of runs after epochs, or the training bounds if a run has no test bound yet."""
    epochs = [list(MetricsReader(each.path / METRICS, kind="epoch")) if each.steps else [] for each in summaries]
    if not all(epochs):
        return None
    tested = all(any("test_bound" in row for row in rows) for rows in epochs)
    field = "test_bound" if tested else "train_bound"
    labels = short_names(summaries)
    if len({each.target for each in summaries}) > 1:  # bounds that differ even for one model
        labels = [f"{label} ({each.target})" for label, each in zip(labels, summaries, strict=True)]
    lines = []
    for label, rows in zip(labels, epochs, strict=True):
        shown = [row for row in rows if field in row]
        lines.append((label, [row["step"] for row in shown], [row[field] for row in shown]))
    per_epoch = [rows[-1]["step"] / (rows[-1]["epoch"] + 1) for rows in epochs]
    return figures.run_curves(
        lines, steps_per_epoch=per_epoch, name=field.replace("_", " ").replace("train", "training")
    )
