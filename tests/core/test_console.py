"""Progress in a log file: nothing for what is short, a line now and then for what is long."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ovseg.core import console as progress
from ovseg.core.console import compute_ahead, print_table, progress_bar


def test_short_work_leaves_a_log_file_alone(capsys):
    assert list(progress_bar(range(3), "Short")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_long_work_tells_in_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    list(progress_bar(range(2), "Long"))
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines
        and all(line.startswith("Long: ") for line in lines)
        and any("2/2" in line for line in lines)
    )


def test_next_result_is_computed_while_one_is_used():
    started = []

    def compute(item: int) -> int:
        started.append(item)
        return item**2

    with ThreadPoolExecutor(1) as pool:
        results = compute_ahead(pool, compute, range(4))
        assert next(results) == 0
        pool.submit(int).result()  # what was submitted before is done
        assert started == [0, 1]
        assert list(results) == [1, 4, 9]


def test_error_of_a_computation_is_raised():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(compute_ahead(pool, lambda item: 1 / item, [1, 0]))


def test_table_shows_markup_and_escapes_as_text(capsys):
    print_table(["[/x]", "b"], [["[red]a", "\x1b[31m"]], title="[/y] \udcff")
    out = capsys.readouterr().out
    for text in ("[/x]", "[red]a", r"\x1b[31m", r"[/y] \udcff"):
        assert text in out
