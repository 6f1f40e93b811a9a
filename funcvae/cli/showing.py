"""The command that shows what runs are and how they went: `show`."""

from pathlib import Path

from funcvae import figures, runs
from funcvae.cli.options import Flag, OutputOptions
from funcvae.errors import BadValue
from funcvae.figures import of_results
from funcvae.runs.summary import short_names

__all__ = ["show"]

OUTPUT = OutputOptions()


def show(*run: Path, wide: Flag = False, output: OutputOptions = OUTPUT) -> None:
    """Show what a run is and how it went, or set several runs side by side.

    Several runs give a table of the settings that differ and of the results, and a figure of their test bounds. If these
    are of different targets, such as the ELBO and L_5, the figure names them. Runs may be unfinished.

    Args:
        run: One run folder, or several.
        wide: Print one table, even if it does not fit the terminal.
        output: The figure of several runs. By default runs.png in the folder that holds the first run.
    """
    if not run:
        raise BadValue("give one run folder, or several; `funcvae list runs FOLDER` lists them")
    output.check(*figures.ENDINGS)
    if len(run) == 1 and output.out is not None:
        raise BadValue(f"--out is {output.out}: only several runs give a figure; leave it out")
    summaries = [runs.summarize(each) for each in run]
    if len(run) == 1:
        print(summaries[0])
        return
    print(runs.side_by_side(summaries, wide=wide))
    if len({each.settings.get("data") for each in summaries}) > 1:
        print("no figure: bounds on different data cannot be compared")
        return
    labels = short_names(summaries)
    if len({each.target for each in summaries}) > 1:  # their bounds differ, even of one model
        labels = [f"{label} ({each.target})" for label, each in zip(labels, summaries, strict=True)]
    histories = [(label, runs.history_of(each)) for label, each in zip(labels, run, strict=True)]
    figure = of_results.several_runs(histories)
    output.save(figure, output.out or run[0].parent / "runs.png")
