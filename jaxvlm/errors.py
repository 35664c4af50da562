"""What ends a command without a traceback."""


class UserError(ValueError):
    """Something the user can mend; the message says what, where, what was expected and what to do.

    Entry points print it without a traceback and leave with exit code 2.
    """


class Requeue(Exception):
    """A run was asked to stop and can go on later; a scheduler should start it again.

    Entry points print it and leave with exit code 75, "try again later" in sysexits.h.
    """


def first_line(error: BaseException | str) -> str:
    """What fits into a message of another's error."""
    return (str(error).splitlines() or [""])[0][:1000]


def shown(value: object) -> str:
    """A value in a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
