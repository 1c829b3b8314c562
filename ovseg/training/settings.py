"""What a training's command line and configuration files set, and mistakes in them.

jsonargparse reads the configuration and checks every value; but its messages name neither the file
nor a remedy. So unknown keys, sections that are no mapping, and values of a wrong plain type are
found here first.
"""

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from inspect import signature
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import ArgumentParser

from ovseg.core.configs import list_configs
from ovseg.core.errors import InputError, first_five
from ovseg.core.trust import FLAG, PACKAGES, is_allowed
from ovseg.core.yaml_files import parse_yaml, read_yaml

COMMAND_LINE = "command line"
FLAGS = ("--print_config", "--resume")  # options that need no value
HELP = "The command's --help lists the keys and what they take."
# Keys below a key that is a dict; people look for them by their last part.
WANTED_KEYS = ("model.optimizer_args.lr",)
# Plain types by what they are called in messages.
TYPE_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "keys with values",
    type(None): "null",
}
MAX_SHOWN = 80  # characters of a value in a message


class Setting(NamedTuple):
    """A key that a source sets.

    Attributes:
        where: a file, or the command line.
        key: dotted, as on the command line.
        value: as YAML has it in a file; text on the command line.
    """

    where: str
    key: str
    value: object

    def __str__(self) -> str:
        value = str(self.value) or "empty"
        if len(value) > MAX_SHOWN:
            value = f"{value[: MAX_SHOWN - 3]}..."
        return f"{self.where}: {self.key} is {value}"


def read_settings(arguments: list[str], known: Sequence[str]) -> list[Setting]:
    """Every setting in the order in which they apply.

    Args:
        arguments: of the command line.
        known: all keys, dotted; of two that are equally similar to a misspelt one, the first is
            proposed.

    Returns:
        Nothing where help is asked for.

    Raises:
        InputError: a file that is missing or is no YAML of sections, a section that is no mapping,
            or an unknown key.
    """
    if any(_asks_for_help(argument) for argument in arguments):
        return []
    sections = _list_sections(known)
    settings: list[Setting] = []
    for name, value in _read_options(arguments):
        if name == "config":
            where, content = _read_config(value)
            settings += _flatten(where, content, sections)
        elif name in sections:
            content = {name: parse_yaml(value, COMMAND_LINE)}
            settings += _flatten(COMMAND_LINE, content, sections)
        elif f"--{name}" not in FLAGS:
            settings.append(Setting(COMMAND_LINE, name, value))
    for setting in settings:
        _check_key(setting, known)
        _check_names(setting)
        _check_class_paths(setting)
    return settings


def _asks_for_help(argument: str) -> bool:
    option = argument.partition("=")[0]
    return option in ("-h", "--help") or (option.startswith("--") and option.endswith(".help"))


def _list_sections(known: Sequence[str]) -> set[str]:
    return {key.split(".")[0] for key in known if "." in key}


def _read_options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Names, without dashes, and values of `--name value` and `--name=value`."""
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "-c":
            name = "--config"
        if not name.startswith("--"):
            raise InputError(
                f"{COMMAND_LINE}: {name!r} is not an option, expected --KEY VALUE or "
                f"--config FILE. {HELP}"
            )
        if not equals and name not in FLAGS:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{COMMAND_LINE}: {name} has no value. Write {name} VALUE. {HELP}")
            value = rest.pop(0)
        yield name.removeprefix("--"), value


def _read_config(value: str) -> tuple[str, dict]:
    """Source and content of a --config: a file, or YAML itself as jsonargparse allows."""
    path = Path(value)
    if not value or not path.exists():
        content = parse_yaml(value, COMMAND_LINE)
        if isinstance(content, dict):
            return COMMAND_LINE, content
        raise InputError(
            f"There is no configuration file {value or 'without a name'}. Give --config FILE, or "
            f"the name of one that ovseg ships: {', '.join(list_configs())}."
        )
    if path.is_dir():
        message = f"{path} is a folder, expected a YAML file"
        inside = sorted(path.glob("*.yaml"))
        if inside:
            message = f"{message}: {first_five(inside)}"
        raise InputError(f"{message}.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise InputError(
            f"{path} {kind}, expected sections, such as model, data and trainer, with their keys."
        )
    return str(path), content


def _flatten(where: str, content: Mapping, sections: set[str]) -> Iterator[Setting]:
    """The settings of a source; only sections are opened, not dicts in them."""
    for name, value in content.items():
        if name not in sections:
            yield Setting(where, str(name), value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield Setting(where, f"{name}.{key}", inner)
        else:
            found = "empty" if value is None else value
            raise InputError(
                f"{where}: the section {name} is {found}, expected keys with values, or no "
                f"{name}. {HELP}"
            )


def _check_key(setting: Setting, known: Sequence[str]) -> None:
    key = setting.key.rstrip("+")  # `key+` appends to a list
    if key in known or any(key.startswith(f"{other}.") for other in known):
        return
    if key.partition(".")[0] == "adaptation" and "adaptation" not in _list_sections(known):
        raise InputError(
            f"{setting.where}: the section adaptation is for `ovseg adapt`, which trains with "
            "unlabelled images. Start it in place of this command, or leave the section out."
        )
    candidates = [*known, *_list_sections(known), *WANTED_KEYS]
    closest = max(candidates, key=lambda other: _similarity(key, other))
    hint = ""
    if _similarity(key, closest) >= 0.6:
        hint = f" Did you mean {closest}?"
    raise InputError(f"{setting.where}: there is no key {key}.{hint} {HELP}")


def _check_names(setting: Setting) -> None:
    """Refuse numbers and the like as names of arguments."""
    if isinstance(setting.value, dict):
        wrong = [name for name in setting.value if not isinstance(name, str)]
        if wrong:
            raise InputError(
                f"{setting}, in which {first_five(wrong)} is no name of an argument. {HELP}"
            )


def _check_class_paths(setting: Setting) -> None:
    """Refuse classes that a configuration may not name, with the remedy.

    jsonargparse, which imports them, refuses them too, and those that are named in other ways.
    """
    value = setting.value
    if setting.where == COMMAND_LINE and "class_path" in str(value):
        value = _parse_argument(str(value))
    names = list(_list_class_paths(value))
    if setting.key.endswith("class_path"):
        names.append(str(setting.value))
    for name in names:
        if "." in name and not is_allowed(name):
            raise InputError(
                f"{setting}, which is refused: {name} is not of {', '.join(PACKAGES)}, or calls "
                f"any function. If you trust the file, and what it imports, add {FLAG}."
            )


def _list_class_paths(value: object) -> Iterator[str]:
    """Every `class_path` in a value, at any depth."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield str(value["class_path"])
        for inner in value.values():
            yield from _list_class_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _list_class_paths(inner)


