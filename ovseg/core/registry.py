"""Entries of tables by name, and arguments checked against a signature."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ovseg.core.errors import InputError, first_five

Entry = TypeVar("Entry")


def choose(kind: str, name: object, table: Mapping[str, Entry]) -> Entry:
    """The entry `name` of `table`.

    Args:
        kind: what the table holds, for the message.
        name: the key, as the user gave it.
        table: name -> entry.

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
        function: a callable whose signature lists its arguments; those that it would take as
            `**kwargs` count as unknown.
        arguments: what will be passed by keyword.
        given: number of leading parameters that the caller passes itself.

    Raises:
        InputError: an argument is unknown or missing (the message lists the known ones), or has
            the wrong plain type.
    """
    signature = list(inspect.signature(function).parameters.values())
    parameters = {
        parameter.name: parameter
        for parameter in signature[given:]
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    known = ", ".join(parameters) or "none"

    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise InputError(f"{kind} does not take {first_five(unknown)}. Its arguments are: {known}.")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise InputError(f"{kind} needs {first_five(missing)}. Its arguments are: {known}.")

    for name, value in arguments.items():
        annotation = parameters[name].annotation
        if not _accepts(annotation, value):
            raise InputError(f"{kind}: {name} is {value!r}, expected {describe_type(annotation)}.")


# Types as people write their values in YAML.
TYPE_NAMES: dict[object, str] = {
    type(None): "null",
    bool: "true or false",
    dict: "keys with values",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
}


def describe_type(annotation: Any) -> str:
    """A type in words, such as `a list of a number or null`."""
    origin = typing.get_origin(annotation)
    parts = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        words = [describe_type(part) for part in parts]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return TYPE_NAMES[dict]
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list of {describe_type(parts[0])}"
    return str(getattr(annotation, "__name__", annotation))


def _accepts(annotation: object, value: object) -> bool:
    """Whether a value is of a plain type or a list of them; others are not checked.

    As for msgspec, true is no number of filters, though in Python a bool is an int.
    """
    import msgspec  # not at the top: `ovseg.runtime` calls `choose` where there is no msgspec

    if annotation is inspect.Parameter.empty:
        return True
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    # Types of other packages, which msgspec does not know.
    except TypeError:
        return True
    return True


def fill_defaults(function: Callable, arguments: Mapping[str, object] | None) -> dict[str, object]:
    """`arguments`, with the defaults of `function`'s signature for those that are not given."""
    filled = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            filled[parameter.name] = parameter.default
    filled.update(arguments or {})
    return filled
