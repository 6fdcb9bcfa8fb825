"""What the entries of all suites share: turns, times, memory, and the line that states them."""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best(calls: Sequence[Callable[[], Any]], rounds: int, turn: int = 3) -> list[float]:
    """The best time of each: in turns of several, since the threads of a library may go on spinning after its call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for mine, call in zip(times, calls, strict=True):
            mine += [seconds(call) for _ in range(turn)]
    return [min(mine) for mine in times]


def say(who: str, seconds: float) -> None:
    """Prints a first figure on stderr: what a benchmark that is cut short leaves behind."""
    print(f"{who}: {seconds:.4g} s a step", file=sys.stderr, flush=True)


def line(work: str, seconds: float, peer: str = "", peer_seconds: float | None = None, **more: Any) -> dict[str, Any]:
    """An entry: what was done in so many seconds, beside its peer, with other keys that `study.render` knows."""
    stated: dict[str, Any] = {"work": work, "seconds": seconds, **more}
    if peer:
        stated["peer"] = peer
    if peer_seconds is not None:
        stated |= {"peer_seconds": peer_seconds, "ratio": seconds / peer_seconds}
    return stated


def gigabytes(key: str) -> float:
    """VmRSS, what is resident now, or VmHWM, its peak since `reset_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 2**20


def reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
