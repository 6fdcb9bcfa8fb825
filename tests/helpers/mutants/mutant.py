"""A fault that tests/mutants.py applies to the library, with the tests that must detect it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault: replaces `old`, which occurs once in `file`, by `new`; `tests` are node ids of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """Creates a Mutant; `tests` are short names: "x::test_y" stands for tests/test_x.py::test_y."""
    named = (f"tests/test_{test.replace('::', '.py::', 1)}" for test in tests)
    return Mutant(name, file, old, new, tuple(named))
