"""Progress in a log file: nothing for what is short, a line now and then for what is long."""

from ovseg.core import console as progress
from ovseg.core.console import progress_bar


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