def _similarity(key: str, other: str) -> float:
    """Similarity of the last parts, 0..1, plus half that of what precedes them.

    It is 0 where the last parts are not alike.
    """
    section, _, name = key.rpartition(".")
    other_section, _, other_name = other.rpartition(".")
    names = SequenceMatcher(None, name, other_name).ratio()
    if names < 0.6:
        return 0.0
    return names + 0.5 * SequenceMatcher(None, section, other_section).ratio()


def check_values(settings: Sequence[Setting], sections: Mapping[str, Callable]) -> None:
    """Refuse values of a wrong plain type.

    Args:
        settings: see `read_settings`.
        sections: name of a section -> the class whose arguments are its keys.

    Raises:
        InputError: names the source, the key and what is expected. Arguments of other types than
            those of `TYPE_NAMES` and literals are left to jsonargparse.
    """
    for setting in settings:
        section, _, name = setting.key.partition(".")
        if section not in sections:
            continue
        parameters = signature(sections[section]).parameters
        if name in parameters:
            _check_value(setting, parameters[name].annotation)


def _check_value(setting: Setting, annotation: Any) -> None:
    kinds: list[type] = []
    choices: list[object] = []
    for part in _list_alternatives(annotation):
        if typing.get_origin(part) is Literal:
            choices += typing.get_args(part)
        elif (typing.get_origin(part) or part) in TYPE_NAMES:
            kinds.append(typing.get_origin(part) or part)
        else:
            return
    value = setting.value
    if setting.where == COMMAND_LINE and isinstance(value, str):
        if str in kinds:
            return
        value = _parse_argument(value)
    texts = [str(choice) for choice in choices]
    if str(value) in texts or any(_is_kind(value, kind) for kind in kinds):
        return
    expected = dict.fromkeys([*texts, *[TYPE_NAMES[kind] for kind in kinds]])
    raise InputError(f"{setting}, expected {' or '.join(expected)}. {HELP}")


def _list_alternatives(annotation: Any) -> Iterator[Any]:
    """The types of a union, of unions in it too, or the one type itself."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _list_alternatives(part)


def _parse_argument(text: str) -> object:
    """The value of a text on the command line; text that is no YAML stays text."""
    try:
        return parse_yaml(text, COMMAND_LINE)
    except InputError:
        return text


def _is_kind(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def explain(
    error: Exception,
    parser: ArgumentParser,
    settings: Sequence[Setting],
    sections: Mapping[str, Callable],
) -> InputError:
    """jsonargparse's refusal, with the source of the refused value where it can be found.

    Args:
        error: what jsonargparse raised.
        parser: of the command line.
        settings: of the run.
        sections: see `check_values`.
    """
    given = {setting.key for setting in settings}
    required = _list_required(sections)
    for key in required:
        if key not in given:
            return InputError(
                f"{key} is not set. Give a --config file that has it, or --{key} VALUE. {HELP}"
            )
    for setting in settings:
        refusal = _try_setting(parser, setting, required)
        if refusal:
            return InputError(f"{setting}, which is refused: {refusal}. {HELP}")
    return InputError(f"{_plain_text(error)}. {HELP}")


def _list_required(sections: Mapping[str, Callable]) -> list[str]:
    """The keys that have no default."""
    required = []
    for section, function in sections.items():
        for parameter in signature(function).parameters.values():
            if parameter.default is parameter.empty:
                required.append(f"{section}.{parameter.name}")
    return required


def _try_setting(parser: ArgumentParser, setting: Setting, required: Sequence[str]) -> str:
    """Why the parser refuses this setting alone; empty where it does not."""
    content: dict[str, Any] = {}
    for key in required:
        _set_nested(content, key, "x")
    _set_nested(content, setting.key.rstrip("+"), setting.value)
    try:
        parser.parse_object(content)
    except Exception as error:  # whatever the libraries raise
        return _plain_text(error)
    return ""


def _set_nested(content: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in nested dicts."""
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = value


