"""The current activity and progress of this process, read by the watchdog, the Ctrl-C handler and the console."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Place(NamedTuple):
    """The progress of a process.

    Attributes:
      step: training steps taken.
      doing: the current activity, such as "reading a batch".
      ended: whether the process is about to exit; `doing` is then the reason.
      part: number of finished parts of the activity.
      parts: number of all parts, or 0 if unknown.
      beats: counter that grows with every sign of progress.
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
    """Returns the progress of this process."""
    return _here


def at(step: int, doing: str) -> None:
    """Records the start of an activity."""
    _be(Place(step, doing))


def beat() -> None:
    """Records progress within an activity, such as an evaluation, that may take longer than `--stuck_seconds`."""
    _be(_here._replace(beats=_here.beats + 1))


def parts(items: Iterable[_T], doing: str, number: int) -> Iterator[_T]:
    """Yields the `number` items, recording each one as a part of an activity."""
    before = _here
    for part, item in enumerate(items):
        _be(before._replace(doing=doing, part=part, parts=number, beats=_here.beats + 1))
        yield item
    _be(before._replace(beats=_here.beats + 1))


def ends(reason: str) -> None:
    """Records that this process is about to exit, and why."""
    _be(Place(_here.step, reason, ended=True))


def _be(place: Place) -> None:
    global _here
    _here = place
