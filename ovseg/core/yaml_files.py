"""YAML files, read the same way everywhere.

Two differences from PyYAML: `1e-4` is a number, and a key that is given twice is an error.
"""

import re
from pathlib import Path

import yaml

from ovseg.core.errors import InputError


def read_yaml(path: Path) -> object:
    """The content of a YAML file, as plain values.

    Raises:
        InputError: it can't be read or is not YAML; the message has the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file, expected YAML.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> object:
    """The value of a YAML text.

    Args:
        text: what to parse.
        where: the file or other source, for the message.

    Raises:
        InputError: it is not YAML; the message has the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        if error.problem_mark:
            where = f"{where} line {error.problem_mark.line + 1}"
        raise InputError(f"{where} is not valid YAML ({error.problem}). Correct it.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}.") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the two differences above."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# In YAML 1.2 a float needs no dot; PyYAML, which follows YAML 1.1, reads such a float as text.
# jsonargparse, which reads the configurations of `train`, does the same as we.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
