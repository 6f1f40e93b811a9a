"""Results of a comparison: rows, table and JSON."""

import json
import math
from io import StringIO

import pandas
import pytest

from funcvae.errors import BadValue
from funcvae.variance.intervals import Measured
from tests.support.comparisons import SPECS, on_the_toy


def section(text, network):
    """The title line and the rows of a network's table."""
    lines = text.splitlines()
    (begin,) = (i for i, line in enumerate(lines) if line.startswith(f"{network}: total variance"))
    return lines[begin + 1 : begin + 2 + len(SPECS)]


def test_a_comparison_prints_as_an_aligned_table():
    found = on_the_toy()
    assert str(found).splitlines()[0] == "K = 2, batch of 1, 20,000 replicates; ratios against dreg"
    title, *rows = section(str(found), "encoder")
    assert title.split() == ["estimator", "variance", "ratio", "95%", "interval", "SNR", "ms"]
    assert [row.split()[0] for row in rows] == list(SPECS)
    end = title.index("variance") + len("variance")
    for row, spec in zip(rows, SPECS, strict=True):
        assert row[:end].split()[1:] == [f"{found.rows[spec].groups['encoder'].variance.value:.3g}"]


def test_the_wide_table_has_all_columns():
    found = on_the_toy()
    title, *rows = section(found.table(wide=True), "encoder")
    assert all(name in title for name in ("M", "DSNR", "bias z", "of norm", "at most", "var × ms"))
    assert {row.split()[1] for row in rows} == {"2"}  # the points of K = 2
    assert "biased against dreg: " in str(found), "the narrow table has no column for a bias"


def test_a_comparison_of_long_names_and_numbers_fits_the_terminal():
    found = on_the_toy()
    tiny = Measured(
        1.234e-05, 1e-06, 1.234e-05, 1.234e-05, "a heavy tail, of which nothing else is known; another reason"
    )
    name = "vr_iwae_dreg:0.5, mirrored"
    row = found.row("iwae")
    group = row.groups["encoder"]._replace(variance=tiny, snr=tiny, dsnr=tiny)
    row = row._replace(
        name=name, groups=row.groups | {"encoder": group}, ratio=row.ratio | {"encoder": tiny}, seconds=12.3
    )
    text = str(found._replace(rows={"dreg": found.row("dreg"), name: row}))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line for line in text.splitlines() if "1.23e-05" in line]
    assert any(
        line.split()[-6:] == ["1.23e-05*", "1.23e-05", "[1.23e-05,", "1.23e-05]*", "1.23e-05", "12300"]
        for line in lines
    )


def test_a_comparison_becomes_a_frame_with_a_row_for_each_estimator_and_group():
    found = on_the_toy()
    frame = found.to_pandas().set_index(["name", "group"])
    row, group = found.row("iwae"), found.row("iwae").groups["encoder"]
    at = frame.loc["iwae", "encoder"]
    assert (at.variance, at.variance_se, at.variance_high) == (
        group.variance.value,
        group.variance.se,
        group.variance.high,
    )
    assert (at.ratio, at.bias_z, at.weights_ess) == (
        row.ratio["encoder"].value,
        row.bias["encoder"].z,
        row.importance.ess,
    )
    assert math.isnan(frame.loc["dreg", "encoder"].bias_z), "the reference has no bias"
    back = pandas.read_csv(StringIO(found.to_csv())).set_index(["name", "group"])
    assert back.loc["iwae", "encoder"].variance == group.variance.value


def test_notebooks_show_a_comparison_as_html():
    html = on_the_toy()._repr_html_()
    assert html.count("<table>") == 1
    assert '<td style="text-align: left">iwae_stl</td>' in html
    assert len(repr(on_the_toy())) < 500


def test_a_comparison_reads_back_from_json():
    found = on_the_toy()
    back = json.loads(found.to_json())
    assert back["reference"] == "dreg"
    assert back["key"] == [0, 21]
    row = back["rows"]["iwae"]
    assert row["groups"]["encoder"]["variance"]["value"] == found.rows["iwae"].groups["encoder"].variance.value
    assert row["groups"]["prior"]["dsnr"]["value"] == "inf"
    assert back["replicates"] == 20_000


