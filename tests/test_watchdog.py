"""When the watchdog reports a process as silent, ended or stuck; test_pods.py tests real processes."""

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


def watchdog_of(count=3, index=1, silent_seconds=10.0, stuck_seconds=30.0):
    return Watchdog(count, index, silent_seconds, stuck_seconds, now=100.0)


def test_at_a_normal_end_no_thread_is_left_in_the_store(monkeypatch):
    class Store:
        said, is_open = [], True

        def key_value_set(self, key, value, allow_overwrite):
            assert self.is_open and allow_overwrite
            self.said.append((key, value))

        def key_value_dir_get(self, key):
            return self.said[-1:]

    def shutdown():  # waits for the other processes, and this one keeps publishing meanwhile
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


def test_a_process_that_publishes_nothing_new_is_reported_with_its_last_place():
    watchdog = watchdog_of()
    for now in (101, 106, 111):  # process 2 publishes twice; the store keeps returning its last value
        watchdog.hear({0: (now, Place(now, "saving")), 2: (min(now, 106), Place(6, "reading a batch"))}, HERE, now)
        assert watchdog.missing(now) is None
    watchdog.hear({0: (116, Place(9, "saving")), 2: (106, Place(6, "reading a batch"))}, HERE, 116)
    assert watchdog.missing(116) is None  # for exactly ten seconds
    assert watchdog.missing(116.5) == "process 2 of 3 does not respond, last seen after step 6 (reading a batch)"


def test_a_process_that_never_published_is_reported_and_so_is_the_one_that_serves_the_store():
    watchdog = watchdog_of(index=0)
    watchdog.hear({1: (1, HERE)}, HERE, 109)
    assert watchdog.missing(110) is None
    assert watchdog.missing(111) == "process 2 of 3 does not respond, last seen after step 0 (starting)"
    watchdog = watchdog_of()
    watchdog.hear({0: (1, HERE), 2: (1, HERE)}, HERE, 105)
    watchdog.hear({}, HERE, 116)  # the store does not answer
    assert watchdog.missing(116) == "process 0 of 3 does not respond, last seen after step 7 (taking a step)"


def test_a_process_does_not_report_itself():
    watchdog = watchdog_of(count=2)
    for now in range(101, 200, 5):
        watchdog.hear({0: (now, HERE), 1: (1, HERE)}, Place(now), now)
        assert watchdog.missing(now) is None and watchdog.stuck(now) is None


def test_a_process_that_has_ended_is_reported_before_it_is_silent_but_not_at_once():
    watchdog = watchdog_of()
    ended = Place(6, "error: no space left", ended=True)
    watchdog.hear({0: (1, HERE), 2: (1, ended)}, HERE, 101)
    watchdog.hear({0: (2, HERE), 2: (2, ended)}, HERE, 102)  # it keeps publishing until it exits
    assert watchdog.missing(102.25) is None  # all may be ending for the same reason
    assert watchdog.missing(102.26) == "process 2 of 3 has ended after step 6 (error: no space left)"


def test_a_process_without_progress_is_stuck_and_reports_where_all_are():
    watchdog = watchdog_of(count=2)
    for now in (101, 116, 131):
        watchdog.hear({0: (now, Place(8, "taking a step"))}, HERE, now)
        assert watchdog.stuck(now) is None
    assert watchdog.stuck(131.5) == (
        "no progress for 30 s: process 0 is after step 8 (taking a step); process 1 is after step 7 (taking a step)"
    )
    # Progress is another step, another activity, or a beat.
    watchdog.hear({0: (132, Place(8, "taking a step"))}, Place(7, "saving"), 132)
    assert watchdog.stuck(162) is None and watchdog.stuck(162.5) is not None
    watchdog.hear({0: (133, Place(8, "taking a step"))}, Place(7, "saving", beats=1), 162)
    assert watchdog.stuck(192) is None and "process 1 is after step 7 (saving)" in (watchdog.stuck(192.5) or "")
    patient = watchdog_of(stuck_seconds=0.0)
    patient.hear({}, HERE, 101)
    assert patient.stuck(1e9) is None


@pytest.mark.parametrize(
    ("work", "beats"),
    [
        (lambda x: neighbors.search(np.tile(x, (3, 1)), x, 3), 4),  # one for each block of 256 queries
        (lambda x: metrics.average_precision(np.tile(x, (3, 1)), np.ones(900, int), x, np.ones(300, int)), 4),
        (lambda x: clustering.kmeans(x, 4), 4 + 2),  # one for each initial centre and each assignment
        (lambda x: probe.fit(x, np.arange(300) % 2, 2, 0.1), 3),
    ],
    ids=["search", "average precision", "k-means", "probe"],
)
def test_long_computations_record_beats(monkeypatch, work, beats):
    monkeypatch.setattr(clustering, "_MAX_ITERATIONS", 1)
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    pulse.at(7, "evaluating")
    work(x)
    assert pulse.here().beats >= beats and pulse.here() == Place(7, "evaluating", beats=pulse.here().beats)


def test_processes_that_differ_from_the_first_are_named(monkeypatch, capsys):
    texts = ["a", "a", "b", "a", "c"]
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda own: np.stack([own, *digests[1:]]))
    with pytest.raises(UserError, match=r"process 2, 4 of 5 found other keys of the config than process 0; use the sa"):
        parallel.check_same("keys of the config", "a")


def test_an_error_after_the_message_of_the_watchdog_adds_no_traceback(monkeypatch, capsys):
    watchdog = watchdog_of(silent_seconds=0.0)
    left = []
    monkeypatch.setattr(watchdog, "leave", left.append)  # do not exit
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
    watchdog.stop("process 1 of 2 does not respond", dump=False)
    assert "process 1 of 2 does not respond" in capsys.readouterr().err and left == [69]
    assert fail() == ""
