import json

from funcvae import tracking


def test_rows_become_lines_of_json_that_read_back_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 0.1 + 0.2}]
    with tracking.jsonl(path) as write:
        for i, row in enumerate(rows):
            write(row)
            assert [json.loads(line) for line in path.read_text().splitlines()] == rows[: i + 1]


def test_the_bar_counts_steps_and_shows_the_last_bounds(capsys):
    with tracking.progress_bar(2) as show:
        show({"step": 0, "loss": 3.0, "bound": -3.0})
        show({"step": 1, "loss": 2.0, "bound": -2.0})
        show({"step": 2, "bound": -2.5, "test_bound": -2.25})
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "test_bound=-2.25" in shown
