"""Tables as text: in Markdown, and aligned for a terminal."""

import itertools
import textwrap
from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; nothing, for no columns."""
    if not header:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int = 0) -> str:
    """Columns aligned by spaces, for a terminal; nothing, for no columns.

    Args:
      header: of the columns.
      rows: their cells.
      width: above 0, cells are broken at their spaces until a line has at most so many characters: the widest first.
        Words are broken where that is not enough.
    """
    lines = [[str(cell) for cell in row] for row in [header, *rows]] if header else []
    columns = [*zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    longest_word = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    while width and sum(widths) + 2 * (len(widths) - 1) > width:
        broken = [i for i, w in enumerate(widths) if w > longest_word[i]] or range(len(widths))  # words break last
        widths[max(broken, key=lambda i: widths[i])] -= 1
    text = []
    for line in lines:
        cells = [textwrap.wrap(c, max(w, 1), break_on_hyphens=False) for c, w in zip(line, widths, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            text.append("  ".join(map(str.ljust, parts, widths)).rstrip())
    return "\n".join(text)
