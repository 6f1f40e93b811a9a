"""The progress bar."""

from funcvae import tracking


def test_the_bar_counts_steps_and_shows_the_last_bounds(capsys):
    with tracking.progress_bar(2) as show:
        show({"kind": "step", "step": 0, "loss": 3.0, "bound": -3.0})
        show({"kind": "step", "step": 1, "loss": 2.0, "bound": -2.0})
        show({"kind": "epoch", "step": 2, "train_bound": -2.5, "test_bound": -2.25})
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "test_bound=-2.25" in shown
