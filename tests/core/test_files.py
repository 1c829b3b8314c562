import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ovseg.core.errors import InputError, WriteError, first_five
from ovseg.core.files import (
    atomic_dir,
    atomic_path,
    check_writable,
    fit_file_name,
    write_image,
    write_json,
    write_table,
)
from ovseg.core.registry import check_arguments, choose


def write_folder(output: Path, text: str, **options) -> None:
    """Make a folder with the file `marker`."""
    with atomic_dir(output, marker="marker", **options) as folder:
        (folder / "marker").write_text(text)


def test_failed_file_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_file_that_could_not_be_written_is_refused_before_the_work(tmp_path):
    check_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WriteError, match="Cannot write .*gone/a.json: No such file or directory"):
        check_writable(tmp_path / "gone" / "a.json")


def test_failed_folder_keeps_the_old_one(tmp_path):
    write_folder(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "out", overwrite=True, marker="marker"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "marker").read_text() == "old"


def test_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / ("x" * 300)
    with pytest.raises(WriteError, match="^Cannot write .*xxx: File name too long.$") as found:
        write_json(path, {})
    assert isinstance(found.value, InputError) and isinstance(found.value, OSError)


def test_folder_of_others_is_spared(tmp_path):
    (tmp_path / "letters.txt").touch()
    with (
        pytest.raises(InputError, match="does not replace it"),
        atomic_dir(tmp_path, overwrite=True, marker="marker"),
    ):
        pass


def test_existing_folder_needs_overwrite(tmp_path):
    (tmp_path / "marker").touch()
    with pytest.raises(InputError, match="add --overwrite"), atomic_dir(tmp_path, marker="marker"):
        pass


def test_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is a file"), atomic_dir(tmp_path / "out"):
        pass


def test_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"), atomic_dir(tmp_path / "file" / "out"):
        pass


def test_first_five_counts_the_rest():
    assert first_five(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_unknown_name_lists_the_choices():
    with pytest.raises(InputError, match="Unknown fruit 'x'. Choose one of: apple, pear"):
        choose("fruit", "x", {"pear": 1, "apple": 2})


def test_unknown_and_missing_arguments_list_the_known_ones():
    with pytest.raises(InputError, match="thing does not take c. Its arguments are: a, b"):
        check_arguments("thing", lambda a, b=1: None, {"a": 1, "c": 2})
    with pytest.raises(InputError, match="thing needs a"):
        check_arguments("thing", lambda a, b=1: None, {})


def test_longest_name_of_the_file_system_is_written(tmp_path):
    for name in ("a" * 251, "卵" * 83 + "ab", "b" * 250 + os.fsdecode(b"\xc2")):
        path = tmp_path / f"{name}.png"
        write_image(path, np.zeros((2, 2), np.uint8))
        assert path.is_file()
    assert len(list(tmp_path.iterdir())) == 3


def test_name_is_shortened_only_where_it_is_too_long():
    assert fit_file_name("Epoch_1_case", ".png") == "Epoch_1_case.png"
    assert fit_file_name("a" * 251, ".png") == "a" * 251 + ".png"
    first = fit_file_name("Epoch_1_" + "卵" * 83 + "1", ".png")
    second = fit_file_name("Epoch_1_" + "卵" * 83 + "2", ".png")
    assert first != second
    assert first.startswith("Epoch_1_卵卵") and first.endswith(".png")
    assert 245 < len(os.fsencode(first)) <= 255


def test_table_holds_no_formula_and_numbers_as_they_are(tmp_path):
    table = pd.DataFrame({"stem": ["=1", "b\udcc2", "c"], "dice": [-0.5, 1.0, None]})
    write_table(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text() == "stem,dice\n'=1,-0.5\nb\\udcc2,1.0\nc,\n"
    assert table["stem"][0] == "=1"
