"""A user's mistake, told in one sentence."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message says what is wrong and where, what was expected and found, and what to do.

    The command line prints it alone, without a traceback, and exits with 2.
    """


def first_five(names: Iterable[object]) -> str:
    """`a, b, c, d, e and 3 more`: the offenders of an error message."""
    names = [str(name) for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
