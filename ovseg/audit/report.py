"""An audit as files: `audit.json`, pictures, an HTML page that needs nothing beside it; and a terminal table."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from ovseg.audit.files import BROKEN, REMARKS, SPLITS, Entry
from ovseg.audit.findings import Audit, Copy, audit_tree, summarise
from ovseg.core.console import print_table
from ovseg.core.drawing import TRUTH, caption, contact_sheet, outline, shrink_to
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, atomic_path, write_image, write_json
from ovseg.core.plots import draw_bars, draw_distributions
from ovseg.data.pairs import open_picture, read_image

SAMPLES, PICTURED, DOPPLER = (
    12,
    48,
    40,
)  # images a split, pairs of copies, colour Doppler images on a sheet
TILE = 200  # side of a picture on a sheet, pixels
LISTED = 200  # rows of a table on the page; audit.json has all


def report_audit(
    root: Path, output: Path | None = None, mask_threshold: int = 127, overwrite: bool = False
) -> dict[str, Any]:
    """Audit a tree and write `audit.html`, `audit.json`, `Statistics.png` and the sheets.

    Args:
        root: dataset folder, see `ovseg.audit.findings.audit_tree`.
        output: folder to make, `root/audit` if None; it appears when it is whole.
        mask_threshold: see `audit_tree`.
        overwrite: replace an earlier audit.

    Returns:
        What `audit.json` holds.

    Raises:
        InputError: as `audit_tree`, or `output` holds something else.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}. Check --root.")
    with atomic_dir(output or root / "audit", overwrite, "audit.json", inputs=[root]) as folder:
        audit = audit_tree(root, mask_threshold)
        summary = summarise(audit)
        write_json(folder / "audit.json", summary)
        figures = _draw_numbers(audit, summary, folder) | _draw_sheets(
            audit, mask_threshold, folder
        )
        with atomic_path(folder / "audit.html") as temporary:
            temporary.write_text(_page(audit, summary, figures, folder), encoding="utf-8")
    return summary


def print_audit(summary: dict[str, Any]) -> None:
    """The counts a split as a table on the terminal, then what was found."""
    head = ("", *summary["splits"])
    print_table(
        head,
        [[name, *cells] for name, cells in _rows(summary)],
        title=f"Audit of {summary['root']}",
    )
    for kind, count in summary["problem_counts"].items():
        names = [problem["file"] for problem in summary["problems"] if problem["kind"] == kind]
        if count:
            print(f"{kind}: {count} ({', '.join(names[:3])}{', ...' if count > 3 else ''})")
    for kind, counts in summary["copy_counts"].items():
        if any(counts.values()):
            print(
                f"{kind}: {counts['across splits']} pairs across splits, {counts['within a split']} within a split"
            )
    if isinstance(summary["compared_by"], str):
        print(f"Images were compared by {summary['compared_by']}.")
    print(verdict(summary))


def verdict(summary: dict[str, Any]) -> str:
    """The result in one sentence."""
    if summary["passed"]:
        return "PASSED: no copies across splits, no broken pairs."
    return f"FAILED: {summary['leaks']} pairs of copies across splits (leakage), {summary['broken']} faults."


