"""The options of a command, from the signature and the docstring of its function.

A positional-only parameter is a positional argument, any other parameter is `--name`, and `*name`
takes what the command passes on to `train`. Options are written in full, with `_` or `-`.
"""

import argparse
import difflib
import inspect
import typing
from collections.abc import Callable
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from ovseg.core.errors import InputError

Command = Callable[..., int]


def call_command(command: Command, arguments: list[str]) -> int:
    """Call a command with the values on its command line.

    Args:
        command: a function of `ovseg.cli`.
        arguments: what follows the command's name.

    Returns:
        The exit code.

    Raises:
        InputError: an unknown option, a missing one, or a value of another type.
    """
    parameters = inspect.signature(command).parameters.values()
    if all(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return command(*arguments)

    parser = build_parser(command)
    passes_on = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    own, others = _split(arguments, _option_names(command))
    _check_options(command, others, passes_on)
    if not passes_on:
        own = own + others
        others = []
    values = _parse(parser, own)

    positional = [
        values[parameter.name]
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    keywords = {
        parameter.name: values[parameter.name]
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return command(*positional, *others, **keywords)


def build_parser(command: Command) -> ArgumentParser:
    """The parser of `ovseg NAME`, where NAME is the name of the function."""
    docstring = docstring_parser.parse(inspect.getdoc(command) or "")
    descriptions = {parameter.arg_name: parameter.description for parameter in docstring.params}
    parser = ArgumentParser(
        prog=f"ovseg {command.__name__}",
        description=docstring.description,
        formatter_class=argparse.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is not parameter.VAR_POSITIONAL:
            _add_option(parser, parameter, descriptions.get(parameter.name))
    return parser


def summarise(command: Command) -> str:
    """The first line of a command's docstring."""
    return (inspect.getdoc(command) or "").splitlines()[0]


def _add_option(
    parser: ArgumentParser, parameter: inspect.Parameter, description: str | None
) -> None:
    name = parameter.name
    kind = _without_none(parameter.annotation)
    default = parameter.default
    if parameter.kind is parameter.POSITIONAL_ONLY:
        parser.add_argument(name, type=kind, help=description)
    elif kind is bool and default:
        parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=description)
    elif kind is bool:
        parser.add_argument(f"--{name}", action="store_true", help=description)
    elif _item_type(kind) is not None and default is parameter.empty:
        item = _item_type(kind)
        parser.add_argument(f"--{name}", type=item, nargs="+", required=True, help=description)
    elif _item_type(kind) is not None:
        parser.add_argument(f"--{name}", type=_item_type(kind), nargs="+", help=description)
    elif default is parameter.empty:
        parser.add_argument(f"--{name}", type=kind, required=True, help=description)
    else:
        text = description if default is None else f"{description} (default: {default})"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def _without_none(kind: Any) -> Any:
    """X of the type `X | None`, whose messages are sentences; any other type as it is."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    is_optional = type(None) in typing.get_args(kind) and len(parts) == 1
    return parts[0] if is_optional else kind


def _item_type(kind: object) -> type | None:
    """The type of an item of `list[item]` or `list[item] | None`; None for what is no list."""
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is list:
            return typing.get_args(part)[0]
    return None


def _option_names(command: Command) -> list[str]:
    """The options of a command, with their dashes."""
    names = ["-h", "--help"]
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            negated = parameter.annotation is bool and parameter.default
            names.append(f"--no_{parameter.name}" if negated else f"--{parameter.name}")
    return names


def _split(arguments: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """The options in `names` with their values, spelt with `_`; and all other arguments."""
    own: list[str] = []
    others: list[str] = []
    target = own
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if _spell(option) in names:
            target = own
            argument = _spell(option) + equals + value
        elif option.startswith("--"):
            target = others
        target.append(argument)
    return own, others


def _check_options(command: Command, others: list[str], passes_on: bool) -> None:
    """Refuse options that the command does not have, and those that are nearly one of its own."""
    for argument in others:
        option = argument.partition("=")[0]
        if not option.startswith("--"):
            continue
        close = difflib.get_close_matches(_spell(option), _option_names(command), 1, 0.85)
        hint = f" Did you mean {close[0]}?" if close else ""
        refusal = f"`ovseg {command.__name__}` has no option {option}.{hint}"
        if not passes_on:
            raise InputError(f"{refusal} `ovseg {command.__name__} --help` lists the options.")
        if close and "." not in option:
            raise InputError(f"{refusal} Options for train have a section and a dot.")


def _spell(option: str) -> str:
    """`--batch-size` as `--batch_size`."""
    if not option.startswith("--"):
        return option
    return "--" + option[2:].replace("-", "_")


def _parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    try:
        return parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{text}. `{parser.prog} --help` lists the options.") from None