def test_an_unknown_row_raises_an_error():
    with pytest.raises(BadValue, match="unknown estimator of the comparison 'iwea': did you mean 'iwae'"):
        on_the_toy().row("iwea")
    assert on_the_toy().row("iwae").name == "iwae"


def advised(costs, *, reference="iwae", seconds=1.0, **changes):
    """The advice of a comparison with these ratios of variances: {name: (value, low, high)}."""
    found = on_the_toy()
    row = found.row("iwae")._replace(bias={}, seconds=seconds, median_seconds=seconds, unbiased=True)
    rows = {
        name: row._replace(
            **{"name": name, "ratio": {"all": Measured(cost[0], 0.0, *cost[1:])}} | changes.get(name, {})
        )
        for name, cost in costs.items()
    }
    return found._replace(rows=rows, reference=reference).advice()


COSTS = {"iwae": (1, 1, 1), "dreg": (0.5, 0.4, 0.6), "vimco": (9, 8, 10)}


def test_the_advice_is_the_estimator_with_the_least_variance_times_time():
    times = "times the variance × time over all parameters of iwae"
    assert advised(COSTS) == f"for L_K, train with dreg: dreg has 0.5 [0.4, 0.6] {times}"
    slow = advised(COSTS, dreg={"seconds": 3.0, "median_seconds": 3.0})
    assert slow == f"for L_K, train with iwae: dreg has 1.5 [1.2, 1.8] {times}"
    first = advised(COSTS, reference="vimco")
    assert first.startswith("for L_K, train with dreg: dreg has 0.5 [0.4, 0.6] times")
    assert "; iwae has 1 [1, 1] times" in first


def test_there_is_no_clear_winner_where_intervals_overlap():
    overlap = {"iwae": (1, 1, 1), "dreg": (0.9, 0.8, 1.1)}
    assert advised(overlap).startswith("for L_K, no clear winner: dreg has 0.9 [0.8, 1.1] times")
    assert advised(overlap).endswith("of iwae; for narrower intervals, make dreg the reference")
    third = COSTS | {"vimco": (9, 0.5, 20)}
    assert advised(third).startswith("for L_K, no clear winner: dreg has"), "the third overlaps the first"
    spread = {"seconds": 1.0, "median_seconds": 2.0}  # the slower of these times would make dreg the slower one
    unsteady = advised(COSTS, dreg=spread)
    assert unsteady.startswith("for L_K, no clear winner: dreg has 0.5 [0.4, 1.2] times")
    assert unsteady.endswith("; the times are unsteady: measure alone on the machine")
    assert "unsteady" not in advised(overlap)
    assert advised(COSTS, iwae=spread).startswith("for L_K, train with dreg: dreg has 0.5 [0.2, 0.6] times")


@pytest.mark.parametrize("excluded", [{"unbiased": False}, {"target": "ELBO"}, {"bias": True}])
def test_the_advice_leaves_out_biased_estimators_and_other_targets(excluded):
    if "bias" in excluded:
        excluded = {"bias": {"encoder": on_the_toy().row("iwae").bias["encoder"]._replace(z=9.0)}}
    costs = {"iwae": (1, 1, 1), "dreg": (0.5, 0.4, 0.6), "rws": (0.1, 0.1, 0.1)}
    assert "train with dreg" in advised(costs, rws=excluded)


def test_without_times_the_advice_is_about_the_variance():
    text = advised(COSTS, seconds=math.nan)
    assert text == "for L_K, train with dreg: dreg has 0.5 [0.4, 0.6] times the variance over all parameters of iwae"


def test_the_advice_says_if_its_intervals_are_unreliable():
    heavy = {"ratio": {"all": Measured(0.5, 0.0, 0.4, 0.6, "heavy tail")}}
    assert advised(COSTS, dreg=heavy).endswith("; the intervals are unreliable (see *)")


def test_the_advice_needs_two_estimators_of_one_target():
    assert advised({"iwae": (1, 1, 1)}).startswith("not possible: fewer than two")
