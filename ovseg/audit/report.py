"""Write an audit as `audit.json`, pictures and one HTML page, and print its table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ovseg.audit.files import BROKEN, REMARKS
from ovseg.audit.findings import Audit, audit_tree, summarise
from ovseg.audit.remedies import LEAKS
from ovseg.audit.sheets import Shown, draw_numbers, draw_sheets
from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, refuse_nested, write_json
from ovseg.core.pages import embed_figures, embed_image, write_page
from ovseg.core.text import printable
from ovseg.data.tree import SPLITS

LISTED = 200  # rows of a table on the page; audit.json has all
PAGE = Path(__file__).parent / "page.html.j2"


def report_audit(
    root: Path,
    output: Path | None = None,
    mask_threshold: int = 127,
    overwrite: bool = False,
    invert_masks: bool = False,
) -> dict[str, Any]:
    """Audit a tree and write `audit.html`, `audit.json`, `Statistics.png` and the sheets.

    Args:
        root: dataset folder, see `ovseg.audit.findings.audit_tree`.
        output: folder to make, `root/audit` if None; it appears when it is whole.
        mask_threshold: see `audit_tree`.
        overwrite: replace an earlier audit.
        invert_masks: see `audit_tree`.

    Returns:
        What `audit.json` holds.

    Raises:
        InputError: as `audit_tree`, or `output` holds something else.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}. Check the path.")
    output = output or root / "audit"
    refuse_nested(output, [root / split for split in SPLITS])
    with atomic_dir(output, overwrite, marker="audit.json", inputs=[root]) as folder:
        audit = audit_tree(root, mask_threshold, invert_masks)
        summary = summarise(audit)
        write_json(folder / "audit.json", summary)
        plots = draw_numbers(audit, folder)
        sheets = draw_sheets(audit, mask_threshold, folder, invert_masks)
        _write_page(folder, audit, summary, plots, sheets)
    return summary


def print_audit(summary: dict[str, Any]) -> None:
    """Print the counts of every split as a table, then what was found."""
    rows = [[name, *cells] for name, cells in _table_rows(summary)]
    print_table(("", *summary["splits"]), rows, title=f"Audit of {summary['root']}")
    for kind, count in summary["problem_counts"].items():
        if not count:
            continue
        problems = [problem for problem in summary["problems"] if problem["kind"] == kind]
        files = [problem["file"] for problem in problems]
        print(f"{kind}: {count} ({printable(_first(files, 3))})")
        if kind in BROKEN:
            print(f"    the first: {printable(problems[0]['message'])}")
        _print_remedy(summary, kind)
    for kind, counts in summary["copy_counts"].items():
        across = counts["across splits"]
        within = counts["within a split"]
        if across or within:
            print(f"{kind}: {across} pairs across splits, {within} within a split")
    _print_remedy(summary, LEAKS)
    if isinstance(summary["compared_by"], str):
        print(f"Images were compared by {summary['compared_by']}.")
    print(verdict(summary))


def _print_remedy(summary: dict[str, Any], kind: str) -> None:
    remedy = summary["remedies"].get(kind)
    if remedy:
        print(f"    to mend it: {printable(remedy)}")


def verdict(summary: dict[str, Any]) -> str:
    """The result in one sentence."""
    if summary["passed"]:
        return "PASSED: no copies across splits, no broken pairs."
    return (
        f"FAILED: {summary['leaks']} pairs of copies across splits (leakage), "
        f"{summary['broken']} faults."
    )


def _table_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The counts of `summarise` as named rows with a cell for every split and for all."""
    categories = summary["splits"]["all"]["categories"]
    columns = [_table_column(split, categories) for split in summary["splits"].values()]
    rows = []
    for name in columns[0]:
        rows.append((name, [column[name] for column in columns]))
    return rows


def _table_column(split: dict[str, Any], categories: Iterable[str]) -> dict[str, str]:
    """Name of a row -> its cell."""
    cells = {
        "images": str(split["images"]),
        "usable pairs": str(split["usable_pairs"]),
        "colour Doppler": str(split["doppler"]),
        "empty masks": str(split["empty_masks"]),
        "sizes": _sizes(split["sizes"]),
        "lesion area, median (range)": _range(split["lesion"], ".1%"),
        "brightness, median (range)": _range(split["brightness"], ".0f"),
    }
    for category in categories:
        cells[category] = str(split["categories"].get(category, 0))
    return cells


def _sizes(counts: dict[str, int]) -> str:
    """How many sizes there are, and the most frequent ones."""
    if not counts:
        return "none"
    return f"{len(counts)}: {_first(list(counts), 2)}"


def _range(spread: dict[str, float] | None, form: str) -> str:
    """Median, least and most in a number format."""
    if spread is None:
        return "none"
    return f"{spread['median']:{form}} ({spread['min']:{form}} .. {spread['max']:{form}})"


def _first(names: list[str], count: int) -> str:
    text = ", ".join(names[:count])
    if len(names) > count:
        text = f"{text}, ..."
    return text


def _write_page(
    folder: Path,
    audit: Audit,
    summary: dict[str, Any],
    plots: dict[str, Figure],
    sheets: dict[str, list[Shown]],
) -> None:
    """Write `audit.html`; `plots` and `sheets` have their titles, see `ovseg.audit.sheets`."""
    problems = {}
    for kind, reason in (BROKEN | REMARKS).items():
        problems[kind] = (reason, [problem for problem in audit.problems if problem.kind == kind])
    pictures = {}
    for title, shown in sheets.items():
        pictures[title] = [(embed_image(one.picture), one.text) for one in shown]
    write_page(
        folder / "audit.html",
        PAGE,
        summary=summary,
        rows=_table_rows(summary),
        verdict=verdict(summary),
        problems=problems,
        broken=BROKEN,
        copies=audit.copies,
        copy_kind=LEAKS,
        plots=embed_figures(plots),
        sheets=pictures,
        listed=LISTED,
    )
