"""The command that shows what runs are and how they went: `show`."""

from pathlib import Path

from funcvae import figures, runs
from funcvae.cli.options import FigureOutput, Flag
from funcvae.errors import BadValue
from funcvae.figures import of_results
from funcvae.runs.summary import short_names

__all__ = ["show"]

OUTPUT = FigureOutput()


def show(*run: Path, wide: Flag = False, output: FigureOutput = OUTPUT) -> None:
    """Show what a run is and how it went, or set several runs side by side.

    Several runs give a table of the settings that differ and of the results, and a figure of their test bounds. If
    these have different targets, such as the ELBO and L_5, the figure names them. Runs may be unfinished.

    Args:
        run: One run folder, or several.
        wide: Print one table, even if it does not fit the terminal.
        output: Where to save the figure. Several runs: by default runs.png beside the first run. One run: a figure of
            its training, only with --out.
    """
    if not run:
        raise BadValue("give one run folder, or several; `funcvae list runs FOLDER` lists them")
    output.check(*figures.ENDINGS)
    summaries = [runs.summarize(each) for each in run]
    print(summaries[0] if len(run) == 1 else runs.side_by_side(summaries, wide=wide))
    if len(run) == 1 and output.out is None:
        return
    if without := [str(each.path) for each in summaries if not each.steps]:
        print(f"no figure: {', '.join(without)} has made no steps")
        return
    if len({each.settings.get("data") for each in summaries}) > 1:
        print("no figure: bounds on different data cannot be compared")
        return
    histories = [runs.history_of(each) for each in run]
    if len(run) == 1:
        title = f"Training of {summaries[0].settings['system']}"
        figure = of_results.training(histories[0], name=summaries[0].target or "bound", title=title)
    else:
        labels = short_names(summaries)
        if len({each.target for each in summaries}) > 1:  # bounds that differ even for one model
            labels = [f"{label} ({each.target or 'bound'})" for label, each in zip(labels, summaries, strict=True)]
        figure = of_results.several_runs(list(zip(labels, histories, strict=True)))
    output.save(figure, output.out or run[0].parent / "runs")
