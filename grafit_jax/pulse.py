"""What this process is doing, and that it makes progress: read by the watchdog, by Ctrl-C and by the console."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Place(NamedTuple):
    """Where a process is.

    Attributes:
      step: training steps taken.
      doing: what it does, as "reading a batch".
      ended: it has said why it ends.
      part: how many of the `parts` of what it does are done; `parts` is 0 where that is not known.
      beats: grows with every sign of progress.
    """

    step: int = 0
    doing: str = "starting"
    ended: bool = False
    part: int = 0
    parts: int = 0
    beats: int = 0

    def __str__(self) -> str:
        return f"after step {self.step} ({self.doing}{f', part {self.part} of {self.parts}' if self.parts else ''})"


_here = Place()


def here() -> Place:
    """Where this process is."""
    return _here


def at(step: int, doing: str) -> None:
    """Notes what this process begins to do; costs nothing."""
    _be(Place(step, doing))


def beat() -> None:
    """Notes progress: an evaluation may take longer than a step that hangs."""
    _be(_here._replace(beats=_here.beats + 1))


def parts(items: Iterable[_T], doing: str, number: int) -> Iterator[_T]:
    """`items`, of which there are `number`, each noted as a part of what this process does meanwhile."""
    before = _here
    for part, item in enumerate(items):
        _be(before._replace(doing=doing, part=part, parts=number, beats=_here.beats + 1))
        yield item
    _be(before._replace(beats=_here.beats + 1))


def ends(reason: str) -> None:
    """Notes that this process ends, and why."""
    _be(Place(_here.step, reason, ended=True))


def _be(place: Place) -> None:
    global _here
    _here = place
