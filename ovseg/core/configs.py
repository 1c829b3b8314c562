"""Configurations: those that are shipped, by name, and how two differ.

The shipped ones lie in `configs/` of the clone; in a wheel they are part of the package.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ovseg.core.errors import InputError, first_five

PACKAGE = Path(__file__).resolve().parents[1]


def list_configs() -> dict[str, Path]:
    """Every shipped configuration: its name -> its file; `mmotu/pspnet` is one in a folder."""
    in_wheel = PACKAGE / "configs"
    folder = in_wheel if in_wheel.is_dir() else PACKAGE.parent / "configs"
    configs = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("")
        configs[name.as_posix()] = path
    return configs


def short_name(path: Path) -> str:
    """The name of a configuration's runs: `unet`, or `mmotu_unet` of a shipped `mmotu/unet`."""
    for name, shipped in list_configs().items():
        if path.resolve() == shipped.resolve():
            return name.replace("/", "_")
    return path.stem


def find_config(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: a path, or the name of a shipped configuration, such as `unet`; a file of that name
            in the working directory comes first.

    Raises:
        InputError: neither is there; the message lists the shipped names.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = list_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    raise InputError(
        f"There is no configuration {name}. "
        f"Name a YAML file, or one that ovseg ships: {', '.join(shipped)}."
    )


def resolve_configs(arguments: Iterable[str]) -> list[str]:
    """The arguments of `train`, in which names of shipped configurations have become paths.

    What is neither stays as it is: jsonargparse also takes YAML itself after `--config`.
    """
    shipped = list_configs()
    resolved = []
    is_config = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_config and argument in shipped:
            argument = str(find_config(argument))
        elif option in ("--config", "-c") and equals and value in shipped:
            argument = f"{option}={find_config(value)}"
        is_config = argument in ("--config", "-c")
        resolved.append(argument)
    return resolved


def shorten_configs(arguments: Iterable[str]) -> list[str]:
    """The arguments of `train`, in which paths of shipped configurations are their names again."""
    names = {}
    for name, path in list_configs().items():
        names[str(path)] = name
        names[f"--config={path}"] = f"--config={name}"
    return [names.get(argument, argument) for argument in arguments]


def changed_settings(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, as dotted keys with both values; empty if there are none."""
    flat_earlier = flatten(earlier)
    flat_now = flatten(now)

    changes = []
    for name in sorted(flat_earlier.keys() | flat_now.keys()):
        value_earlier = flat_earlier.get(name)
        value_now = flat_now.get(name)
        if value_earlier != value_now:
            changes.append(f"{name} {value_earlier}, now {value_now}")
    return first_five(changes)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys; an empty dict stays a value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat
