"""What a training's command line and configuration files set, and their mistakes told by file and key.

jsonargparse checks every value itself; but its texts name neither the file nor a remedy, and a section that is no
mapping confuses it.
"""

import re
import traceback
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ovseg.core.errors import InputError, first_five
from ovseg.core.yaml_files import parse_yaml, read_yaml

COMMAND_LINE = "command line"
HELP = "`ovseg train --help` lists the keys and what they take."
DEEPER = ("model.optimizer_args.lr",)  # wanted often, and no key of its own


class Setting(NamedTuple):
    """A key that a source sets: `where` is a file or the command line, `key` is dotted, as on the command line."""

    where: str
    key: str
    value: object

    def __str__(self) -> str:
        value = str(self.value) if len(str(self.value)) <= 80 else f"{str(self.value)[:77]}..."
        return f"{self.where}: {self.key} is {value or 'empty'}"


def read_settings(arguments: list[str], known: list[str]) -> list[Setting]:
    """Every setting in the order in which they apply.

    Args:
        arguments: of the command line.
        known: all keys, dotted; of two that are equally like a misspelt one, the first is proposed.

    Raises:
        InputError: a file that is missing or no YAML of sections, a section that is no mapping, an unknown key.
    """
    if any(re.fullmatch(r"-h|--help|--.*\.help", argument.split("=")[0]) for argument in arguments):
        return []  # the parser prints its help
    settings: list[Setting] = []
    for name, value in _options(arguments):
        if name == "config":
            settings += _flatten(*_read_config(value), known)
        elif name in _sections(known):
            settings += _flatten(COMMAND_LINE, {name: parse_yaml(value, COMMAND_LINE)}, known)
        elif name != "print_config":
            settings.append(Setting(COMMAND_LINE, name, value))
    for setting in settings:
        _check_key(setting, known)
    return settings


def read_experiment(
    path: Path, root: str | None, arch_args: list[str], lr: float | None
) -> dict[str, Any]:
    """A training configuration with a few values replaced, for commands that train without Lightning.

    Args:
        path: such as `configs/unet.yaml`.
        root: dataset folder, or None for the file's.
        arch_args: `key=value` texts.
        lr: learning rate, or None for the file's.

    Raises:
        InputError: no such file, no `model` and `data` in it, or a text without `=`.
    """
    config = read_yaml(path)
    sections = config if isinstance(config, dict) else {}
    model, data = sections.get("model"), sections.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise InputError(f"{path} is not a training configuration: it has no model and data.")
    wrong = [text for text in arch_args if "=" not in text]
    if wrong:
        raise InputError(f"--arch-args takes KEY=VALUE, found {first_five(wrong)}.")
    changes = {}
    for text in arch_args:
        key, _, value = text.partition("=")
        changes[key] = parse_yaml(value, f"--arch-args {key}")
    model["arch_args"] = {**(model.get("arch_args") or {}), **changes}
    if lr is not None:
        model["optimizer_args"] = {**(model.get("optimizer_args") or {}), "lr": lr}
    if root is not None:
        data["root"] = root
    return sections


def explain(error: Exception, settings: list[Setting]) -> InputError:
    """jsonargparse's refusal of a value, or of a missing one, in a sentence with the source of the value."""
    text = " ".join(str(error).split())
    if missing := re.search(r"arguments are required: (\S+)$", text):
        key = missing.group(1)
        return InputError(
            f"{key} is not set. Give a --config file that has it, or --{key} VALUE. {HELP}"
        )
    key = re.search(r'Parser key "([^"]+)"', text)
    ours = f"{key.group(1)}." if key else ""
    found = [
        s for s in settings if (f"{s.key}.".startswith(ours) if ours else str(s.value) in text)
    ]
    if not found:
        return InputError(f"{text.rstrip('.')}. {HELP}")
    setting = next((s for s in found if f"value: {s.value}" in text), found[-1])
    if problem := re.search(r"Problem with given class_path (.*?)(?: - |$)", text):
        return InputError(
            f"{setting}, but there is a problem with class_path {problem.group(1)}. {HELP}"
        )
    return InputError(f"{setting}, expected {_expected(text)}. {HELP}")


def explain_refusal(error: Exception, settings: list[Setting]) -> InputError:
    """Lightning's refusal of the Trainer's settings, with the sources of those that its text speaks of."""
    text = " ".join(str(error).split()) or type(error).__name__
    given = list(
        {s.key: s for s in settings if s.key.startswith("trainer.")}.values()
    )  # the last of a key applies
    words = set(re.findall(r"[\w.-]+", text))
    named = [s for s in given if s.key.removeprefix("trainer.") in words]
    named = named or [s for s in given if str(s.value) in words] or given
    sources = f" ({first_five(named)})" if named else ""
    return InputError(
        f"Lightning's Trainer refuses its settings{sources}: {text.rstrip('.')}. {HELP}"
    )


