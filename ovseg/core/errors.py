"""A user's mistake, and how its message names the offenders."""

from collections.abc import Iterable

from ovseg.core.text import printable


class InputError(ValueError):
    """Bad input.

    The message says what is wrong and where, what was expected, what was found and what to do.
    The command line prints it alone, without a traceback, and exits with 2.
    """


class WriteError(InputError, OSError):
    """A file can't be written, such as on a full disk; the cause is the system's own `OSError`."""


def system_reason(error: OSError) -> str:
    """The operating system's words for an error, such as `No space left on device`."""
    return error.strerror or str(error)


def first_five(names: Iterable[object]) -> str:
    """The offenders of an error message, printable: `a, b, c, d, e and 3 more`."""
    texts = [printable(name) for name in names]
    listed = ", ".join(texts[:5])
    if len(texts) <= 5:
        return listed
    return f"{listed} and {len(texts) - 5} more"
