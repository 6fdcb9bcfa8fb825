"""Hypothesis strategies for damaged files, and a check that they give a value or a one-line UserError."""

import pathlib

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from grafit_jax.errors import UserError

# Replacements of bytes: other encodings, other types, long numbers, long names, deep nesting.
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7,
    b"\n", b"\r", b",", b'"', b"'", b"[]", b"{}", b"null", b"true", b"-1", b"0.5", b"9" * 30, b"9" * 5000,
    b"1e999", b"NaN", b"-Infinity", b"\\ud800", b"\\u0000", b"[" * 20_000, b"x" * 5000, b"x" * 200_000,
)  # fmt: skip
# Replacements of a JSON value.
VALUES = (
    None, True, False, 0, 1, -1, 10**30, 10**400, 0.5, float("nan"), float("-inf"), "", "x", "\0", "a\nb", "\ud800",
    "~nobody/x", "x" * 5000, [], [[]], [1], ["x"], [None], {}, {"a": 1}, {"step": 2},
)  # fmt: skip


@st.composite
def damaged(draw, wholes, pieces=PIECES):
    """Returns the bytes of one of `wholes` with one to three faults."""
    data = draw(st.sampled_from(wholes))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        head, part, tail = data[:at], data[at : at + 16], data[at + 16 :]
        fault = draw(st.sampled_from(("cut", "flip", "replace", "insert", "lose", "double")))
        if fault == "cut":
            data = head
        elif fault == "flip" and part:
            data = head + bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] + tail
        elif fault == "replace":
            data = head + draw(st.sampled_from(pieces)) + tail
        elif fault == "insert":
            data = head + draw(st.sampled_from(pieces)) + part + tail
        elif fault == "lose":
            data = head + tail
        else:
            data = head + part + part + tail
    return data


@st.composite
def altered(draw, content):
    """Returns JSON content with one value replaced or removed."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(VALUES))
    copy = content.copy()
    key = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = draw(altered(content[key]))
    return copy


def outcome(call, *args, **kwargs):
    """Returns the result of a call, or its UserError, which must be one line; other exceptions propagate."""
    try:
        return call(*args, **kwargs)
    except UserError as error:
        assert str(error) and len(str(error).splitlines()) == 1, f"not one line: {error!r}"
        return error


def hold(check, strategy, examples):
    """Runs `check` on `examples` deterministic draws of a strategy."""
    # No deadline or health check: slow and large examples are the point.
    options = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": (Phase.generate, Phase.shrink)}

    @settings(max_examples=examples, derandomize=True, database=None, **options)
    @given(strategy)
    def run(drawn):
        check(drawn)

    run()


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: pathlib.Path, function=None, argument=None):
        self._path, self._call = path, (function, (argument,)) if function else (pathlib.Path.touch, (path,))

    def __reduce__(self):
        return self._call
