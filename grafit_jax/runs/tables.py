"""Text tables, in Markdown and for a terminal."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, or an empty string without columns."""
    if not header:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table with columns aligned by spaces, or an empty string without columns."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]] if header else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
