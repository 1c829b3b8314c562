"""What a file must hold, checked before anything of it is used.

A kind of file is described once, as a `msgspec.Struct` beside the code that reads it: names, types,
ranges. Names that a Struct does not have are allowed and stay as they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ovseg.core.errors import InputError, system_reason
from ovseg.core.limits import MAX_TEXT_BYTES

Kind = TypeVar("Kind")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        InputError: it can't be read, is larger, or is no plain file, such as a pipe on which a read
            could wait for ever.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file, expected a text file. Check the path.")
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path} has {size:,} bytes, expected at most {limit:,}.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {system_reason(error)}.") from None


def read_text(path: Path, limit: int) -> str:
    """The content of a UTF-8 file of at most `limit` bytes; its lines end as Unix has them.

    Raises:
        InputError: see `read_bytes`; it is no text.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file (UTF-8). Save it as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, pairs: Callable[[list], Any] | None = None) -> Any:
    """The content of a JSON text.

    Args:
        text: JSON.
        pairs: what becomes of the names and values of an object; a dict by default.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, kind: type[Kind], maker: str, remedy: str) -> Any:
    """The content of a JSON file that is as `kind` describes it.

    Args:
        path: the file.
        kind: a type that msgspec knows, mostly a Struct.
        maker: what writes such files, for the message: "ovseg postprocess".
        remedy: what to do, for the message: a sentence.

    Returns:
        Plain values: dicts, lists, texts, numbers.

    Raises:
        InputError: the file can't be read, is no JSON, or holds something else.
    """
    text = read_text(path, MAX_TEXT_BYTES)
    try:
        content = parse_json(text)
    except ValueError as error:
        problem = str(error)
    else:
        problem = find_problem(content, kind)
    if problem:
        raise InputError(f"{path} is not what {maker} writes ({problem}). {remedy}")
    return content


def find_problem(content: object, kind: Any) -> str:
    """What in plain values is not as `kind` describes it; empty where all is well."""
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return ""


def is_plain(content: object) -> bool:
    """Whether a value is made of dicts, lists, texts, numbers, true, false and null only."""
    try:
        msgspec.json.encode(content)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return False
    return True
