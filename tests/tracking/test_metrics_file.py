"""The metrics file: one JSON object per line."""

import json
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import tracking


def test_each_row_is_written_as_a_json_line_immediately(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 0.1 + 0.2}]
    with tracking.MetricsWriter(path) as writer:
        for i, row in enumerate(rows):
            writer.log(row)
            assert [json.loads(line) for line in path.read_text().splitlines()] == rows[: i + 1]


def test_rows_of_version_06_get_kinds_and_the_present_names():
    path = Path(__file__).parents[1] / "reference" / "run-0.6" / "metrics.jsonl"
    old, new = [json.loads(line) for line in path.read_text().splitlines()], list(tracking.MetricsReader(path))
    assert [row.pop("kind") for row in new] == [*["step"] * 3, "epoch", *["step"] * 3, "epoch"]
    for row in new:
        if "train_bound" in row:
            row["bound"] = row.pop("train_bound")
    assert new == old


def test_rows_of_version_08_with_a_variance_get_their_kind(tmp_path):
    path, where = tmp_path / "metrics.jsonl", {"epoch": 0, "step": 4}
    rows = [{**where, "variance/elbo/encoder": 0.5}, where]  # the second is of a measurement that was not finite
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(tracking.MetricsReader(path)) == [{"kind": "variance", **row} for row in rows]


@pytest.mark.parametrize("version", ["0.6", "0.9"])
def test_rows_of_one_kind_are_those_of_all_rows(version):
    path = Path(__file__).parents[1] / "reference" / f"run-{version}" / "metrics.jsonl"
    for kind in ("step", "epoch", "variance"):
        rows = [row for row in tracking.MetricsReader(path) if row["kind"] == kind]
        assert list(tracking.MetricsReader(path, kind=kind)) == rows
        assert bool(rows) == (kind != "variance")


def test_rows_of_other_kinds_are_not_parsed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", damaged}\n{"kind": "epoch", "step": 1}\n')
    assert list(tracking.MetricsReader(path, kind="epoch")) == [{"kind": "epoch", "step": 1}]
    with pytest.raises(fv.errors.BadData, match="line 1, is not JSON"):
        list(tracking.MetricsReader(path))
