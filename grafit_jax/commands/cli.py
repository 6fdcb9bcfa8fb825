"""Shared code of the command lines: one-line error messages, exit statuses and the compilation cache."""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from grafit_jax import config as config_lib
from grafit_jax import config_files, parallel
from grafit_jax.errors import UserError
from grafit_jax.runs import console, multihost
from grafit_jax.runs.preemption import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted

# Exit status after a user's mistake.
EXIT_MISTAKE = 2
# Help of the flag --data_dir of commands that read the data of a run.
DATA_DIR = (
    "where the data are now: TFDS's data directory, or the folder or CSV of a folder:, csv: or npz: source (default: "
    "the place of the training)"
)


def run(main: Callable[[Sequence[str]], None], rest: str | None = None) -> None:
    """Calls `app.run(main)`; a user's mistake in flags, config or data is one line on stderr and exit status 2.

    Args:
      main: the command, called with the words that are not flags.
      rest: name of a list flag or multi-string flag, not a required one. Words that are not flags become further values
        of it, after those given with the flag. None: such words are an error.
    """

    def parse(argv):
        try:
            words = flags.FLAGS(_with_config_paths(argv))
            if len(words) > 1:
                if rest is None:
                    raise UserError(f"found the argument {words[1]!r}; expected flags, as --name=value.")
                setattr(flags.FLAGS, rest, [*(flags.FLAGS[rest].value or ()), *words[1:]])
                flags.FLAGS[rest].present += 1
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.to_dict()  # raises for a missing config file, which is loaded on first use
            return words
        # absl and ml_collections raise these for an unknown flag or key, or a value of the wrong type.
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            if _is_a_bug(error):
                raise
            _exit(error)

    def guarded(argv):
        logging.set_verbosity(logging.ERROR)  # Orbax and TFDS warn about intended uses
        parallel.use_compilation_cache()
        try:
            with console.activity():
                main(argv)
        except UserError as error:
            _exit(error)
        except Preempted as error:
            print(error, file=sys.stderr)
            multihost.exit_with(EXIT_PREEMPTED)
        except KeyboardInterrupt:
            print("\ninterrupted by Ctrl-C", file=sys.stderr)
            multihost.exit_with(EXIT_INTERRUPTED)
        except Exception as error:
            multihost.abandon(error)
            raise

    app.run(guarded, flags_parser=parse)


def require_numbers(flag: str) -> None:
    """Registers a validator for a list flag: distinct, non-negative whole numbers."""

    def are_numbers(values: Sequence[str] | None) -> bool:
        if values is None:
            return True
        return bool(values) and len({*values}) == len(values) and all(re.fullmatch("[0-9]{1,9}", v) for v in values)

    flags.register_validator(flag, are_numbers, "expected distinct whole numbers, as in 0,1,2")


def checkpoint(text: str) -> int | str:
    """Returns the value of a flag --checkpoint: "newest" or a step."""
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else text


def _with_config_paths(argv: Sequence[str]) -> list[str]:
    """Returns the command line with the path of the config file for NAME in --config=NAME:… and --config NAME:…"""
    words: list[str] = []
    for word in argv:
        given = re.match(r"--?config=", word)
        option = given[0] if given else ""
        name, colon, arg = word.removeprefix(option).partition(":")
        is_value = bool(option) or words[-1:] in (["--config"], ["-config"])
        if is_value and name and ".py" not in name and "/" not in name:
            word = f"{option}{config_files.find(name)}{colon}{arg}"
        words.append(word)
    return words


def _exit(error: BaseException) -> NoReturn:
    message = f"error: {_message(error)}"
    print(message, file=sys.stderr)
    multihost.exit_with(EXIT_MISTAKE, message)


def _is_a_bug(error: BaseException) -> bool:
    """Returns whether the error was raised by the code of a config file, which keeps its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return not isinstance(error, flags.Error | UserError | OSError) and not re.search(
        r"[/\\](absl|ml_collections)[/\\]", last
    )


def _message(error: BaseException) -> str:
    """Returns the one-line message of an error, without what the flag libraries have wrapped around it."""
    cause: BaseException | None = error
    original = None
    while cause is not None and original is None:
        # ml_collections raises an error of a config file again, as the same type with a text of its own.
        wrapped = "parsing config file" in str(cause)
        original = cause if isinstance(cause, UserError) and not wrapped else None
        cause = cause.__cause__ or cause.__context__
    text = str(original or error).replace("\\n", " ")
    if missing := re.search(r"Failed loading config file.*No such file or directory: '(.+)'", text, re.DOTALL):
        return f"found no config file {missing[1]}; expected --config=FILE.py[:key=value,…]."
    if unknown := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
        return str(config_lib.unknown_key(unknown[2], [unknown[1]]))
    if unknown := re.search(r'Key "(\w+)" does not exist', text):
        return str(config_lib.unknown_key(unknown[1]))
    if isinstance(error, KeyError | AttributeError):
        return str(config_lib.unknown_key(text.strip(chr(34) + chr(39))))
    return " ".join(text.split())
