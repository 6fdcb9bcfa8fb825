"""The one exception for what a user can put right, and warnings of what may be meant."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A user's mistake, told in one line: what was found, what is wanted, and the remedy.

    The command lines print it without a traceback and exit with status 2; any other exception is a bug and keeps its
    traceback.
    """


def warn(message: str) -> None:
    """Tells on stderr, in one line, what may be a mistake and may be meant: found and expected."""
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of an output file; UserError for what goes wrong while it is written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): take another --out.") from error
