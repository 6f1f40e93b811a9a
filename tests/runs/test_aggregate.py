"""Collecting the results of a sweep."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from funcvae import cli, runs
from funcvae.errors import Missing, Stopped
from funcvae.runs.aggregate import mean_interval
from tests.support.sweeps import after, grid_of, swept


def test_mean_interval_is_students_t():
    found = mean_interval([1.0, 2.0, 6.0])
    se = math.sqrt(7 / 3)
    assert found == pytest.approx({"mean": 3, "se": se, "low": 3 - 4.302653 * se, "high": 3 + 4.302653 * se}, rel=1e-6)
    assert mean_interval([1.0, 3.0]) == pytest.approx({"mean": 2, "se": 1, "low": 2 - 12.706205, "high": 2 + 12.706205})
    assert mean_interval([4.0]) == {"mean": 4.0, "se": None, "low": None, "high": None}


def test_the_table_has_the_results_of_the_cells(here, capsys):
    grid = grid_of(seeds=(0, 1, 2), estimators=("elbo_mc", "iwae"), samples=(1, 2), replicates=3)
    results = swept(grid)
    cli.main(["collect", "sweep"])
    out = capsys.readouterr().out
    paths = ["sweep/table.csv", "sweep/table.json", "sweep/figures/sweep_bound.png", "sweep/figures/sweep_variance.png"]
    assert out.splitlines()[-4:] == paths
    assert all(Path(path).is_file() for path in paths)

    with open("sweep/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row, (name, result) in zip(rows, results.items(), strict=True):
        assert (row["folder"], row["status"], row["diverged"]) == (f"sweep/cells/{name}", "finished", "")
        assert [row[n] for n in ("estimator", "samples", "seed")] == [
            str(result[n]) for n in ("estimator", "samples", "seed")
        ]
        assert (float(row["bound"]), float(row["test_bound"])) == (result["bound"], result["test_bound"])
        assert (row["steps"], row["params_sha256"]) == ("6", result["params_sha256"])
        for network, of in result["variance"].items():
            assert float(row[f"variance_{network}"]) == of["variance"]
            assert float(row[f"low_{network}"]) == of["low"]
            assert row[f"trusted_{network}"] == str(of["trusted"])

    groups = json.loads(Path("sweep/table.json").read_text())["groups"]
    assert [(g["estimator"], g["target"], g["samples"], g["seeds"]) for g in groups] == [
        ("elbo_mc", "ELBO", 1, 3), ("elbo_mc", "ELBO", 2, 3), ("iwae", "L_K", 1, 3), ("iwae", "L_K", 2, 3),
    ]  # fmt: skip
    for i, group in enumerate(groups):
        of = list(results.values())[3 * i : 3 * i + 3]
        bounds = np.array([result["test_bound"] for result in of])
        se = bounds.std(ddof=1) / np.sqrt(3)
        found = [group["test_bound"][name] for name in ("mean", "se", "low", "high")]
        assert found == pytest.approx([bounds.mean(), se, bounds.mean() - 4.302653 * se, bounds.mean() + 4.302653 * se])
        logs = np.log([result["variance"]["encoder"]["variance"] for result in of])
        assert group["log_variance_encoder"]["mean"] == pytest.approx(logs.mean())
        of_group = [group["estimator"], str(group["samples"])]
        (line,) = (line for line in out.splitlines() if line.split()[1:3] == of_group)
        assert f"{bounds.mean():.4f}" in line
        assert f"{np.exp(logs.mean()):.3g}" in line

    found = runs.collect("sweep")
    assert max(map(len, str(found).splitlines())) <= 80
    assert "L_K" in found.table(wide=True)
    assert "<table>" in found._repr_html_()
    frame = found.to_pandas()
    assert frame.test_bound.tolist() == [result["test_bound"] for result in results.values()]
    assert frame.groupby(["estimator", "samples"]).size().tolist() == [3] * 4


def test_unfinished_cells_are_listed(here, capsys):
    grid = grid_of(seeds=(0, 1, 2))
    with pytest.raises(Stopped):
        swept(grid, stop_context=after(10))  # in the second cell
    Path("elsewhere").mkdir()
    cli.main(["collect", "sweep", "--out", "elsewhere/t.csv"])
    out = capsys.readouterr().out
    assert "begun: gaussian2d_vae-elbo-k2-s1\nmissing: gaussian2d_vae-elbo-k2-s2\n" in out
    with open("elsewhere/t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "begun", "missing"]
    assert [bool(row["test_bound"]) for row in rows] == [True, False, False]
    assert Path("elsewhere/t.json").is_file()
    assert Path("elsewhere/figures/sweep_bound.png").is_file()
    (group,) = runs.collect("sweep").groups
    assert (group["seeds"], group["test_bound"]["se"]) == (1, None)
    cli.main(["collect", "sweep"])
    swept(grid)
    cli.main(["collect", "sweep"])  # takes the place of the table before
    assert "begun" not in Path("sweep/table.csv").read_text()
    assert not Path("sweep/table-2.csv").exists()


def test_collect_needs_the_folder_of_a_sweep(here, capsys):
    with pytest.raises(Missing, match="nowhere is not the folder of a sweep: it has no grid"):
        runs.collect("nowhere")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["collect", "nowhere", "--out", "table.txt"])
    assert "--out is table.txt: it must be the name of a file, NAME.csv" in capsys.readouterr().err
