"""Decoded and placed pairs of a split in one memory-mapped file, so that an epoch costs a copy instead of decoding.

The file holds one record a pair, uint8 (4, S, S): the image's planes and the mask, the layout of a batch. A footer,
JSON and its length, says from which files (names, sizes, times) and with which settings the records were made, and
has a checksum of each. So a file that is stale, damaged or cut short is known as such, and a valid one proves that its
pairs were decoded and verified. Files appear under their name only when whole; a process that has an older one open
keeps it.
"""

import errno
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import cv2
import numpy as np
import PIL
from pytorch_lightning.utilities import rank_zero_info

from ovseg import __version__
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_path, content_digest
from ovseg.data.geometry import place
from ovseg.data.pairs import Pair

MAGIC = b"ovseg-1\n"
Store = Callable[[int, np.ndarray, np.ndarray], None]
ABANDONED = (
    3600  # seconds without a write after which a temporary file belongs to no living process
)


class PairCache:
    """The records of a valid cache file, read-only; it can be sent to another process, which maps the file itself."""

    def __init__(self, path: Path, footer: dict):
        self.path, self.footer = path, footer
        self.records = self._map()

    def _map(self) -> np.ndarray:
        count, size = len(self.footer["checksums"]), self.footer["settings"]["image_size"]
        return np.memmap(self.path, np.uint8, "r", shape=(count, 4, size, size))

    def __getstate__(self) -> dict:
        return {"path": self.path, "footer": self.footer}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if read_footer(self.path) != self.footer:
            raise InputError(
                f"{self.path} was replaced while it was in use: the dataset has changed. Start again."
            )
        self.records = self._map()

    @property
    def empty(self) -> list[str]:
        """Stems of the pairs whose mask is empty."""
        return self.footer["empty"]

    def intact(self) -> bool:
        """Whether every record still has the checksum that it was written with; reads the whole file once."""
        with ThreadPoolExecutor(4) as pool:  # zlib lets go of the GIL
            return list(pool.map(zlib.crc32, self.records)) == self.footer["checksums"]


class PickedCache:
    """Records of pairs that lie in several caches, as if they were one cache."""

    def __init__(self, caches: list[PairCache], places: list[tuple[int, int]]):
        self.caches, self.places = caches, places
        self.records = self

    def __getitem__(self, index: int) -> np.ndarray:
        cache, row = self.places[index]
        return self.caches[cache].records[row]


class SplitCaches:
    """The cache files of a dataset's splits in one folder; none, where `folder` is None or can't be written.

    Args:
        folder: it is made when the first file is.
        settings: `image_size`, `fit` and whatever else the records follow from, as JSON has it.
    """

    def __init__(self, folder: Path | None, settings: dict):
        self.folder, self.settings = folder, settings

    def open(self, split: str, pairs: list[Pair]) -> PairCache | None:
        """The valid cache of a split, if any."""
        return open_cache(*self._file(split, pairs)) if self.folder else None

    def pick(
        self, trees: dict[str, list[Pair]], pairs: list[Pair]
    ) -> PairCache | PickedCache | None:
        """The records of some pairs, from the valid caches of the splits that they lie in; None where one has none.

        So folds, which mix splits, share the splits' files.

        Args:
            trees: all pairs of each of these splits.
            pairs: those wanted, in this order.
        """
        caches = [self.open(split, members) for split, members in trees.items()]
        if None in caches:
            return None
        if list(trees.values()) == [pairs]:
            return caches[0]
        places = {
            pair: (n, row)
            for n, members in enumerate(trees.values())
            for row, pair in enumerate(members)
        }
        return PickedCache(caches, [places[pair] for pair in pairs])

    def verify(
        self, split: str, pairs: list[Pair], check: Callable[[Store | None], list[str]], build: bool
    ) -> list[str]:
        """Stems of the empty masks: from a valid cache, or by decoding, in which pass the cache is built if asked.

        Where neither works, nothing of this folder is used from then on, and a message says so.

        Args:
            split: name of the split.
            pairs: its pairs.
            check: decodes and verifies the pairs, hands each to the function it is given, returns the empty ones.
            build: whether to write a cache.
        """
        cached = self.open(split, pairs)
        if cached and cached.intact():
            return cached.empty
        if build and self.folder:
            try:
                return build_cache(*self._file(split, pairs), check)
            except OSError as error:
                rank_zero_info(
                    f"There is no cache in {self.folder} ({error.strerror}), so every epoch decodes its pictures "
                    "again. Set data.cache to a folder with room, or to false."
                )
        self.folder = None
        return check(None)

    def _file(self, split: str, pairs: list[Pair]) -> tuple[Path, dict]:
        """Path and description; the name follows from the settings, so trainings that differ in them coexist."""
        key = content_digest(self.settings)
        return self.folder / f"{split}-{key[:12]}.pairs", describe(pairs, self.settings)


