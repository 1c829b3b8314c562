"""Progress bars, work in threads, and tables of the commands."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from ovseg.core.text import printable

EVERY_SECONDS = 30.0  # between the lines in a log file
TABLE_WIDTH = 110  # columns of the terminal
THREADS = 4  # for work on files, whose libraries release the interpreter's lock

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress_bar(items: Iterable | None, title: str, total: int | None = None) -> tqdm:
    """A progress bar that shows that long work continues.

    On a terminal it is a bar that is removed at the end. In a log file it is a line every
    `EVERY_SECONDS`, so that short work leaves none.

    Args:
        items: what to iterate over; None for a bar that the caller advances.
        title: what is being done.
        total: number of items, where `items` has no length.
    """
    if sys.stderr.isatty():
        return tqdm(items, title, total, leave=False)
    return tqdm(
        items,
        title,
        total,
        leave=False,
        delay=EVERY_SECONDS,
        mininterval=EVERY_SECONDS,
        file=_LineWriter(),
    )


def map_with_progress(
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> list[Result]:
    """Apply `function` in `THREADS` threads, with a progress bar."""
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(function, items)
        return list(progress_bar(results, title, len(items)))


def compute_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield `function` of each item in order, and compute the next one meanwhile.

    Args:
        pool: where it is computed.
        function: of an item; what it raises is raised here.
        items: what to compute it of.
    """
    futures = (pool.submit(function, item) for item in items)
    for future in one_late(futures):
        yield future.result()


def one_late(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next one has been made, so that work on it began meanwhile."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _LineWriter:
    """Standard error, on which each state of a bar is a line."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip("\r ") + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def format_score(value: float | None) -> str:
    """A score as tables have it; `none` where there is none."""
    return "none" if value is None else f"{value:.4f}"


def format_interval(bounds: Sequence[float] | None) -> str:
    """Both bounds of an interval as tables have them; empty where there is none."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{low:.4f} .. {high:.4f}"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    """Print a table of texts, `TABLE_WIDTH` columns wide."""
    table = Table(title=Text(printable(title)))
    for text in _as_texts(head):
        table.add_column(text, overflow="fold")  # a long word is broken, not cut off
    for row in rows:
        table.add_row(*_as_texts(row))
    Console(width=TABLE_WIDTH).print(table)


def _as_texts(cells: Iterable[str]) -> list[Text]:
    """Cells as `Text`, because rich would read a name such as [a] as markup."""
    return [Text(printable(cell)) for cell in cells]
