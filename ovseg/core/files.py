"""Files and folders that are either whole or absent.

They are written under a temporary name and renamed at the end.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ovseg.core.errors import InputError, WriteError, first_five, system_reason
from ovseg.core.output_place import (
    FILE_LIST,
    OutputPlace,
    is_empty,
    listed_files,
    present_files,
)
from ovseg.core.text import table_cell

if TYPE_CHECKING:  # importing pandas takes long, and few commands write a table
    from pandas import DataFrame

MAX_NAME_BYTES = 255  # of a file, in the file systems of Linux and macOS


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, renamed to it if the block succeeds.

    Raises:
        WriteError: the file can't be written; what was at `path` is still there.
    """
    path = Path(path)
    # The digest stands for the name, which may be as long as the file system allows.
    digest = _name_digest(path.name)
    temporary = path.with_name(f".{digest}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {system_reason(error)}.") from error
    finally:
        with suppress(OSError):  # a name that is too long can't be removed either
            temporary.unlink(missing_ok=True)


def fit_file_name(stem: str, suffix: str) -> str:
    """A name of a file, shortened where it is longer than file systems allow.

    What was cut off is replaced by a digest, so that different stems keep different names.
    """
    name = f"{stem}{suffix}"
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    digest = _name_digest(stem)
    room = MAX_NAME_BYTES - len(f"_{digest}{suffix}")
    # A letter that is cut in its middle is left out.
    kept = os.fsencode(stem)[:room].decode(errors="ignore")
    return f"{kept}_{digest}{suffix}"


def _name_digest(name: str) -> str:
    """16 hexadecimal digits that stand for a name, which need not be UTF-8."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def check_writable(path: Path) -> None:
    """Refuse a file that can't be written, before the work for it begins.

    Raises:
        WriteError: nothing can be written beside it.
    """
    probe = path.with_name(f".{os.getpid()}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {system_reason(error)}.") from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) RGB, or uint16 (H, W), in the format of the suffix."""
    with atomic_path(path) as temporary:
        # Only PNG has the level. Ultrasound images are written 2.5 times as fast as at Pillow's own
        # level 6, and are no larger.
        Image.fromarray(image).save(temporary, compress_level=3)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_table(path: Path, table: "DataFrame") -> None:
    """Write a table as CSV, without its index; texts are `table_cell`s."""
    safe = table.rename(columns=table_cell)
    for name in safe.select_dtypes(exclude="number"):
        safe[name] = safe[name].map(table_cell)
    with atomic_path(path) as temporary:
        safe.to_csv(temporary, index=False)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: object) -> str:
    """SHA-256 of what JSON can hold, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic_dir(
    output: Path,
    overwrite: bool = False,
    marker: str | None = None,
    inputs: Iterable[Path] = (),
    work: str | None = None,
) -> Iterator[Path]:
    """A temporary folder beside `output`, which takes its place when the block succeeds.

    At every moment `output` is the old folder or the new one, whole. Only a mount point, such as a
    container's volume, can't be replaced: its files are moved into it one by one. What other
    programs put into `output` meanwhile is kept.

    Args:
        output: the folder to make.
        overwrite: replace an existing folder, which stays as it is until the new one is whole.
        marker: name of a file that the same command wrote earlier; a folder without it is never
            replaced.
        inputs: what the block reads; none of it may lie in `output`, which would delete it.
        work: what the block computes, as a digest. If the block is interrupted, or the disk is
            full, the temporary folder stays, and a later call with the same digest gets it with
            the files that are done. By default a failed block leaves nothing.

    Raises:
        InputError: the folder exists and may not be replaced, it can't be written, or another
            process is writing it.
    """
    output = Path(output).resolve()
    for path in inputs:
        _refuse_input_in(output, path)
    place = OutputPlace.of(output)
    with place.lock():
        place.recover()
        check_output_dir(output, overwrite, marker)
        place.start(work)
        try:
            yield place.partial
            place.finish()
        except BaseException as error:
            mistake = isinstance(error, InputError) and not isinstance(error, WriteError)
            if mistake or work is None:
                place.discard()
            raise


def refuse_nested(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output folder that is a folder that is read, holds one or lies in one.

    What lies in one would be read as data by the next command.

    Raises:
        InputError: it is so.
    """
    output = Path(output).resolve()
    for path in inputs:
        _refuse_input_in(output, path)
        if output.is_relative_to(Path(path).resolve()):
            raise InputError(
                f"The output folder {output} lies in {path}, which is read. "
                "Choose another --output."
            )


def _refuse_input_in(output: Path, path: Path) -> None:
    if Path(path).resolve().is_relative_to(output):
        raise InputError(
            f"{path} lies in the output folder {output}, which would replace it. "
            "Choose another --output."
        )


def check_output_dir(output: Path, overwrite: bool = False, marker: str | None = None) -> None:
    """Check that a folder may be made at `output`, see `atomic_dir`; an empty folder may be there.

    Raises:
        InputError: it exists and may not be replaced.
    """
    output = Path(output)
    try:
        if output.exists() and not output.is_dir():
            raise InputError(f"{output} is a file. Name a folder.")
        empty = not output.exists() or is_empty(output)
    except OSError as error:
        raise InputError(
            f"Cannot read {output}: {system_reason(error)}. Choose another --output."
        ) from None
    if empty:
        return
    if not overwrite:
        raise InputError(
            f"{output} already exists and is not empty. Choose another --output or add --overwrite."
        )
    if marker and not (output / marker).exists():
        raise InputError(
            f"{output} has no {marker}, so this command did not write it and does not replace it. "
            "Choose another --output."
        )
    listed = listed_files(output)
    if listed is None:
        raise InputError(
            f"{output} has no {FILE_LIST}, which says what ovseg wrote there (an earlier version "
            "wrote none). Remove the folder yourself or choose another --output."
        )
    foreign = [str(path) for path in present_files(output) if path not in listed]
    if foreign:
        raise InputError(
            f"{output} holds {len(foreign)} files that this command did not write and does not "
            f"delete: {first_five(foreign)}. Move them elsewhere or choose another --output."
        )
