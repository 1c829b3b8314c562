"""`predictions.csv`: a row for each picture that `infer` predicted; interruptions lose none."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ovseg.core.errors import WriteError, system_reason
from ovseg.core.files import atomic_path
from ovseg.core.text import table_cell
from ovseg.data.pictures import import_dicom
from ovseg.inference.pictures import InferPicture

TABLE = "predictions.csv"
# In an unfinished folder: the rows so far, each a line of JSON.
JOURNAL = "predictions.jsonl"
COLUMNS = (
    "picture",
    "frame",
    "mask",
    "area_pixels",
    "area_percent",
    "components",
    "confidence",
    "flag",
    "largest_probability",
    "area_mm2",
    "pixel_height_mm",
    "pixel_width_mm",
    "calibration",
)
FLAGS = {True: "yes", False: "no", None: ""}  # None: no confidence to flag by was chosen

Row = dict[str, Any]


def measure_area(picture: InferPicture, lesion: np.ndarray) -> Row:
    """The columns on the area of a lesion in mm^2; empty but for DICOM pictures.

    They are the area, the height and width of a pixel, and where that size is from or why it is
    unknown, see `Calibration.find_size`. Of the header only sizes get into them.

    Args:
        picture: of the lesion.
        lesion: bool (H, W).
    """
    row: Row = dict.fromkeys(("area_mm2", "pixel_height_mm", "pixel_width_mm", "calibration"))
    if picture.frame is None:
        return row
    calibration = import_dicom(picture.path).read_calibration(picture.path)
    size, row["calibration"] = calibration.find_size(lesion)
    if size is not None:
        area = np.count_nonzero(lesion) * size.height * size.width
        row["area_mm2"] = round(area, 2)
        row["pixel_height_mm"] = size.height
        row["pixel_width_mm"] = size.width
    return row


class PredictionTable:
    """The rows of an output folder, kept in it while it is unfinished.

    Args:
        folder: the unfinished folder; rows that an interrupted command left there are read.

    Raises:
        WriteError: the folder can't be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.journal = folder / JOURNAL
        self.lock = Lock()
        self.rows: dict[str, Row] = {}
        for row in self._read_journal():
            self.rows[row["mask"]] = row
        # A line that was cut in its middle is left out, so that the next one begins anew.
        lines = [json.dumps(row) + "\n" for row in self.rows.values()]
        with atomic_path(self.journal) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def _read_journal(self) -> list[Row]:
        rows = []
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:  # the command was killed while it wrote this line
                continue
        return rows

    def has(self, picture: InferPicture) -> bool:
        """Whether a picture is done: its mask is in the folder, and its row is known."""
        return picture.mask.as_posix() in self.rows and (self.folder / picture.mask).is_file()

    def done(self, pictures: Iterable[InferPicture]) -> Iterator[tuple[InferPicture, Row]]:
        """Those of some pictures that are done, each with its row."""
        for picture in pictures:
            if self.has(picture):
                yield picture, self.rows[picture.mask.as_posix()]

    def add(self, row: Row) -> None:
        """Keep a row; threads may call it at once.

        Args:
            row: `COLUMNS`, as plain values.

        Raises:
            WriteError: it can't be written.
        """
        with self.lock:
            self.rows[row["mask"]] = row
            try:
                with open(self.journal, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                message = f"Cannot write {self.journal}: {system_reason(error)}."
                raise WriteError(message) from error

    def finish(self, pictures: Sequence[InferPicture]) -> list[Row]:
        """Write `predictions.csv` and remove the rows of the unfinished folder.

        Args:
            pictures: all that were to be predicted; those without a mask get no row.

        Returns:
            The rows, in the order of the pictures.

        Raises:
            WriteError: it can't be written.
        """
        rows = [row for _, row in self.done(pictures)]
        with (
            atomic_path(self.folder / TABLE) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in rows:
                writer.writerow([table_cell(row[name]) for name in COLUMNS])
        self.journal.unlink(missing_ok=True)
        return rows


class RowSender:
    """What a process has in place of a `PredictionTable` that another one keeps.

    Args:
        folder: the unfinished folder.
        send: sends a row to the process that keeps the table; threads may call it at once.
    """

    def __init__(self, folder: Path, send: Callable[[Row], None]):
        self.folder = folder
        self.add = send
