"""Who is missed, and when: the watchdog's judgement from what processes publish; the real thing is in test_pods.py."""

import hashlib
import os
import threading
import time

import jax
import numpy as np
import pytest

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError
from grafit_jax.pulse import Place
from grafit_jax.retrieval import clustering, metrics, neighbors, probe
from grafit_jax.runs import console, multihost
from grafit_jax.runs.multihost import Watchdog

HERE = Place(7, "taking a step")


def others(count=3, index=1, silent_seconds=10.0, stuck_seconds=30.0):
    return Watchdog(count, index, silent_seconds, stuck_seconds, now=100.0)


def test_at_a_usual_end_no_thread_is_left_in_the_store(monkeypatch):
    class Store:
        said, is_open = [], True

        def key_value_set(self, key, value, allow_overwrite):
            assert self.is_open and allow_overwrite
            self.said.append((key, value))

        def key_value_dir_get(self, key):
            return self.said[-1:]

    def shutdown():  # waits for the others: until then they hear of this process
        heard = len(store.said)
        while len(store.said) < heard + 2:
            os.sched_yield()
        store.is_open = False

    store, registered = Store(), []
    monkeypatch.setattr(multihost, "_store", lambda: store)
    monkeypatch.setattr(multihost.atexit, "register", registered.append)
    monkeypatch.setattr(jax.distributed, "shutdown", shutdown)
    dog = Watchdog(1, 0, silent_seconds=0.08, stuck_seconds=0, now=time.monotonic())
    before = threading.active_count()
    dog.start()
    assert threading.active_count() == before + 2 and registered == [dog.end]
    dog.end()
    assert threading.active_count() == before


def test_a_process_that_publishes_nothing_new_is_missed_with_where_it_was():
    known = others()
    for now in (101, 106, 111):  # process 2 stops after its second sign of life, whatever the store still says of it
        known.hear({0: (now, Place(now, "saving")), 2: (min(now, 106), Place(6, "reading a batch"))}, HERE, now)
        assert known.missing(now) is None
    known.hear({0: (116, Place(9, "saving")), 2: (106, Place(6, "reading a batch"))}, HERE, 116)
    assert known.missing(116) is None  # for exactly ten seconds
    assert known.missing(116.5) == "process 2 of 3 is not heard of, last after step 6 (reading a batch)"


def test_a_process_that_never_came_is_missed_and_so_is_the_one_that_holds_the_store():
    known = others(index=0)
    known.hear({1: (1, HERE)}, HERE, 109)
    assert known.missing(110) is None
    assert known.missing(111) == "process 2 of 3 is not heard of, last after step 0 (starting)"
    known = others()
    known.hear({0: (1, HERE), 2: (1, HERE)}, HERE, 105)
    known.hear({}, HERE, 116)  # the store does not answer
    assert known.missing(116) == "process 0 of 3 is not heard of, last after step 7 (taking a step)"


def test_oneself_is_not_missed_however_old_ones_own_entry_is():
    known = others(count=2)
    for now in range(101, 200, 5):
        known.hear({0: (now, HERE), 1: (1, HERE)}, Place(now), now)
        assert known.missing(now) is None and known.stuck(now) is None


def test_a_process_that_says_that_it_ends_is_told_of_before_it_is_missed_but_not_at_once():
    known = others()
    ended = Place(6, "error: no space left", ended=True)
    known.hear({0: (1, HERE), 2: (1, ended)}, HERE, 101)
    known.hear({0: (2, HERE), 2: (2, ended)}, HERE, 102)  # it says so until it is gone
    assert known.missing(102.25) is None  # everybody may be ending for the same reason
    assert known.missing(102.26) == "process 2 of 3 has ended after step 6 (error: no space left)"


def test_a_process_that_does_not_move_is_stuck_and_says_where_all_are():
    known = others(count=2)
    for now in (101, 116, 131):
        known.hear({0: (now, Place(8, "taking a step"))}, HERE, now)
        assert known.stuck(now) is None
    assert known.stuck(131.5) == (
        "nothing has moved for 30 s: process 0 is after step 8 (taking a step); "
        "process 1 is after step 7 (taking a step)"
    )
    # A move is another step, another thing done, or a beat.
    known.hear({0: (132, Place(8, "taking a step"))}, Place(7, "saving"), 132)
    assert known.stuck(162) is None and known.stuck(162.5) is not None
    known.hear({0: (133, Place(8, "taking a step"))}, Place(7, "saving", beats=1), 162)
    assert known.stuck(192) is None and "process 1 is after step 7 (saving)" in (known.stuck(192.5) or "")
    patient = others(stuck_seconds=0.0)
    patient.hear({}, HERE, 101)
    assert patient.stuck(1e9) is None


@pytest.mark.parametrize(
    ("work", "beats"),
    [
        (lambda x: neighbors.search(np.tile(x, (3, 1)), x, 3), 4),  # for a block of 256 queries
        (lambda x: metrics.average_precision(np.tile(x, (3, 1)), np.ones(900, int), x, np.ones(300, int)), 4),
        (lambda x: clustering.kmeans(x, 4), 4 + 2),  # for a first centre and for an assignment
        (lambda x: probe.fit(x, np.arange(300) % 2, 2, 0.1), 3),
    ],
    ids=["search", "average precision", "k-means", "probe"],
)
def test_what_takes_long_has_a_beat(monkeypatch, work, beats):
    monkeypatch.setattr(clustering, "_MAX_ITERATIONS", 1)
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    pulse.at(7, "evaluating")
    work(x)
    assert pulse.here().beats >= beats and pulse.here() == Place(7, "evaluating", beats=pulse.here().beats)


def test_of_several_processes_those_that_differ_from_the_first_are_named(monkeypatch, capsys):
    texts = ["a", "a", "b", "a", "c"]
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda own: np.stack([own, *digests[1:]]))
    with pytest.raises(UserError, match=r"process 2, 4 of 5 found other keys of the config than process 0; use the sa"):
        parallel.check_same("keys of the config", "a")


def test_an_error_after_the_watchdog_has_said_why_the_process_ends_adds_no_traceback(monkeypatch, capsys):
    watchdog = others(silent_seconds=0.0)
    left = []
    monkeypatch.setattr(watchdog, "leave", left.append)  # still waiting for the others
    monkeypatch.setattr(multihost, "_watchdog", watchdog)
    monkeypatch.setattr(multihost, "exit_with", lambda status, reason: None)
    monkeypatch.setattr(console, "_quiet", console.threading.Event())

    def fail():
        try:
            raise RuntimeError("connection closed by peer")
        except RuntimeError as error:
            multihost.abandon(error)
        return capsys.readouterr().err

    assert fail().splitlines()[-1] == "RuntimeError: connection closed by peer"
    watchdog.stop("process 1 of 2 is not heard of", dump=False)
    assert "process 1 of 2 is not heard of" in capsys.readouterr().err and left == [69]
    assert fail() == ""
