"""YAML that would fill the memory or the stack is refused."""

import pytest

from ovseg.core.errors import InputError
from ovseg.core.yaml_files import parse_yaml, read_yaml


def laugh(levels: int) -> str:
    """A list of ten, each a list of ten, and so on, by aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


def test_aliases_that_grow_too_large_are_refused():
    with pytest.raises(InputError, match="holds 1,[0-9,]+ values once its aliases are written out"):
        parse_yaml(laugh(9), "bomb.yaml")


def test_few_aliases_are_taken():
    assert parse_yaml("a: &a {lr: 1e-3}\nb: *a\nc: {<<: *a, x: 1}", "f") == {
        "a": {"lr": 0.001},
        "b": {"lr": 0.001},
        "c": {"lr": 0.001, "x": 1},
    }


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a: &a [*a]"])
def test_deep_or_endless_nesting_is_refused(text):
    with pytest.raises(InputError, match="deep.yaml"):
        parse_yaml(text, "deep.yaml")


@pytest.mark.parametrize("text", ["{[a]: 1}", "{{a: 1}: 1}", "? [a]\n: 1"])
def test_key_that_is_a_list_is_refused(text):
    with pytest.raises(InputError, match="a key is a list or a mapping"):
        parse_yaml(text, "f")


def test_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.yaml"
    with open(path, "wb") as file:
        file.truncate(2**33)
    with pytest.raises(InputError, match="has 8,589,934,592 bytes, expected at most 1,048,576"):
        read_yaml(path)
