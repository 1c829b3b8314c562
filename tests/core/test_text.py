import os

import pytest

from ovseg.core.text import printable, table_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Läsion 卵巢 1", "Läsion 卵巢 1"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        (os.fsdecode(b"\xc2\xd1"), r"\udcc2\udcd1"),
        ("\x9b31m", r"\x9b31m"),
        ("[/x] <b>", "[/x] <b>"),
    ],
)
def test_what_a_terminal_would_obey_is_an_escape(text, shown):
    assert printable(text) == shown


def test_formula_in_a_table_is_a_text():
    assert [table_cell(text) for text in ("=1+1", "+1", "-1", "@A1", "1=1")] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@A1",
        "1=1",
    ]
    assert table_cell(-1.5) == -1.5
    assert table_cell("a\nb") == r"a\nb"
