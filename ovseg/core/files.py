"""Files and folders that are either whole or absent.

They are written under a temporary name and renamed at the end.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.core.text import table_cell

if TYPE_CHECKING:  # importing pandas takes long, and few commands write a table
    from pandas import DataFrame

MAX_NAME_BYTES = 255  # of a file, in the file systems of Linux and macOS


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, renamed to it if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The digest stands for the name, which may be as long as the file system allows.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{digest}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fit_file_name(stem: str, suffix: str) -> str:
    """A name of a file, shortened where it is longer than file systems allow.

    What was cut off is replaced by a digest, so that different stems keep different names.
    """
    name = f"{stem}{suffix}"
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
    room = MAX_NAME_BYTES - len(f"_{digest}{suffix}")
    # A letter that is cut in its middle is left out.
    kept = os.fsencode(stem)[:room].decode(errors="ignore")
    return f"{kept}_{digest}{suffix}"


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
    output: Path, overwrite: bool = False, marker: str | None = None, inputs: Iterable[Path] = ()
) -> Iterator[Path]:
    """A temporary folder beside `output`, renamed to `output` when the block succeeds.

    Args:
        output: the folder to make.
        overwrite: replace an existing folder, which stays as it is until the new one is whole.
        marker: name of a file that the same command wrote earlier; a folder without it is never
            replaced.
        inputs: what the block reads; none of it may lie in `output`, which would delete it.

    Raises:
        InputError: the folder exists and may not be replaced, or its parent can't be written.
    """
    output = Path(output).resolve()
    for path in inputs:
        if Path(path).resolve().is_relative_to(output):
            raise InputError(
                f"{path} lies in the output folder {output}, which would replace it. "
                "Choose another --output."
            )
    check_output_dir(output, overwrite, marker)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"Cannot write {output}: {error.strerror}. Choose another --output."
        ) from None
    try:
        yield temporary
        if output.exists():
            shutil.rmtree(output)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_output_dir(output: Path, overwrite: bool = False, marker: str | None = None) -> None:
    """Check that a folder may be made at `output`, see `atomic_dir`; an empty folder may be there.

    Raises:
        InputError: it exists and may not be replaced.
    """
    if output.is_file():
        raise InputError(f"{output} is a file. Name a folder.")
    if not output.exists() or not any(output.iterdir()):
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
