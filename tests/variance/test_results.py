"""Results of a comparison: rows, table and JSON."""

import json

import pytest

from funcvae.errors import BadValue
from tests.support.comparisons import SPECS, on_the_toy


def test_a_comparison_prints_as_an_aligned_table():
    found = on_the_toy()
    lines = str(found).splitlines()
    assert lines[0] == "K = 2, batch of 1, 20,000 replicates; ratios and bias against dreg; M decodes of each datum"
    (begin,) = (i for i, line in enumerate(lines) if line.startswith("encoder: total variance"))
    title, *rows = lines[begin + 1 : begin + 2 + len(SPECS)]
    assert [row.split()[0] for row in rows] == list(SPECS)
    end = title.index("variance") + len("variance")
    for row, spec in zip(rows, SPECS, strict=True):
        assert row[:end].split()[1:] == ["2", f"{found.rows[spec].groups['encoder'].variance.value:.3g}"]
        assert row[end : end + 1] == " "


def test_a_comparison_reads_back_from_json():
    found = on_the_toy()
    back = json.loads(found.as_json())
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
