"""What every entry point shares: flags, overrides, and how errors are shown."""

import argparse
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxvlm.errors import Requeue, UserError

_OVERRIDE = "--config."
# The exit code of a run that was asked to stop: EX_TEMPFAIL of sysexits.h, "try again later".
REQUEUE = 75


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off the configuration overrides.

    Returns:
      The remaining arguments, and overrides as `field.path=value`; `--config.a.b value` with a
      space is accepted too.
    """
    rest, overrides = [], []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith(_OVERRIDE):
            rest.append(argument)
            continue
        if "=" not in argument and queue and not queue[0].startswith("--"):
            argument = f"{argument}={queue.pop(0)}"
        overrides.append(argument.removeprefix(_OVERRIDE))
    return rest, overrides


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
    *,
    configured: bool = True,
) -> None:
    """Parses the command line and calls `main`; a `UserError` is one line and exit code 2, a
    `Requeue` one line and exit code 75.

    The overrides stand in the namespace as `overrides`; a command that is not `configured` has
    none, and refuses them.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    rest, overrides = split_overrides(given) if configured else (given, [])
    parser.allow_abbrev = False
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(parser, unknown)}")
    namespace.overrides = overrides
    try:
        main(namespace)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        _exit(2)
    except Requeue as request:
        print(f"{parser.prog}: {request}", file=sys.stderr)
        _exit(REQUEUE)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        os._exit(141)
    except KeyboardInterrupt as interrupt:
        print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        _exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            print(
                f"{parser.prog}: error: the disk is full{where}; make room and give the same "
                "command again",
                file=sys.stderr,
            )
            _exit(2)
        traceback.print_exc()
        _exit(1)


def _nearest(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """Which flag the first unknown one may have been meant for."""
    flags = re.findall(r"--[\w-]+", parser.format_usage())
    name = re.split("[.=]", unknown[0])[0]
    close = difflib.get_close_matches(name, flags, 1, 0.75)
    if not close:
        return ""
    field = unknown[0].removeprefix(name) if unknown[0][len(name) :].startswith(".") else ""
    return f"; did you mean {close[0]}{field}?"


def _exit(code: int) -> None:
    """Ends the process at once: threads of libraries must not keep a failed run alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