def _rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The counts of `summarise` as named rows with a cell for every split and for all."""

    def spread(values: dict[str, float] | None, form: str) -> str:
        if values is None:
            return "none"
        return f"{values['median']:{form}} ({values['min']:{form}} .. {values['max']:{form}})"

    def sizes(found: dict[str, int]) -> str:
        return (
            f"{len(found)}: {', '.join(list(found)[:2])}{', ...' if len(found) > 2 else ''}"
            if found
            else "none"
        )

    getters: dict[str, Callable[[dict], object]] = {
        "images": lambda split: split["images"],
        "usable pairs": lambda split: split["usable_pairs"],
        "colour Doppler": lambda split: split["doppler"],
        "empty masks": lambda split: split["empty_masks"],
        "sizes": lambda split: sizes(split["sizes"]),
        "lesion area, median (range)": lambda split: spread(split["lesion"], ".1%"),
        "brightness, median (range)": lambda split: spread(split["brightness"], ".0f"),
    }
    for name in summary["splits"]["all"]["categories"]:
        getters[name] = lambda split, name=name: split["categories"].get(name, 0)
    return [
        (name, [str(get(split)) for split in summary["splits"].values()])
        for name, get in getters.items()
    ]


def _draw_numbers(audit: Audit, summary: dict[str, Any], folder: Path) -> dict[str, str]:
    """`Statistics.png` and the box plots; title -> file name."""
    counts = {split: summary["splits"][split]["images"] for split in SPLITS}
    draw_bars(counts, summary["root"], "images", folder / "Statistics.png")
    figures = {"Images per split": "Statistics.png"}
    for name, scale, unit in (
        ("lesion", 100, "lesion area, % of the picture"),
        ("brightness", 1, "mean grey level"),
    ):
        values: dict[str, list[float]] = {split: [] for split in SPLITS}
        for entry in audit.entries:
            if getattr(entry, name) is not None:
                values[entry.split].append(scale * getattr(entry, name))
        draw_distributions(values, unit, folder / f"{name}.png")
        figures[unit.capitalize()] = f"{name}.png"
    return figures


def _draw_sheets(audit: Audit, threshold: int, folder: Path) -> dict[str, str]:
    """Sheets of copies, samples and colour Doppler; title -> file name. What can't be read is not drawn."""
    sheets: dict[str, tuple[str, list[np.ndarray], int]] = {}
    for file, title, leaks in (
        ("leakage", "Copies across splits", True),
        ("duplicates", "Copies within a split", False),
    ):
        copies = [copy for copy in audit.copies if copy.leaks == leaks]
        chosen = copies[:PICTURED]
        sheets[_count(title, chosen, copies)] = (
            file,
            [_copy_row(audit.root, copy) for copy in chosen],
            3,
        )
    for split in SPLITS:
        usable = [entry for entry in audit.entries if entry.split == split and entry.usable]
        chosen = [
            usable[i]
            for i in np.linspace(0, len(usable) - 1, min(SAMPLES, len(usable))).astype(int)
        ]
        rows = [_sample_row(audit.root, entry, threshold) for entry in chosen]
        sheets[_count(f"Images and masks of {split}", chosen, usable)] = (
            f"samples_{split}",
            rows,
            3,
        )
    doppler = [entry for entry in audit.entries if entry.doppler]
    rows = [_tile(audit.root, entry, entry.name) for entry in doppler[:DOPPLER]]
    sheets[_count("Colour Doppler", rows, doppler)] = ("doppler", rows, 6)
    figures = {}
    for title, (file, rows, columns) in sheets.items():
        if rows:
            write_image(folder / f"{file}.jpg", contact_sheet(rows, columns))
            figures[title] = f"{file}.jpg"
    return figures


def _count(title: str, shown: Sequence, found: Sequence) -> str:
    return f"{title}: {len(found)}" + (
        f", {len(shown)} of them shown" if len(shown) < len(found) else ""
    )


def _tile(root: Path, entry: Entry, text: str) -> np.ndarray:
    return caption(shrink_to(read_image(root / entry.image), TILE), text)


def _copy_row(root: Path, copy: Copy) -> np.ndarray:
    """Both images side by side with split, stem and similarity; a white line to the right."""
    tiles = [
        _tile(root, copy.first, f"{copy.first.name}  {copy.similarity:.2f}"),
        _tile(root, copy.second, f"{copy.second.name}  {copy.how or copy.kind}"),
    ]
    return np.concatenate([*tiles, np.full((tiles[0].shape[0], 4, 3), 255, np.uint8)], axis=1)


