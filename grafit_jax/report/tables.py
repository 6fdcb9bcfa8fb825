"""Tables as text: in Markdown, and aligned for a terminal."""

import itertools
import textwrap
from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; nothing, for no columns."""
    if not header:
        return ""
    return "\n".join(
        ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"] + [f"| {' | '.join(r)} |" for r in rows]
    )


def plain_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int = 0) -> str:
    """Columns aligned by spaces, for a terminal.

    Args:
      header: nothing, for no columns.
      rows: their cells.
      width: above 0, cells are broken at their spaces until a line has at most so many characters: the widest first.
        Words are broken where that is not enough.
    """
    lines = [[str(cell) for cell in row] for row in [header, *rows]] if header else []
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    longest_word = [
        max((len(word) for line in lines for word in line[i].split()), default=0) for i in range(len(header))
    ]
    while width and sum(widths) + 2 * (len(widths) - 1) > width:
        columns = [i for i, w in enumerate(widths) if w > longest_word[i]] or range(len(widths))  # words break last
        widths[max(columns, key=lambda i: widths[i])] -= 1
    broken = [
        [textwrap.wrap(cell, max(w, 1), break_on_hyphens=False) or [""] for cell, w in zip(line, widths, strict=True)]
        for line in lines
    ]
    return "\n".join(
        "  ".join(map(str.ljust, parts, widths)).rstrip()
        for line in broken
        for parts in itertools.zip_longest(*line, fillvalue="")
    )
