"""The files of a dataset, and what its annotation files hold."""

from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ovseg.core.errors import InputError
from ovseg.core.schema import parse_json, read_bytes, read_text
from ovseg.data.pairs import natural_key
from ovseg.data.pictures import has_suffix

MAX_DEPTH = 6  # of folders in a dataset
MAX_JSON = 500_000_000  # bytes
MAX_XML = 200_000_000  # bytes


class SourceFiles:
    """The files of a dataset in a folder and in the folders in it.

    Args:
        root: the folder, or one file: its annotations, which alone are read.
        picture_root: the folder of its pictures, where it is another one.
    """

    def __init__(self, root: Path, picture_root: Path | None = None):
        self.only = root if root.is_file() else None
        self.root = root.parent if self.only else root
        self.picture_root = picture_root or self.root
        self._parsed: dict[Path, Any] = {}

    @cached_property
    def paths(self) -> list[Path]:
        """All files in natural order, without hidden ones; or the one that is read."""
        return [self.only] if self.only else _list_files(self.root)

    @cached_property
    def pictures(self) -> list[Path]:
        """The pictures in natural order, without hidden ones."""
        is_listed = self.only is None and self.picture_root == self.root
        paths = self.paths if is_listed else _list_files(self.picture_root)
        return [path for path in paths if has_suffix(path)]

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files that have one of these suffixes."""
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    def read(self, path: Path, keep: bool = False) -> Any:
        """The content of an annotation file, see `read_json` and `read_xml`.

        Args:
            path: the file.
            keep: keep the content for the next call: to parse a large file takes seconds.

        Raises:
            InputError: it can't be read.
        """
        content = self._parsed.pop(path, None)
        if content is None:
            content = read_xml(path) if path.suffix.lower() == ".xml" else read_json(path)
        if keep:
            self._parsed[path] = content
        return content


def _list_files(root: Path) -> list[Path]:
    """All files in a folder and the folders in it in natural order, without hidden ones."""
    found = []
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop()
        for path in folder.iterdir():
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            if path.is_file():
                found.append(path)
            elif path.is_dir() and depth < MAX_DEPTH:
                folders.append((path, depth + 1))
    return sorted(found, key=lambda path: natural_key(str(path)))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is none, or larger than `MAX_JSON`.
    """
    text = read_text(path, MAX_JSON)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}). Export it again.") from None


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of an XML without DOCTYPE, which could define entities without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a DOCTYPE")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        InputError: it is none, has a DOCTYPE, or is larger than `MAX_XML`.
    """
    content = read_bytes(path, MAX_XML)
    try:
        return ElementTree.XML(content, ElementTree.XMLParser(target=_Builder()))
    except (ValueError, LookupError, ElementTree.ParseError) as error:
        raise InputError(f"{path} is no XML that is read ({error}). Export it again.") from None
