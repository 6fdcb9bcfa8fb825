"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A user's mistake, told in one line: what was found, what is wanted, and the remedy.

    The command lines print it without a traceback and exit with status 2; any other exception is a bug and keeps its
    traceback.
    """
