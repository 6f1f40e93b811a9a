"""Tables of plain text."""

from collections.abc import Sequence

__all__ = ["table"]


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), align: str = "<>") -> str:
    """Formats cells as lines of text with aligned columns, two spaces apart, under the header if there is one.

    `align` has "<" (left) or ">" (right) for each column; the last one applies to all further columns.
    """
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligns = align.ljust(len(widths), align[-1])
    return "\n".join(
        "  ".join(f"{cell:{a}{width}}" for cell, a, width in zip(line, aligns, widths, strict=True)).rstrip()
        for line in lines
    )
