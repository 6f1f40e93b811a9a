"""Plain-text tables."""

import sys

import pytest

from funcvae._support.tables import Table, as_csv, as_frame, as_html, as_text, table, unbroken
from funcvae.errors import Missing


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


def test_long_cells_are_wrapped_to_fit_the_width():
    rows = [["reinforce, mirrored", "0.5 ± 0.1"], ["iwae", "2"]]
    lines = ["name         signal to", "                 noise", "reinforce,   0.5 ± 0.1", " mirrored"]
    assert table(rows, ["name", "signal to noise"], width=22).splitlines() == [*lines, "iwae                 2"]
    rows[0][1] = unbroken(rows[0][1])
    assert "0.5 ± 0.1" in table(rows, width=20)


def test_a_word_that_is_wider_than_the_table_is_broken():
    assert max(map(len, table([["x" * 100, "y" * 50]], width=40).splitlines())) <= 40


def test_sections_have_the_same_columns():
    of = Table(["name", "n"], {"first": [["a", "1"]], "second": [["a long name", "2"]]})
    assert as_text(["about", of, "note " * 20]).splitlines() == [
        "about", "", "first", "name         n", "a            1", "", "second", "name         n", "a long name  2", "",
        " ".join(["note"] * 16), "  " + " ".join(["note"] * 4),
    ]  # fmt: skip


def test_html_is_escaped():
    html = as_html([Table(["<b>"], {"": [["a & b"]]}), "1 < 2"])
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html
    assert "1 &lt; 2" in html
    assert "<b>" not in html


def test_csv_has_a_line_of_names_and_no_text_for_none():
    assert as_csv([{"a": 1, "b": None}, {"a": "x, y", "b": 2.5}]) == 'a,b\n1,\n"x, y",2.5\n'
    assert as_csv([]) == "\n"


def test_a_frame_without_pandas_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Missing, match=r'pip install "funcvae\[pandas\]"'):
        as_frame([])
