"""Tables that users make of their images: which patient is on each, or which split it is in."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.core.limits import MAX_TEXT_BYTES
from ovseg.core.schema import read_text
from ovseg.core.text import printable
from ovseg.data.pairs import normal_stem
from ovseg.data.prepare.sources import PictureNames, Source

# What a column is called, see `_plain`. Of several in a table the first one here is taken: all
# examinations of a patient belong together.
HEADINGS = {
    "image": ("stem", "file", "image", "picture", "img", "frame", "path", "name", "id"),
    "patient": ("patient", "person", "subject", "case", "examination", "exam", "study", "group"),
    "split": ("split", "subset", "set", "partition"),
}
# Endings of a heading that do not matter, as in `Patient ID`, `image_path` and `exam no.`.
ENDINGS = ("name", "path", "file", "number", "instanceuid", "uid", "id", "no", "nr")
SEPARATORS = ("\t", ";", ",")


def read_table(path: Path, kind: str, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Read what a table says of images.

    Its first line holds headings, see `HEADINGS`; which columns are taken is printed. Without
    headings there are two columns, first the image.

    Args:
        path: CSV with commas, semicolons or tabs, UTF-8.
        kind: what the other column holds, a name in `HEADINGS`.
        sources: the images; the table names them as `find_stems` says.

    Returns:
        Stem and value of each line, in order. A name that no image has is kept as it is.

    Raises:
        InputError: unreadable, headings that are not known, a line without image or value, or see
            `find_stems`.
    """
    rows = read_rows(path)
    stems = {source.stem for source in sources}
    image = _find_column(rows[0], "image")
    value = _find_column(rows[0], kind)
    if image is not None and value is not None:
        taken = f"images in {printable(rows[0][image])}, {kind} in {printable(rows[0][value])}"
        rows = rows[1:]
    elif len(rows[0]) == 2 and find_stems(rows[0][:1], sources, path)[0] in stems:
        image = 0
        value = 1
        taken = f"images in the first, {kind} in the second"
    else:
        raise InputError(
            f"{path} begins with {first_five(rows[0])}, expected the heading of a column of images "
            f"({', '.join(HEADINGS['image'])}) and of one that says the {kind} "
            f"({', '.join(HEADINGS[kind])}). Rename the columns."
        )
    print(f"Columns of {printable(path)}: {taken}.")

    found = []
    wrong = []
    for row in rows:
        if len(row) > max(image, value) and row[image] and row[value]:
            found.append((row[image], row[value]))
        else:
            wrong.append(",".join(row))
    if wrong:
        raise InputError(
            f"{path} has {len(wrong)} lines without image or {kind}: {first_five(wrong)}. "
            "Complete or remove them."
        )
    named = find_stems([name for name, _ in found], sources, path)
    return list(zip(named, [text for _, text in found], strict=True))


def find_stems(names: Sequence[str], sources: Sequence[Source], where: Path) -> list[str]:
    """The stems of the images that a user's list names.

    Args:
        names: stems, or names of files with any suffix; folders may come first.
        sources: the images.
        where: the list, for the message.

    Returns:
        A stem for each name; of a name that no image has, the name itself.

    Raises:
        InputError: a name could mean several images.
    """
    stem_of = {source.image_path: source.stem for source in sources}
    stems = set(stem_of.values())
    pictures = PictureNames(stem_of)
    found = []
    unclear = []
    for name in map(normal_stem, names):
        paths = pictures.find(name) or pictures.find(name.rpartition(".")[0])
        if name in stems or not paths:
            found.append(name)
        elif len(paths) == 1:
            found.append(stem_of[paths[0]])
        else:
            unclear.append(name)
    if unclear:
        raise InputError(
            f"{where} has {len(unclear)} names that several images have: {first_five(unclear)}. "
            "Write their folders before them."
        )
    return found


def read_rows(path: Path) -> list[list[str]]:
    """The lines of a table as cells, without empty lines; at least one.

    Raises:
        InputError: it can't be read, or is empty.
    """
    text = read_text(path, MAX_TEXT_BYTES)
    first = text.lstrip().partition("\n")[0]
    separator = next((each for each in SEPARATORS if each in first), ",")
    rows = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=separator):
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
    except csv.Error as error:
        raise InputError(f"{path} is no CSV ({error}). Export it again.") from None
    if not rows:
        raise InputError(f"{path} is empty, expected a line for each image.")
    return rows


def _find_column(headings: Sequence[str], kind: str) -> int | None:
    """The column of a kind, see `HEADINGS`; None where no heading is known."""
    plain = [_plain(heading) for heading in headings]
    for word in HEADINGS[kind]:
        if word in plain:
            return plain.index(word)
    return None


def _plain(heading: str) -> str:
    """A heading as small letters, without endings that do not matter."""
    word = re.sub(r"[\W_]+", "", heading.lower())
    for ending in ENDINGS:
        if word != ending:
            word = word.removesuffix(ending)
    return word
