"""The one exception for what a user gave: configuration, data, weights, checkpoint or flags."""


class UserError(ValueError):
    """Something the user can mend; the message says what, where, what was expected and what to do.

    Entry points print it without a traceback and leave with exit code 2.
    """