def _plain_text(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")


def explain_refusal(error: Exception, settings: Sequence[Setting]) -> InputError:
    """Lightning's refusal of the Trainer's settings, with those settings and their sources.

    Settings of the command line come first: they are the last that were changed.
    """
    given = {setting.key: setting for setting in settings if setting.key.startswith("trainer.")}
    ordered = sorted(given.values(), key=lambda setting: setting.where != COMMAND_LINE)
    sources = f" ({first_five(ordered)})" if ordered else ""
    return InputError(
        f"Lightning's Trainer refuses its settings{sources}: {_plain_text(error)}. {HELP}"
    )


def explain_failure(
    error: Exception, settings: Sequence[Setting], trained: bool, size: int, batch: int
) -> Exception:
    """What is raised for a failed training: a sentence where settings are the cause, or the error.

    Args:
        error: what the training raised.
        settings: of the run.
        trained: whether a step was done; before it, what Lightning's own code raises is about the
            settings.
        size: side of the squares, pixels.
        batch: images a batch.
    """
    if isinstance(error, InputError):
        # That of a loader process arrives with its traceback, whose last line it is.
        name = f"{InputError.__module__}.{InputError.__qualname__}: "
        return InputError(str(error).rpartition(name)[2].strip())
    if isinstance(error, torch.OutOfMemoryError):
        return InputError(
            f"Out of memory with data.batch_size {batch} and data.image_size {size}. "
            "Lower one of them."
        )
    raised_in = Path(extract_tb(error.__traceback__)[-1].filename)
    if isinstance(error, RuntimeError) and "torch/utils/data" in raised_in.as_posix():
        # An error inside a process would be raised elsewhere, as itself.
        return InputError(
            f"A loader process ended: {_plain_text(error)}. If the machine had no memory left, "
            "lower data.num_workers. `ovseg train --resume` with the same arguments continues from "
            "the last complete epoch."
        )
    functions = [frame.name for frame in extract_tb(error.__traceback__)]
    if isinstance(error, ValueError) and "batch_norm" in functions:
        return InputError(
            f"A batch of one image of {size} x {size} leaves batch normalisation a single pixel. "
            "Raise data.batch_size or data.image_size, or set data.drop_last to true where only "
            "the last batch is that short."
        )
    if trained:
        return error
    # Lightning writes the run's config.yaml, with jsonargparse, when the training starts.
    if was_raised_by(error, "pytorch_lightning", "lightning_fabric", "jsonargparse"):
        return explain_refusal(error, settings)
    # A callback of Lightning may ask the network for what it does not have.
    folders = [Path(frame.filename).parts[-3:-1] for frame in extract_tb(error.__traceback__)]
    if ("pytorch_lightning", "callbacks") in folders:
        return explain_refusal(error, settings)
    return error


def was_raised_by(error: Exception, *packages: str) -> bool:
    """Whether an error was raised in the code of one of these packages."""
    raised_in = extract_tb(error.__traceback__)[-1]
    return bool(set(packages) & set(Path(raised_in.filename).parts))


def read_experiment(
    path: Path, root: str | None, arch_args: list[str], lr: float | None
) -> dict[str, Any]:
    """A training configuration with a few values replaced, for commands that need no Trainer.

    Args:
        path: such as `configs/unet.yaml`.
        root: dataset folder, or None for the file's.
        arch_args: `key=value` texts.
        lr: learning rate, or None for the file's.

    Returns:
        The sections of the file.

    Raises:
        InputError: no such file, no `model` and `data` in it, or a text without `=`.
    """
    content = read_yaml(path)
    sections = content if isinstance(content, dict) else {}
    model = sections.get("model")
    data = sections.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise InputError(f"{path} is not a training configuration: it has no model and data.")
    wrong = [text for text in arch_args if "=" not in text]
    if wrong:
        raise InputError(f"--arch_args takes KEY=VALUE, found {first_five(wrong)}.")
    changes = {}
    for text in arch_args:
        key, _, value = text.partition("=")
        changes[key] = parse_yaml(value, f"--arch_args {key}")
    model["arch_args"] = {**(model.get("arch_args") or {}), **changes}
    if lr is not None:
        model["optimizer_args"] = {**(model.get("optimizer_args") or {}), "lr": lr}
    if root is not None:
        data["root"] = root
    return sections
