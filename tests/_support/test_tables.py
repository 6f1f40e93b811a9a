"""Plain-text tables."""

import pytest

from funcvae._support.tables import table


def test_columns_are_aligned():
    rows = [["iwae", "1", "-3.25"], ["reinforce", "", "12"]]
    assert table(rows, ["name", "n", "bound"]) == "\n".join(
        ["name       n  bound", "iwae       1  -3.25", "reinforce        12"]
    )  # fmt: skip


def test_lines_end_without_spaces():
    assert table([["a", "note"], ["bb", ""]], align="><") == " a  note\nbb"


def test_every_line_needs_the_same_number_of_cells():
    with pytest.raises(ValueError, match="zip"):
        table([["a", "b"], ["c"]])
