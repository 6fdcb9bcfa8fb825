"""Where this process is in what it does, and that it goes on: what takes long has a beat, which the watchdog hears."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Place:
    """The steps that a process has taken, what it does and how far with it; `ended` if it is not going on."""

    step: int = 0
    doing: str = "is starting"
    ended: bool = False
    part: int = 0

    def __str__(self) -> str:
        return f"after step {self.step} ({self.doing}{f', part {self.part}' if self.part else ''})"


_here = Place()


def here() -> Place:
    """Where this process is."""
    return _here


def at(step: int, doing: str) -> None:
    """Notes where this process is, as "reads a batch"; costs nothing."""
    _be(Place(step, doing))


def beat() -> None:
    """Notes that what this process does goes on: an evaluation may take longer than a step that hangs."""
    _be(dataclasses.replace(_here, part=_here.part + 1))


def ends(reason: str) -> None:
    """Notes that this process is not going on, and why."""
    _be(dataclasses.replace(_here, doing=reason, ended=True, part=0))


def _be(place: Place) -> None:
    global _here
    _here = place
