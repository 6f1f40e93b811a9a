"""The metrics file: one JSON object per line."""

import json

from funcvae import tracking


def test_each_row_is_written_as_a_json_line_immediately(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 0.1 + 0.2}]
    with tracking.MetricsWriter(path) as write:
        for i, row in enumerate(rows):
            write(row)
            assert [json.loads(line) for line in path.read_text().splitlines()] == rows[: i + 1]
