"""The one exception for what a user can put right, and warnings of what may be meant."""

import contextlib
import difflib
import pathlib
import sys
from collections.abc import Iterable, Iterator

import tqdm


class UserError(ValueError):
    """A user's mistake, told in one line: what was found, what is wanted, and the remedy.

    The command lines print it without a traceback and exit with status 2; any other exception is a bug and keeps its
    traceback.
    """

    def __init__(self, message: str):
        # What is told of, such as a file's name, may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing where no known name is near."""
    near = difflib.get_close_matches(name, [*known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choose(name: str, what: str, known: Iterable[str]) -> str:
    """`name`, if it is among the `known` ones; else a UserError that says what there is."""
    known = tuple(known)
    if name not in known:
        raise UserError(f"unknown {what} {name!r}{did_you_mean(name, known)}: want one of {', '.join(known)}.")
    return name


def warn(message: str) -> None:
    """Tells on stderr, in one line, what may be a mistake and may be meant: found and expected."""
    tqdm.tqdm.write(f"warning: {' '.join(message.splitlines())}", file=sys.stderr)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of an output file; UserError for what goes wrong while it is written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): take another --out.") from error


@contextlib.contextmanager
def reading(path: pathlib.Path, want: str) -> Iterator[None]:
    """UserError for whatever goes wrong while a file is read and its content is taken apart.

    Args:
      path: the file.
      want: what it should hold, or how it is made again: the end of the message.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"found no file {error.filename or path}: {want}.") from error
    except Exception as error:  # a decoder may raise anything at what is in a damaged file
        reason = next(iter(str(error).strip().splitlines()), "")
        if not reason or not isinstance(error, OSError | ValueError):  # what the others say is not for people
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path} cannot be read ({reason}): {want}.") from error
