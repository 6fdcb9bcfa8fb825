"""HTML fragments. All strings from data are escaped by `text`, or by `data` for the script."""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

# Sort key of an empty cell.
UNKNOWN = -1e9


class Section(NamedTuple):
    """A section of the page: anchor, heading and HTML content."""

    name: str
    heading: str
    content: str

    def html(self) -> str:
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-heading">'
            f'<h2 id="{self.name}-heading">{self.heading}</h2>{self.content}</section>'
        )


class Cell(NamedTuple):
    """A table cell: HTML and sort key."""

    shown: str
    value: float | str


def text(value: object) -> str:
    """Escapes a value for element content or a quoted attribute."""
    return html.escape(_whole(str(value)), quote=True)


def data(name: str, content: Any) -> str:
    """Returns a script element of JSON that no string in it can close."""
    whole = json.loads(_whole(json.dumps(content, ensure_ascii=False)))
    safe = json.dumps(whole, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def _whole(value: str) -> str:
    """Replaces lone surrogates, which stand for non-UTF-8 bytes of file names, with question marks."""
    return value.encode("utf-8", "replace").decode()


def number(value: float | None, form: str = "{:.1f}") -> Cell:
    """A number, or a dash for None."""
    return Cell("–", UNKNOWN) if value is None else Cell(form.format(value), value)


def bar(right: int, of: int) -> Cell:
    """right / of in percent, with a bar of that length."""
    if not of:
        return number(None)
    percent = 100 * right / of
    return Cell(f'<span class="bar" style="--share:{percent:.1f}%">{percent:.1f}</span>', percent)


def name(value: object) -> Cell:
    """A cell of escaped text."""
    return Cell(text(value), str(value))


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False) -> str:
    """Returns a table whose first column holds row headers. Caption and header must be escaped.

    The script adds the sort buttons of a sortable table, so without JavaScript there are none.
    """
    words = [isinstance(cell.value, str) for cell in rows[0]] if rows else [False] * len(header)
    kinds = [' class="words"' if of_words else "" for of_words in words]
    head = "".join(f'<th scope="col"{kind}>{heading}</th>' for heading, kind in zip(header, kinds, strict=True))
    body = ""
    for cells in rows:
        first, *others = [
            f'{kind} data-value="{text(cell.value)}">{cell.shown}' for cell, kind in zip(cells, kinds, strict=True)
        ]
        body += f'<tr><th scope="row"{first}</th>{"".join(f"<td{other}</td>" for other in others)}</tr>'
    sorts = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table{sorts}><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
