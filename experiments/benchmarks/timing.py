"""Timing and memory of benchmark entries, and their line of results."""

import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best(calls: Sequence[Callable[[], Any]], rounds: int, turn: int = 3) -> list[float]:
    """Returns the best time of each call. A turn has several calls, since a library's threads may spin after a call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for mine, call in zip(times, calls, strict=True):
            mine += [seconds(call) for _ in range(turn)]
    return [min(mine) for mine in times]


def say(who: str, seconds: float) -> None:
    """Prints a first time on stderr, in case the benchmark is cut short."""
    print(f"{who}: {seconds:.4g} s per step", file=sys.stderr, flush=True)


def line(work: str, seconds: float, peer: str = "", peer_seconds: float | None = None, **more: Any) -> dict[str, Any]:
    """Returns an entry: seconds of some work and of its peer, and other keys that `study.render` knows."""
    stated: dict[str, Any] = {"work": work, "seconds": seconds, **more}
    if peer:
        stated["peer"] = peer
    if peer_seconds is not None:
        stated |= {"peer_seconds": peer_seconds, "ratio": seconds / peer_seconds}
    return stated


def gigabytes(key: str) -> float:
    """Returns "VmRSS", the resident memory, "RssAnon", that without files, or "VmHWM", the peak of VmRSS since
    `reset_peak`, in GiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 2**20


def reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


class PeakOfOwnMemory:
    """The largest memory without pages of files, which the system can drop, within a with block; `gigabytes`."""

    def __enter__(self) -> "PeakOfOwnMemory":
        self.gigabytes, self._ended = gigabytes("RssAnon"), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.gigabytes = max(self.gigabytes, gigabytes("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
