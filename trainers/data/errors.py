"""The one error type that a user can cause and mend."""


class UserError(ValueError):
    """Bad input: its message is one line that names the file, row or key, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
