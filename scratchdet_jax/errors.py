"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Something in the user's files, flags or environment is wrong.

    The message is one clear sentence: what is wrong, where, and what to do. Entry points print it
    without a traceback and exit with status 1.
    """