def _sample_row(root: Path, entry: Entry, threshold: int) -> np.ndarray:
    """The image with the lesion's outline beside its mask."""
    image, grey = (
        read_image(root / entry.image),
        np.array(open_picture(root / entry.mask).convert("L")),
    )
    mask = grey > threshold
    texts = (entry.name, f"lesion {entry.lesion:.1%}")
    pictures = (
        outline(image, mask, TRUTH),
        np.repeat(mask[..., None].astype(np.uint8) * np.uint8(255), 3, axis=2),
    )
    tiles = [
        caption(shrink_to(picture, TILE), text)
        for picture, text in zip(pictures, texts, strict=True)
    ]
    return np.concatenate([*tiles, np.full((tiles[0].shape[0], 4, 3), 255, np.uint8)], axis=1)


def _page(audit: Audit, summary: dict[str, Any], figures: dict[str, str], folder: Path) -> str:
    """The HTML page, with the pictures in it."""
    pictures = {}
    for title, file in figures.items():
        content = base64.b64encode((folder / file).read_bytes()).decode()
        pictures[title] = f"data:image/{'png' if file.endswith('png') else 'jpeg'};base64,{content}"
    problems = {
        kind: (reason, [problem for problem in audit.problems if problem.kind == kind])
        for kind, reason in (BROKEN | REMARKS).items()
    }
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(PAGE)
        .render(
            summary=summary,
            rows=_rows(summary),
            verdict=verdict(summary),
            problems=problems,
            broken=BROKEN,
            copies=audit.copies,
            pictures=pictures,
            listed=LISTED,
        )
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Audit of {{ summary.root }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border: 1px solid #ccc; padding: 2px 10px; text-align: left; }
img { max-width: 100%; }
.verdict { padding: .6em 1em; color: white; background: {{ "#2a7d3f" if summary.passed else "#b3261e" }}; }
.figures img { max-width: 32%; }
</style>
</head>
<body>
<h1>Audit of {{ summary.root }}</h1>
<p class="verdict">{{ verdict }}</p>
<p>Images of one examination are only known by what they show: an audit that finds none does not prove that no patient
is in two splits. {% if summary.compared_by is string %}Compared by {{ summary.compared_by }}.{% endif %}</p>
<h2>Counts</h2>
<table>
<tr><th></th>{% for name in summary.splits %}<th>{{ name }}</th>{% endfor %}</tr>
{% for name, cells in rows %}<tr><th>{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p class="figures">{% for title, data in pictures.items() if "png" in data[:20] %}
<img alt="{{ title }}" src="{{ data }}">
{% endfor %}</p>
<h2>Faults and remarks</h2>
{% for kind, (reason, found) in problems.items() if found %}
<h3>{{ kind }}{{ "" if kind in broken else " (remark)" }}: {{ found | length }}</h3>
<p>{{ reason }}</p>
<ul>{% for problem in found[:listed] %}<li>{{ problem.file }}: {{ problem.message }}</li>{% endfor %}</ul>
{% if found | length > listed %}<p>The first {{ listed }}; audit.json has all.</p>{% endif %}
{% else %}<p>None.</p>{% endfor %}
<h2>Copies</h2>
<table>
<tr><th>kind</th><th>across splits</th><th>within a split</th></tr>
{% for kind, counts in summary.copy_counts.items() %}
<tr><th>{{ kind }}</th><td>{{ counts["across splits"] }}</td><td>{{ counts["within a split"] }}</td></tr>
{% endfor %}</table>
{% for title, data in pictures.items() if "jpeg" in data[:20] %}
<h2>{{ title }}</h2><img alt="{{ title }}" src="{{ data }}">
{% endfor %}
<h2>Pairs of copies</h2>
<table>
<tr><th>first</th><th>second</th><th>similarity</th><th>kind</th><th>across splits</th></tr>
{% for copy in copies[:listed] %}<tr><td>{{ copy.first.image }}</td><td>{{ copy.second.image }}</td>
<td>{{ copy.similarity }}</td><td>{{ copy.kind }} {{ copy.how }}</td><td>{{ "yes" if copy.leaks else "no" }}</td></tr>
{% endfor %}</table>
{% if copies | length > listed %}<p>The first {{ listed }} of {{ copies | length }}; audit.json has all.</p>{% endif %}
</body>
</html>
"""
