"""Decoded pairs of a split in one memory-mapped file, so that an epoch need not decode.

The file holds one record a pair, uint8 (4, S, S): the image's planes and the mask, as a batch has
them. A footer, JSON followed by its length, says from which files (names, sizes, times) and with
which settings the records were made, and holds a checksum of each record. A file that is stale,
damaged or truncated is recognised by it, and a valid file proves that its pairs were decoded and
verified. A file appears under its name only when it is whole; a process that has an older one open
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
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from pytorch_lightning.utilities import rank_zero_info

from ovseg import __version__
from ovseg.core.console import THREADS
from ovseg.core.errors import InputError, system_reason
from ovseg.core.files import atomic_path, content_digest, file_digest
from ovseg.data.geometry import place
from ovseg.data.masks import MaskFacts
from ovseg.data.pairs import Pair

# Places image, uint8 (H, W, 3), and mask, uint8 (H, W), of the pair of an index, and stores them.
Store = Callable[[int, np.ndarray, np.ndarray], None]

# Another number where files are read in another way, so that older caches are built again.
MAGIC = b"ovseg-2\n"
# Seconds without a write after which a temporary file belongs to no running process.
ABANDONED = 3600


class PairCache:
    """The records of a valid cache file, read-only.

    It can be sent to another process, which maps the file itself.

    Args:
        path: the cache file.
        footer: see `read_footer`.
    """

    def __init__(self, path: Path, footer: dict[str, Any]):
        self.path = path
        self.footer = footer
        self.records = self._map_records()

    def _map_records(self) -> np.ndarray:
        count = len(self.footer["checksums"])
        size = self.footer["settings"]["image_size"]
        return np.memmap(self.path, np.uint8, "r", shape=(count, 4, size, size))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "footer": self.footer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self.footer = state["footer"]
        if read_footer(self.path) != self.footer:
            raise InputError(
                f"{self.path} was replaced while it was in use: the dataset has changed. "
                "Start again."
            )
        self.records = self._map_records()

    @property
    def masks(self) -> list[MaskFacts]:
        """What the mask of each pair tells."""
        return [MaskFacts(*values) for values in self.footer["masks"]]

    def is_intact(self) -> bool:
        """Whether every record still has its checksum; reads the whole file once."""
        # Threads help, because zlib releases the GIL.
        with ThreadPoolExecutor(THREADS) as pool:
            checksums = list(pool.map(zlib.crc32, self.records))
        return checksums == self.footer["checksums"]


class PickedCache:
    """Records of pairs that lie in several caches, as if they were one cache.

    Args:
        caches: the caches.
        rows: for each pair, the index of its cache and its row there.
    """

    def __init__(self, caches: list[PairCache], rows: list[tuple[int, int]]):
        self.caches = caches
        self.rows = rows

    @property
    def records(self) -> "PickedCache":
        """What is indexed like the records of a `PairCache`."""
        return self

    def __getitem__(self, index: int) -> np.ndarray:
        cache, row = self.rows[index]
        return self.caches[cache].records[row]


class SplitCaches:
    """The cache files of a dataset's splits in one folder.

    Args:
        folder: it is made when the first file is; None for no cache.
        settings: `image_size`, `fit` and whatever else the records follow from, as JSON has it.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]):
        self.folder = folder
        self.settings = settings

    def open(self, split: str, pairs: list[Pair]) -> PairCache | None:
        """The valid cache of a split; None where there is none."""
        if self.folder is None:
            return None
        return open_cache(self._path(self.folder, split), describe(pairs, self.settings))

    def pick(
        self, trees: dict[str, list[Pair]], pairs: list[Pair]
    ) -> PairCache | PickedCache | None:
        """The records of some pairs, from the valid caches of the splits that they lie in.

        Folds, which mix splits, share the splits' files in this way.

        Args:
            trees: all pairs of each of these splits.
            pairs: those wanted, in this order.

        Returns:
            None where one of the splits has no valid cache.
        """
        caches = []
        for split, members in trees.items():
            cache = self.open(split, members)
            if cache is None:
                return None
            caches.append(cache)
        if list(trees.values()) == [pairs]:
            return caches[0]
        rows = {}
        for number, members in enumerate(trees.values()):
            for row, pair in enumerate(members):
                rows[pair] = (number, row)
        return PickedCache(caches, [rows[pair] for pair in pairs])

    def verify(
        self,
        split: str,
        pairs: list[Pair],
        check: Callable[[Store | None], list[MaskFacts]],
        build: bool,
    ) -> list[MaskFacts]:
        """What the masks of a split tell, from a valid cache or by decoding.

        Decoding also builds the cache if asked. Where the folder can't be written, a message says
        so, and no cache is used from then on.

        Args:
            split: name of the split.
            pairs: its pairs.
            check: decodes and verifies the pairs, hands each to the function that it is given, and
                returns what their masks tell.
            build: whether to write a cache.
        """
        cached = self.open(split, pairs)
        if cached is not None and cached.is_intact():
            return cached.masks
        if build and self.folder is not None:
            try:
                path = self._path(self.folder, split)
                description = describe(pairs, self.settings)
                return build_cache(path, description, check, partial(pairs_digest, pairs))
            except OSError as error:
                rank_zero_info(
                    f"There is no cache in {self.folder} ({system_reason(error)}), so every epoch "
                    "decodes its pictures again. Set data.cache to a folder with room, or to "
                    "false."
                )
        self.folder = None
        return check(None)

    def digest(self, split: str, pairs: list[Pair]) -> str:
        """See `pairs_digest`; a valid cache holds it, so that nothing is read again."""
        cached = self.open(split, pairs)
        if cached is not None and "digest" in cached.footer:
            return cached.footer["digest"]
        return pairs_digest(pairs)

    def _path(self, folder: Path, split: str) -> Path:
        """The file of a split; other settings have another name, so both can be kept."""
        return folder / f"{split}-{content_digest(self.settings)[:12]}.pairs"


