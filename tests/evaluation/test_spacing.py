"""Millimetres per pixel, as a user gives them."""

import pytest

from ovseg.core.errors import InputError
from ovseg.evaluation.spacing import read_spacings

STEMS = ["1", "2", "caf\u00e9"]


def test_one_number_is_for_all_pictures():
    for given in ("0.1", 0.1):
        spacings = read_spacings(given, STEMS)
        assert [spacings.of(stem) for stem in STEMS] == [(0.1, 0.1)] * 3


def test_nothing_given_is_unknown():
    assert read_spacings(None, STEMS).of("1") is None


@pytest.mark.parametrize(
    "heading", ["stem,row_mm,column_mm\n", "", "\ufeffstem,row_mm,column_mm\n"]
)
def test_file_names_the_pictures_that_are_known(tmp_path, heading):
    path = tmp_path / "spacing.csv"
    # The accent is a letter of its own, as macOS writes it; 9 is of another split.
    path.write_text(f"{heading}1,0.2,0.1\ncafe\u0301, 0.3, 0.3\n\n9,1,1\n", encoding="utf-8")
    spacings = read_spacings(str(path), STEMS)
    assert [spacings.of(stem) for stem in STEMS] == [(0.2, 0.1), None, (0.3, 0.3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1,0.2\n2,a,b\n",
            r"has 2 other lines: 1,0.2, 2,a,b. Expected lines stem,row_mm,column_mm",
        ),
        ("1,0.2,0.2\n1,0.3,0.3\n", "names pictures twice: 1. Name each once"),
        ("1,0,0.2\n2,nan,1\n", "sizes outside of 0.001 to 10 mm per pixel: 1,0,0.2, 2,nan,1. Give"),
        ("7,0.2,0.2\n", "names none of the 3 pictures, such as 1, 2, caf"),
        ("", "is empty, expected a line for each image"),
        (f"1,0.2,{'1' * 200_000}\n", "field larger than field limit"),
    ],
)
def test_file_of_another_kind_is_an_error(tmp_path, text, message):
    path = tmp_path / "spacing.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_spacings(path, STEMS)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "25"])
def test_number_that_is_no_size_of_a_pixel_is_an_error(given):
    with pytest.raises(InputError, match=f"--spacing {given} is outside of 0.001 to 10 mm per pix"):
        read_spacings(given, STEMS)


def test_missing_file_is_an_error_that_says_what_is_expected(tmp_path):
    message = (
        "Cannot read .*gone.csv.*--spacing is a number of millimetres per pixel or such a file"
    )
    with pytest.raises(InputError, match=message):
        read_spacings(tmp_path / "gone.csv", STEMS)
