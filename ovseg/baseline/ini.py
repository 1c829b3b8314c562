"""Read the TensorFlow baseline's INI file as the baseline does, without evaluating it."""

import ast
import builtins
import configparser
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_CONFIG_BYTES
from ovseg.core.schema import read_text

REQUIRED = object()
MISSING = "(missing)"
# What a value may name where the baseline evaluates it; any other name is an error there.
KNOWN_NAMES = {
    *dir(builtins),
    *("os", "sys", "glob", "json", "pprint", "configparser", "traceback", "ConfigParser"),
    *("self", "section", "name", "dvalue", "value"),
}


@dataclass
class BaselineFile:
    """The INI file.

    The baseline evaluates a value as Python; a malformed or missing one silently takes the default
    of its key.

    Attributes:
        path: for messages.
        sections: section -> key -> text.
        rows: section.key -> its text and what became of it, of every key read so far.
        defaults: section.key -> the default of the baseline that was taken, in words.
        unused: section -> why none of its other keys matters.
    """

    path: Path
    sections: dict[str, dict[str, str]]
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def text(self, section: str, key: str) -> str | None:
        """What stands in the file; None where the key is missing."""
        return self.sections.get(section, {}).get(key)

    def find_section(self, key: str, *sections: str) -> str:
        """The first of some sections that has a key; the first of all where none has."""
        for section in sections:
            if self.text(section, key) is not None:
                return section
        return sections[0]

    def note(self, section: str, key: str, becomes: str) -> None:
        """Set the row of a key, if the file has it, or if it was read."""
        text = self.text(section, key)
        name = f"{section}.{key}"
        if text is not None or name in self.rows:
            self.rows[name] = (text or MISSING, becomes)

    def table(self) -> list[tuple[str, str, str]]:
        """The rows: `section.key`, its text, and what became of it.

        Keys of the file come first, in its order, then those that it leaves out.
        """
        names = [f"{section}.{key}" for section, keys in self.sections.items() for key in keys]
        table = []
        for name in dict.fromkeys([*names, *self.rows]):
            text, becomes = self.rows[name]
            table.append((name, text, becomes + self.defaults.get(name, "")))
        return table

    def get(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> Any:
        """The value of a key; adds a row that explains what it becomes.

        Raises:
            InputError: a key without default is missing or malformed, or its value is an
                expression, which is not evaluated.
        """
        name = f"{section}.{key}"
        text = self.text(section, key)
        if text is None:
            if default is REQUIRED:
                raise InputError(f"{self.path} has no key {key!r} in section [{section}]. Add it.")
            self.rows[name] = (MISSING, becomes)
            self.defaults[name] = f" ({default!r}, the baseline's default)"
            return default
        self.rows[name] = (text, becomes)
        try:
            return _parse(text)
        except ValueError:
            raise InputError(
                f"{self.path}: [{section}] {key} = {text[:80]} is no Python literal, and no "
                "expression is evaluated here. Write its value."
            ) from None
        except SyntaxError:
            if default is REQUIRED:
                raise InputError(
                    f"{self.path}: [{section}] {key} = {text[:80]} is no Python literal, and the "
                    "baseline has no default for it. Correct it."
                ) from None
            self.defaults[name] = f" ({default!r}, the baseline's default for what is no Python)"
            return default

    def integer(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> int:
        """An int; else as `get`."""
        value = self.get(section, key, becomes, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unexpected(section, key, value, "int")
        return value

    def number(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> int | float:
        """An int or a finite float; else as `get`."""
        value = self.get(section, key, becomes, default)
        if not is_number(value):
            raise self.unexpected(section, key, value, "a finite float")
        return value

    def flag(self, section: str, key: str, becomes: str, default: bool) -> bool:
        """True or False."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, bool):
            raise self.unexpected(section, key, value, "True or False")
        return value

    def word(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> str:
        """A text; else as `get`."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, str):
            raise self.unexpected(section, key, value, "a text in quotes")
        return value

    def square(self, section: str, key: str, becomes: str, default: int) -> int:
        """One int of a pair of equal ones, such as (9,9)."""
        value = self.get(section, key, becomes, (default, default))
        expected = "two equal numbers such as (9,9)"
        if not _is_list_of_ints(value) or len(value) != 2:
            raise self.unexpected(section, key, value, expected)
        first, second = value
        if first != second:
            raise self.unexpected(section, key, value, expected)
        return first

    def integers(self, section: str, key: str, becomes: str, default: Any) -> list[int]:
        """A list or tuple of ints, such as [4, 8, 8, 8]."""
        value = self.get(section, key, becomes, default)
        if not _is_list_of_ints(value):
            raise self.unexpected(section, key, value, "a list of ints")
        return list(value)

    def numbers(self, section: str, key: str, becomes: str, default: Any) -> list[float]:
        """A list or tuple of finite numbers, such as [90, 180, 270]."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, tuple | list) or not all(is_number(item) for item in value):
            raise self.unexpected(section, key, value, "a list of finite numbers")
        return list(value)

    def unexpected(self, section: str, key: str, value: object, expected: str) -> InputError:
        """The error of a value of another kind."""
        return InputError(
            f"{self.path}: [{section}] {key} is {value!r}, expected {expected}. Correct it."
        )


def is_number(value: object) -> bool:
    """Whether it is an int or a finite float; Python reads 1e999 as infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) != math.inf


def _is_list_of_ints(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return all(type(item) is int for item in value)  # bool is a subclass of int


def _parse(text: str) -> Any:
    """The value of a Python literal.

    Raises:
        SyntaxError: no Python, or it names what the baseline does not know, so that evaluating it
            fails there.
        ValueError: an expression that the baseline would evaluate.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a path with backslashes
        warnings.simplefilter("ignore", DeprecationWarning)  # the same before Python 3.12
        try:
            return ast.literal_eval(text)
        # The last two come of what is nested too deeply.
        except (TypeError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None
        except ValueError:
            tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in KNOWN_NAMES:
            raise SyntaxError(f"the baseline knows no {node.id}")
    raise ValueError("an expression")


def open_baseline_config(path: Path) -> BaselineFile:
    """Read the file without interpreting a value.

    Raises:
        InputError: no such file, not an INI file, or no [model] section.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(path, MAX_CONFIG_BYTES), source=str(path))
    except configparser.Error as error:
        raise InputError(f"{path} is not an INI file: {error}") from None
    if "model" not in parser:
        raise InputError(
            f"{path} has no section [model], so it is no configuration of the baseline."
        )
    sections = {name: dict(parser[name]) for name in parser.sections()}
    return BaselineFile(Path(path), sections)