def pairs_digest(pairs: list[Pair]) -> str:
    """SHA-256 of the stems, the borders and the bytes of pairs, in hexadecimal.

    It is the same where the dataset lies elsewhere.
    """
    paths = []
    for pair in pairs:
        paths += [pair.image_path, pair.mask_path]
    # Threads help, because hashlib releases the GIL.
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(_digest_file, paths))
    boxes = [None if pair.box is None else list(astuple(pair.box)) for pair in pairs]
    return content_digest([[pair.stem for pair in pairs], files, boxes])


def _digest_file(path: Path | None) -> str | None:
    return None if path is None else file_digest(path)


def describe(pairs: list[Pair], settings: dict[str, Any]) -> dict[str, Any]:
    """What records are made from, as JSON has it.

    These are the settings, the versions of the code that decodes and resizes, and the state of
    every file.
    """
    files = []
    boxes = []
    for pair in pairs:
        files += [_describe_file(pair.image_path), _describe_file(pair.mask_path)]
        boxes.append(None if pair.box is None else list(astuple(pair.box)))
    return {
        "settings": settings,
        "stems": [pair.stem for pair in pairs],
        "files": files,
        "boxes": boxes,
        "versions": [__version__, PIL.__version__, cv2.__version__],
    }


def _describe_file(path: Path | None) -> list[str | int] | None:
    """Name, size and time of change of a file.

    For a file that can't be reached it is the reason; whoever reads the file reports it.
    """
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError as error:
        return [path.name, str(error)]
    return [path.name, status.st_size, status.st_mtime_ns]


def read_footer(path: Path) -> dict[str, Any] | None:
    """The footer of a cache file, with `start`, the byte at which it starts.

    Returns:
        None where there is no file, or its end is no footer.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-len(MAGIC) - 8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            if file.read() != MAGIC:
                return None
            start = file.seek(-len(MAGIC) - 8 - length, os.SEEK_END)
            footer = json.loads(file.read(length))
            return {**footer, "start": start}
    except (OSError, ValueError, OverflowError, TypeError, RecursionError):
        return None


def open_cache(path: Path, description: dict[str, Any]) -> PairCache | None:
    """The cache of exactly these pairs and settings.

    Args:
        path: the cache file.
        description: see `describe`.

    Returns:
        None where the file is missing, stale or truncated.
    """
    footer = read_footer(path)
    if footer is None:
        return None
    size = description["settings"]["image_size"]
    expected = {**description, "start": len(description["stems"]) * 4 * size * size}
    for name, value in expected.items():
        if footer.get(name) != value:
            return None
    return PairCache(path, footer)


def build_cache(
    path: Path,
    description: dict[str, Any],
    fill: Callable[[Store], list[MaskFacts]],
    digest: Callable[[], str],
) -> list[MaskFacts]:
    """Build a cache file; it appears when it is whole, and replaces an older one.

    Args:
        path: the cache file.
        description: see `describe`.
        fill: is given a `Store`, which threads may call; it stores every pair and returns what
            their masks tell.
        digest: returns the digest of the pairs, see `pairs_digest`.

    Returns:
        What `fill` returned.

    Raises:
        OSError: the folder can't be written, or its disk has no room.
    """
    count = len(description["stems"])
    size = description["settings"]["image_size"]
    fit = description["settings"]["fit"]
    record_bytes = 4 * size * size
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    if shutil.disk_usage(path.parent).free < 1.05 * count * record_bytes:
        megabytes = count * record_bytes >> 20
        raise OSError(errno.ENOSPC, f"its disk has less than {megabytes} MB to spare")

    checksums = [0] * count
    lock = threading.Lock()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:

        def store(index: int, image: np.ndarray, mask: np.ndarray) -> None:
            planes = place(image, size, fit).transpose(2, 0, 1)
            labels = place(mask, size, fit)
            record = np.concatenate([planes, labels[None]]).tobytes()
            checksums[index] = zlib.crc32(record)
            # Written and not mapped: on a full disk a write fails, a mapping kills the process.
            with lock:
                file.seek(index * record_bytes)
                file.write(record)

        masks = fill(store)
        values = [astuple(mask) for mask in masks]
        content = {
            **description,
            "checksums": checksums,
            "masks": values,
            "digest": digest(),
        }
        footer = json.dumps(content).encode()
        file.seek(count * record_bytes)
        file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
        file.flush()
        # Otherwise a crash could leave the name with missing content.
        os.fsync(file.fileno())
    return masks


def _remove_abandoned(folder: Path) -> None:
    """Delete the temporary files of processes that were killed."""
    for path in folder.glob(".*.tmp.pairs"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