def describe(pairs: list[Pair], settings: dict) -> dict:
    """What records are made from: settings, versions of the code that decodes and resizes, and every file's state."""
    files = [_state(path) for pair in pairs for path in (pair.image_path, pair.mask_path)]
    versions = [__version__, PIL.__version__, cv2.__version__]
    boxes = [pair.box and list(astuple(pair.box)) for pair in pairs]
    stems = [pair.stem for pair in pairs]
    return {
        "settings": settings,
        "stems": stems,
        "files": files,
        "boxes": boxes,
        "versions": versions,
    }


def _state(path: Path) -> list:
    """Name, size and time of change of a file; a file that can't be reached is for its reader to name."""
    try:
        stat = path.stat()
    except OSError as error:
        return [path.name, str(error)]
    return [path.name, stat.st_size, stat.st_mtime_ns]


def read_footer(path: Path) -> dict | None:
    """The footer of a cache file and where it starts; None where there is no file or its end is no footer."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(MAGIC) - 8, os.SEEK_END)
            length, magic = int.from_bytes(file.read(8), "little"), file.read()
            start = file.seek(-len(MAGIC) - 8 - length, os.SEEK_END)
            return json.loads(file.read(length)) | {"start": start} if magic == MAGIC else None
    except (OSError, ValueError, OverflowError, TypeError):
        return None


def open_cache(path: Path, description: dict) -> PairCache | None:
    """The cache of exactly these pairs and settings, or None: missing, stale, or cut short.

    Args:
        path: the cache file.
        description: see `describe`.
    """
    footer, size = read_footer(path), description["settings"]["image_size"]
    expected = description | {"start": len(description["stems"]) * 4 * size * size}
    if footer is None or any(footer.get(name) != value for name, value in expected.items()):
        return None
    return PairCache(path, footer)


def build_cache(path: Path, description: dict, fill: Callable[[Store], list[str]]) -> list[str]:
    """Build a cache file; it appears when it is whole, and replaces an older one.

    Args:
        path: the cache file.
        description: see `describe`.
        fill: is given a function that places and stores image (H, W, 3) and mask (H, W) of the pair of an index,
            which threads may call; it stores every pair and returns the stems of those whose mask is empty.

    Returns:
        What `fill` returned.

    Raises:
        OSError: the folder can't be written, or its disk has no room.
    """
    count, size, fit = (
        len(description["stems"]),
        description["settings"]["image_size"],
        description["settings"]["fit"],
    )
    record = 4 * size * size
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    if shutil.disk_usage(path.parent).free < 1.05 * count * record:
        raise OSError(errno.ENOSPC, f"its disk has less than {count * record >> 20} MB to spare")
    checksums, lock = [0] * count, threading.Lock()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:

        def store(index: int, image: np.ndarray, mask: np.ndarray) -> None:
            image, mask = place(image, size, fit), place(mask, size, fit)
            planes = np.ascontiguousarray(np.concatenate([image.transpose(2, 0, 1), mask[None]]))
            checksums[index] = zlib.crc32(planes)
            with (
                lock
            ):  # written, not mapped: on a full disk a write fails, a mapping kills the process
                file.seek(index * record)
                file.write(planes)

        empty = fill(store)
        footer = json.dumps(description | {"checksums": checksums, "empty": empty}).encode()
        file.seek(count * record)
        file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
        file.flush()
        os.fsync(file.fileno())  # or a crash could leave the name with a hole behind it
    return empty


def _sweep(folder: Path) -> None:
    """Delete what a killed process left half written."""
    for path in folder.glob(".*.tmp.pairs"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
