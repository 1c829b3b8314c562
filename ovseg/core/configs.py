"""The shipped configurations, by name: `configs/` of the clone, or the same files in a wheel."""

from collections.abc import Iterable
from pathlib import Path

from ovseg.core.errors import InputError

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
