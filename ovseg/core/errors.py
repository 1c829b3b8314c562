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


def split_advice(problem: str) -> tuple[str, str]:
    """A message without its last sentence, and that sentence, which says what to do.

    A message of one sentence has no advice.
    """
    fault, _, advice = problem.rpartition(". ")
    if not fault:
        return problem, ""
    return f"{fault}.", advice


def join_problems(problems: Iterable[str]) -> str:
    """Messages of several offenders as one, the first five of them.

    The last sentence of a message, which says what to do, is given once, after all messages that
    end with it: `a is broken; b is broken. Replace it. c is empty. Fill it.`
    """
    listed = list(problems)
    faults: dict[str, list[str]] = {}
    for problem in listed[:5]:
        fault, advice = split_advice(printable(problem))
        faults.setdefault(advice, []).append(fault.removesuffix("."))
    if len(listed) > 5:
        of_last = list(faults.values())[-1]
        of_last.append(f"and {len(listed) - 5} more")
    parts = []
    for advice, of_advice in faults.items():
        parts.append(f"{'; '.join(of_advice)}. {advice}".strip())
    return " ".join(parts)
