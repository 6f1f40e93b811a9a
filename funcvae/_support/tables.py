"""Tables: as text that fits a terminal, as HTML for notebooks, as CSV, and as data frames."""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

from funcvae.errors import Missing

__all__ = [
    "WIDTH", "Block", "Table", "as_csv", "as_frame", "as_html", "as_text", "in_parts", "shown", "table", "unbroken",
]  # fmt: skip

T = TypeVar("T")
Row = Sequence[str]

WIDTH = 80
"""The number of columns of a terminal that texts fit in."""
_LEAST = 8


class Table(NamedTuple):
    """A table in sections, with columns of the same width in all of them."""

    header: Sequence[str]
    sections: Mapping[str, Sequence[Row]]
    """The rows under each title; "" for no title."""
    align: str = "<>"
    """See `table`."""


Block = str | Table
"""A paragraph or a table of a text."""


def table(rows: Sequence[Row], header: Sequence[str] = (), align: str = "<>", width: int | None = None) -> str:
    """Formats cells as lines of text with aligned columns, two spaces apart, under the header if there is one.

    Args:
        align: "<" (left) or ">" (right) for each column; the last one applies to all further columns.
        width: the largest length of a line. Cells are wrapped at spaces to fit; `unbroken` texts are not.
    """
    return "\n".join(_aligned([header, *rows] if header else rows, align, width))


def in_parts(rows: Sequence[Row], header: Row, width: int | None = WIDTH) -> str:
    """A table; if it is wider than `width`, several tables, each with the first column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    blocks = [[0]]
    for i in range(1, len(header)):
        if width and len(blocks[-1]) > 1 and sum(widths[k] + 2 for k in [*blocks[-1], i]) > width + 2:
            blocks.append([0])
        blocks[-1].append(i)
    return "\n\n".join(table([[row[i] for i in block] for row in rows], [header[i] for i in block]) for block in blocks)


def as_text(blocks: Sequence[Block], width: int | None = WIDTH) -> str:
    """Blocks as text: paragraphs and the cells of tables are wrapped to fit the width, if there is one."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            indent = " " * (len(block) - len(block.lstrip()) + 2)
            lines += textwrap.wrap(block, width, subsequent_indent=indent, break_on_hyphens=False) if width else [block]
            continue
        every = [row for rows in block.sections.values() for row in rows]
        header, *texts = _aligned([block.header, *every], block.align, width)
        for title, rows in block.sections.items():
            lines += ["", title] if title else []
            lines += [header, *texts[: len(rows)]]
            texts = texts[len(rows) :]
        lines += [""] if any(block.sections) else []
    return "\n".join(lines).strip("\n")


def as_html(blocks: Sequence[Block]) -> str:
    """Blocks as HTML, which notebooks show."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            parts.append(f'<div style="white-space: pre-wrap">{escape(block)}</div>')
            continue
        aligns = _aligns(block.align, len(block.header))
        lines = []
        for title, rows in block.sections.items():
            if title:
                lines.append(f'<th colspan="{len(block.header)}" style="text-align: left">{escape(title)}</th>')
            for kind, cells in [("th", block.header), *(("td", row) for row in rows)]:
                lines.append("".join(_cell(kind, cell, align) for cell, align in zip(cells, aligns, strict=True)))
        parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
    return "\n".join(parts)


def shown(kind: type[T]) -> type[T]:
    """Decorates a type with methods `table()` and `_blocks(wide)`, which make its text, and its HTML in notebooks."""
    kind.__str__ = lambda self: self.table()  # type: ignore[method-assign, attr-defined]
    kind._repr_html_ = lambda self: as_html(self._blocks(wide=True))  # type: ignore[attr-defined]
    return kind


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as comma-separated values under a line of names; None is empty."""
    text = StringIO()
    writer = csv.DictWriter(text, records[0] if records else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_frame(records: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> Any:
    """Records, or columns by name, as a pandas.DataFrame. Raises Missing if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise Missing(f'pandas cannot be imported ({error}): install it with pip install "funcvae[pandas]"') from None
    return pandas.DataFrame(records)


def unbroken(text: str) -> str:
    """A text that is not wrapped within a cell."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _cell(kind: str, cell: str, align: str) -> str:
    side = {"<": "left", ">": "right"}[align]
    return f'<{kind} style="text-align: {side}">{escape(cell.strip())}</{kind}>'


def _aligned(rows: Sequence[Row], align: str, width: int | None) -> list[str]:
    """The text of each row, of one or several lines."""
    columns = list(zip(*rows, strict=True))
    aligns = _aligns(align, len(columns))
    widths = _widths(columns, aligns, width)
    texts = []
    for row in rows:
        cells = [_wrapped(cell, size, a) for cell, size, a in zip(row, widths, aligns, strict=True)]
        lines = [
            "  ".join(f"{part:{a}{size}}" for part, size, a in zip(parts, widths, aligns, strict=True)).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]
        texts.append("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "))
    return texts


def _aligns(align: str, columns: int) -> str:
    return align.ljust(columns, align[-1])[:columns]


def _wrapped(cell: str, size: int, align: str) -> list[str]:
    indent = " " if align == "<" else ""
    return textwrap.wrap(cell, size, subsequent_indent=indent, break_on_hyphens=False) if len(cell) > size else [cell]


def _widths(columns: Sequence[Row], aligns: str, width: int | None) -> list[int]:
    """The width of each column: the widest are made narrower until a row fits, if possible without breaking a word."""
    widths = [max(map(len, column)) for column in columns]
    words = [max(len(word) for cell in column for word in cell.split(" ")) for column in columns]
    for least in ([word + (a == "<") for word, a in zip(words, aligns, strict=True)], [_LEAST] * len(widths)):
        while width and sum(widths) + 2 * (len(widths) - 1) > width:
            if not (wide := [i for i in range(len(widths)) if widths[i] > least[i]]):
                break
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths
