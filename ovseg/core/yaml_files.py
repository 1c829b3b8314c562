"""YAML files, read the same way everywhere.

Differences from PyYAML: `1e-4` is a number, a key that is given twice is an error, and so is a file
that is too large, nested too deeply or grows too large by its aliases.
"""

import re
from pathlib import Path

import yaml

from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_CONFIG_BYTES, MAX_YAML_VALUES
from ovseg.core.schema import read_text


def read_yaml(path: Path) -> object:
    """The content of a YAML file, as plain values.

    Raises:
        InputError: it can't be read or is not YAML; the message has the line.
    """
    return parse_yaml(read_text(path, MAX_CONFIG_BYTES), str(path))


def parse_yaml(text: str, where: str) -> object:
    """The value of a YAML text.

    Args:
        text: what to parse.
        where: the file or other source, for the message.

    Raises:
        InputError: it is not YAML; the message has the line.
    """
    try:
        root = yaml.compose(text, _Loader)
        if root is None:
            return None
        size = _expanded_size(root, {})
        if size > MAX_YAML_VALUES:
            raise InputError(
                f"{where} holds {size:,} values once its aliases are written out, expected at most "
                f"{MAX_YAML_VALUES:,}."
            )
        return _Loader("").construct_document(root)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply, or in itself.") from None
    except yaml.MarkedYAMLError as error:
        if error.problem_mark:
            where = f"{where} line {error.problem_mark.line + 1}"
        raise InputError(f"{where} is not valid YAML ({error.problem}). Correct it.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}.") from None


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node has once every alias in it is written out.

    Args:
        node: it may hold one node several times.
        known: the sizes found so far, by the nodes' ids.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        size = 1
        for child in node.value:
            children = child if isinstance(child, tuple) else (child,)  # a mapping has pairs
            for inner in children:
                size += _expanded_size(inner, known)
        known[id(node)] = size
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the two differences above."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping", key.start_mark
                )
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
