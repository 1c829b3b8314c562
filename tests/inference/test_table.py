"""The rows of `predictions.csv` survive an interruption."""

import csv
import errno
from pathlib import Path

import pytest

from ovseg.core.errors import WriteError
from ovseg.inference import table as table_module
from ovseg.inference.pictures import InferPicture
from ovseg.inference.table import COLUMNS, JOURNAL, TABLE, PredictionTable


def picture(stem: str) -> InferPicture:
    return InferPicture(Path(f"in/{stem}.jpg"), Path(f"{stem}.png"), None, None, None)


def row(stem: str, area: int = 7) -> dict:
    values = dict.fromkeys(COLUMNS, 0)
    return {**values, "picture": f"in/{stem}.jpg", "mask": f"{stem}.png", "area_pixels": area}


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_an_interrupted_command_are_kept(tmp_path):
    first = PredictionTable(tmp_path)
    for stem in "ab":
        (tmp_path / f"{stem}.png").touch()
        first.add(row(stem))
    with open(tmp_path / JOURNAL, "a", encoding="utf-8") as file:
        file.write('{"picture": "in/c.jpg", "ma')  # killed while it wrote

    second = PredictionTable(tmp_path)
    assert [second.has(picture(stem)) for stem in "abc"] == [True, True, False]
    (tmp_path / "c.png").touch()
    second.add(row("c"))
    second.add(row("a", area=9))  # predicted again, with its batch
    third = PredictionTable(tmp_path)
    assert third.finish([picture(stem) for stem in "cba"]) == [row("c"), row("b"), row("a", 9)]
    assert [found["area_pixels"] for found in read_rows(tmp_path)] == ["7", "7", "9"]
    assert not (tmp_path / JOURNAL).exists()


def test_row_without_a_mask_and_mask_without_a_row_are_not_done(tmp_path):
    table = PredictionTable(tmp_path)
    table.add(row("a"))
    (tmp_path / "b.png").touch()
    assert not table.has(picture("a"))
    assert not table.has(picture("b"))
    assert table.finish([picture("a"), picture("b")]) == []
    assert read_rows(tmp_path) == []


def test_names_are_safe_in_a_spreadsheet(tmp_path):
    table = PredictionTable(tmp_path)
    (tmp_path / "=1+1.png").touch()
    table.add({**row("=1+1"), "picture": "=1+1\x1b.jpg"})
    table.finish([picture("=1+1")])
    found = read_rows(tmp_path)[0]
    assert (found["picture"], found["mask"]) == ("'=1+1\\x1b.jpg", "'=1+1.png")


def test_full_disk_is_a_write_error(tmp_path, monkeypatch):
    table = PredictionTable(tmp_path)

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(table_module, "open", refuse, raising=False)
    with pytest.raises(WriteError, match="Cannot write .*predictions.jsonl: No space left"):
        table.add(row("a"))
