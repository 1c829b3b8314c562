"""How long work shows that it goes on."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

EVERY_SECONDS = 30.0  # between the lines of a log file


def progress_bar(items: Iterable | None, title: str, total: int | None = None) -> tqdm:
    """A bar on a terminal, which goes when it is done; in a log file, what takes longer tells each half minute."""
    if sys.stderr.isatty():
        return tqdm(items, title, total, leave=False)
    return tqdm(
        items,
        title,
        total,
        leave=False,
        delay=EVERY_SECONDS,
        mininterval=EVERY_SECONDS,
        file=_Lines(),
    )


class _Lines:
    """Standard error, where each state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip("\r ") + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    """A table of texts on the terminal, 110 columns wide."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a name may look like markup
    Console(width=110).print(table)
