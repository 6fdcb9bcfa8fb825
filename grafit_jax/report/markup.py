"""HTML in pieces. Whatever comes from data goes through `text`, or through `data` into a script."""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

# What an empty cell is sorted by.
UNKNOWN = -1e9


class Section(NamedTuple):
    """A part of the page: its name in links, its heading, and HTML."""

    name: str
    heading: str
    content: str

    def html(self) -> str:
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-heading">'
            f'<h2 id="{self.name}-heading">{self.heading}</h2>{self.content}</section>'
        )


class Cell(NamedTuple):
    """A cell of a table: HTML, and the value that it is sorted by."""

    shown: str
    value: float | str


def text(value: object) -> str:
    """As it is read, between tags or between the quotes of an attribute."""
    return html.escape(_whole(str(value)), quote=True)


def data(name: str, content: Any) -> str:
    """JSON for the page's script, which no string in it can end."""
    whole = json.loads(_whole(json.dumps(content, ensure_ascii=False)))
    safe = json.dumps(whole, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def _whole(value: str) -> str:
    """With a question mark for what is no character: the bytes of a file's name that are no UTF-8."""
    return value.encode("utf-8", "replace").decode()


def number(value: float | None, form: str = "{:.1f}") -> Cell:
    """A number, or a dash in its place."""
    return Cell("–", UNKNOWN) if value is None else Cell(form.format(value), value)


def bar(right: int, of: int) -> Cell:
    """right / of in percent, with a bar as long."""
    if not of:
        return number(None)
    percent = 100 * right / of
    return Cell(f'<span class="bar" style="--share:{percent:.1f}%">{percent:.1f}</span>', percent)


def name(value: object) -> Cell:
    """Text from data."""
    return Cell(text(value), str(value))


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False) -> str:
    """A table whose first column names its rows. Caption and header are `text`.

    A sortable one gets its buttons from the script: without it, there is nothing to press in vain.
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
