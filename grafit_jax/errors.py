"""The exception for mistakes that a user can fix, and warnings."""

import contextlib
import difflib
import pathlib
import sys
from collections.abc import Iterable, Iterator

import tqdm


class UserError(ValueError):
    """A user's mistake, described in one line: what was found, what is expected, and the remedy.

    The command lines print it without a traceback and exit with status 2; any other exception is a bug and keeps its
    traceback.
    """

    def __init__(self, message: str):
        # Parts of the message, such as file names, may contain line breaks.
        super().__init__(" ".join(message.splitlines()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' with the nearest known name, or '' if none is near."""
    near = difflib.get_close_matches(name, [*known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choose(name: str, what: str, known: Iterable[str]) -> str:
    """Returns `name` if it is one of the `known` names; raises UserError with the nearest of them if not."""
    known = tuple(known)
    if name not in known:
        raise UserError(
            f"found unknown {what} {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}."
        )
    return name


_listeners: list[list[str]] = []


def warn(message: str) -> None:
    """Prints a one-line warning to stderr."""
    for messages in _listeners:
        messages.append(message)
    tqdm.tqdm.write(f"warning: {' '.join(message.splitlines())}", file=sys.stderr)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Yields a list that receives the messages of `warn` within the with block, which prints them too."""
    messages: list[str] = []
    _listeners.append(messages)
    try:
        yield messages
    finally:
        _listeners.pop()


def install(extra: str) -> str:
    """Returns the command that installs an extra of pyproject.toml: in the checkout, or of the installed package."""
    checkout = (pathlib.Path(__file__).parent.parent / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if checkout else f"pip install 'grafit_jax[{extra}]'"


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Creates the folder of an output file; turns an OSError while the file is written into a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); use another path.") from error


@contextlib.contextmanager
def reading(path: pathlib.Path, hint: str) -> Iterator[None]:
    """Turns any error while a file is read and parsed into a UserError.

    Args:
      path: the file.
      hint: the end of the message: the expected content, or how to restore the file.

    Raises:
      UserError: the file does not exist, or its content is invalid.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"found no file {error.filename or path}; {hint}.") from error
    except Exception as error:  # decoders raise many types of errors for damaged files
        reason = next(iter(str(error).strip().splitlines()), "")
        if not reason or not isinstance(error, OSError | ValueError):  # other messages need their type to be understood
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path} cannot be read ({reason}); {hint}.") from error