def explain_failure(
    error: Exception, settings: list[Setting], trained: bool, size: int, batch: int
) -> Exception:
    """What a failed training is told as: a sentence, where settings are to blame, or the error itself.

    Args:
        error: what the training raised.
        settings: of the run.
        trained: whether a step was done; before it, what Lightning's own code raises is about the settings.
        size: side of the squares, pixels.
        batch: images a batch.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return InputError(
            f"Out of memory with data.batch_size {batch} and data.image_size {size}. Lower one of them."
        )
    if "more than 1 value per channel" in str(error):
        return InputError(
            f"A batch of one image of {size} x {size} leaves batch normalisation a single pixel. Raise data.batch_size "
            "or data.image_size, or set data.drop_last to true where only the last batch is that short."
        )
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
    by_lightning = not trained and {"pytorch_lightning", "lightning_fabric"} & set(raised_in)
    return (
        explain_refusal(error, settings)
        if by_lightning and not isinstance(error, InputError)
        else error
    )


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Names, without dashes, and values of `--name value` and `--name=value`."""
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        name = "--config" if name == "-c" else name
        if not name.startswith("--"):
            raise InputError(
                f"{COMMAND_LINE}: {name!r} stands alone, expected --KEY VALUE or --config FILE. {HELP}"
            )
        if not equals and name != "--print_config":
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{COMMAND_LINE}: {name} has no value. Write {name} VALUE. {HELP}")
            value = rest.pop(0)
        yield name[2:], value


def _read_config(value: str) -> tuple[str, dict]:
    """Source and content of a --config: a file, or YAML itself as jsonargparse allows."""
    path = Path(value)
    if value and not path.exists() and isinstance(inline := parse_yaml(value, COMMAND_LINE), dict):
        return COMMAND_LINE, inline
    if not value or not path.exists():
        raise InputError(
            f"There is no configuration file {value or 'without a name'}. Give --config FILE."
        )
    if path.is_dir():
        inside = first_five(sorted(path.glob("*.yaml")))
        raise InputError(
            f"{path} is a folder, expected a YAML file{f': {inside}' if inside else ''}."
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise InputError(
            f"{path} {kind}, expected sections, such as model, data and trainer, with their keys."
        )
    return str(path), content


def _sections(known: list[str]) -> set[str]:
    return {key.split(".")[0] for key in known if "." in key}


def _flatten(where: str, content: Mapping, known: list[str]) -> Iterator[Setting]:
    for name, value in content.items():
        if name not in _sections(known):
            yield Setting(where, str(name), value)
        elif not isinstance(value, dict):
            found = "empty" if value is None else value
            raise InputError(
                f"{where}: the section {name} is {found}, expected keys with values, or no {name}. {HELP}"
            )
        else:
            yield from (Setting(where, f"{name}.{key}", v) for key, v in value.items())


def _check_key(setting: Setting, known: list[str]) -> None:
    key = setting.key.rstrip("+")  # appends to a list
    if key in known or any(key.startswith(f"{other}.") for other in known):
        return
    closest = max([*known, *_sections(known), *DEEPER], key=lambda other: _likeness(key, other))
    hint = f" Did you mean {closest}?" if _likeness(key, closest) >= 0.6 else ""
    raise InputError(f"{setting.where}: there is no key {key}.{hint} {HELP}")


def _likeness(key: str, other: str) -> float:
    """Of the last parts, 0..1, and half as much of what stands before them; 0 where the last parts are not alike."""
    (section, _, name), (other_section, _, other_name) = key.rpartition("."), other.rpartition(".")
    names = SequenceMatcher(None, name, other_name).ratio()
    return (
        names + 0.5 * SequenceMatcher(None, section, other_section).ratio() if names >= 0.6 else 0.0
    )


def _expected(text: str) -> str:
    """`a whole number or null` from jsonargparse's list of types."""
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    names |= {"dict": "keys with values", "list": "a list", "NoneType": "null"}
    types = [names.get(name) for name in re.findall(r"Expected a <class '(\w+)'>", text)]
    literals = re.findall(r"Expected a typing\.Literal\[([^\]]*)\]", text)
    choices = [part.strip(" '") for literal in literals for part in literal.split(",")]
    classes = (
        ["the class_path of a class"] if re.search(r"<class '[\w.]+\.[A-Z]\w*'>", text) else []
    )
    return (
        " or ".join([*dict.fromkeys(choices), *classes, *filter(None, types)])
        or f"something else ({text})"
    )
