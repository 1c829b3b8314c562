"""The size of pixels in millimetres, which a user gives for pictures that don't tell it."""

from dataclasses import dataclass, field
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.data.pairs import normal_stem
from ovseg.data.prepare.tables import read_rows

Spacing = tuple[float, float]  # millimetres from row to row, and from column to column

HEADING = ["stem", "row_mm", "column_mm"]
# Millimetres; from a probe of very high frequency to a picture of a few rows.
SMALLEST = 0.001
LARGEST = 10.0
_RANGE = f"outside of {SMALLEST:g} to {LARGEST:g} mm per pixel"
_UNIT = "Give millimetres per pixel, not centimetres or pixels per millimetre."


@dataclass(frozen=True)
class Spacings:
    """The spacing of each original picture of a dataset.

    Attributes:
        default: of the pictures that `by_stem` does not name; None where it is unknown.
        by_stem: stem -> spacing.
    """

    default: Spacing | None = None
    by_stem: dict[str, Spacing] = field(default_factory=dict)

    def of(self, stem: str) -> Spacing | None:
        """The spacing of a picture; None where it is unknown."""
        return self.by_stem.get(stem, self.default)


def read_spacings(given: str | float | Path | None, stems: list[str]) -> Spacings:
    """The spacing that a user gives.

    Args:
        given: millimetres per pixel, for all pictures; or the path of a CSV of `HEADING`, which may
            leave pictures out and name others; None for none.
        stems: of the pictures.

    Raises:
        InputError: a number is out of range, or the file can't be read, has a line of another kind,
            names a picture twice or none of these.
    """
    if given is None:
        return Spacings()
    try:
        millimetres = float(str(given))
    except ValueError:
        return _read_file(Path(str(given)), stems)
    if not _is_plausible(millimetres):
        raise InputError(f"--spacing {given} is {_RANGE}. {_UNIT}")
    return Spacings(default=(millimetres, millimetres))


def _read_file(path: Path, stems: list[str]) -> Spacings:
    expected = f"Expected lines {','.join(HEADING)} with millimetres per pixel, such as 17,0.1,0.1."
    try:
        rows = read_rows(path)
    except InputError as error:
        raise InputError(
            f"{error} --spacing is a number of millimetres per pixel or such a file. {expected}"
        ) from None

    if rows[0] == HEADING:
        rows = rows[1:]
    by_stem: dict[str, Spacing] = {}
    wrong = []
    twice = []
    outside = []
    for row in rows:
        try:
            name, rows_mm, columns_mm = row
            spacing = (float(rows_mm), float(columns_mm))
        except ValueError:
            wrong.append(",".join(row))
            continue
        stem = normal_stem(name)
        if stem in by_stem:
            twice.append(stem)
        if not all(map(_is_plausible, spacing)):
            outside.append(",".join(row))
        by_stem[stem] = spacing
    if wrong:
        raise InputError(f"{path} has {len(wrong)} other lines: {first_five(wrong)}. {expected}")
    if twice:
        raise InputError(f"{path} names pictures twice: {first_five(twice)}. Name each once.")
    if outside:
        raise InputError(f"{path} has sizes {_RANGE}: {first_five(outside)}. {_UNIT}")
    if not set(stems) & set(by_stem):
        raise InputError(
            f"{path} names none of the {len(stems)} pictures, such as {first_five(stems[:5])}. "
            f"{expected}"
        )
    return Spacings(by_stem=by_stem)


def _is_plausible(millimetres: float) -> bool:
    """Whether a pixel can have this size; NaN is no size."""
    return SMALLEST <= millimetres <= LARGEST
