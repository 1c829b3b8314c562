"""Entries of tables by name, and arguments checked against a signature."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ovseg.core.errors import InputError, first_five


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry `name` of `table`.

    Raises:
        InputError: there is no such entry; the message lists the choices.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(f"Unknown {kind} {name!r}. Choose one of: {', '.join(sorted(table))}.")
    return table[name]


def check_arguments(
    kind: str, function: Callable, arguments: Mapping[str, object], given: int = 0
) -> None:
    """Refuse arguments that `function` does not take, before it runs.

    Args:
        kind: what the function builds, for the message.
        function: a callable whose signature lists its arguments; those it would take as `**kwargs` are not known.
        arguments: what will be passed by keyword.
        given: number of leading parameters that the caller passes itself.

    Raises:
        InputError: unknown or missing arguments (the message lists the known ones), or one of the wrong plain type.
    """
    parameters = list(inspect.signature(function).parameters.values())[given:]
    annotations = {p.name: p.annotation for p in parameters}
    known = {p.name: p.default is p.empty for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = [name for name in arguments if name not in known]
    missing = [name for name, needed in known.items() if needed and name not in arguments]
    if unknown or missing:
        what = f"does not take {first_five(unknown)}" if unknown else f"needs {first_five(missing)}"
        raise InputError(f"{kind} {what}. Its arguments are: {', '.join(known) or 'none'}.")
    for name, value in arguments.items():
        fitting = _FITTING.get(annotations[name])
        if fitting and (
            not isinstance(value, fitting)
            or (isinstance(value, bool) and annotations[name] is not bool)
        ):
            raise InputError(f"{kind}: {name} is {value!r}, expected {annotations[name].__name__}.")


_FITTING = {
    int: int,
    float: int | float,
    bool: bool,
    str: str,
}  # what a parameter of that annotation takes


def fill_defaults(function: Callable, arguments: Mapping[str, object] | None) -> dict[str, object]:
    """`arguments` with the defaults of `function`'s signature for those that are not given."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(
        arguments or {}
    )
