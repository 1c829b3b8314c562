"""Which images are of one patient or examination, where the dataset or its user says so."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.core.text import printable
from ovseg.data.prepare.duplicates import NearDuplicate
from ovseg.data.prepare.folders import CLASS_FOLDERS, folder_role
from ovseg.data.prepare.sources import SPLIT_NAMES, Source, path_in
from ovseg.data.prepare.splits import check_listed
from ovseg.data.prepare.tables import read_table

SAME_PATIENT = 1.0  # similarity of two images that are said to be of one patient


def read_groups(path: Path, sources: Sequence[Source]) -> list[Source]:
    """Read the patient or examination of each image.

    Args:
        path: a table of images and patients, see `ovseg.data.prepare.tables.read_table`.
        sources: the images.

    Returns:
        The images with their `patient`.

    Raises:
        InputError: see `read_table`; an image has no row, or several.
    """
    stems = [source.stem for source in sources]
    present = set(stems)
    rows = read_table(path, "patient", sources)
    # A table of a whole clinic, or of images that were left out, names more than there are.
    others = [stem for stem, _ in rows if stem not in present]
    if others:
        names = first_five(others)
        print(
            f"Rows of {printable(path)} without an image here, not used: {len(others)} ({names})."
        )
    rows = [row for row in rows if row[0] in present]
    remedy = "with a row for each image, or leave out --groups"
    check_listed([stem for stem, _ in rows], stems, str(path), remedy)
    patient_of = dict(rows)
    return [replace(source, patient=patient_of[source.stem]) for source in sources]


def group_by_folders(root: Path, sources: Sequence[Source]) -> list[Source]:
    """The images, each with its folder as its patient; how many there are is printed.

    Folders of splits and of all images (`train`, `images`) are no patients.

    Raises:
        InputError: an image lies in no folder of its own, all lie in one, or folders are classes.
    """
    grouped = []
    without = []
    for source in sources:
        path = source.image_path
        folders = path.relative_to(root).parent.parts if path.is_relative_to(root) else ()
        own = [name for name in folders if not _holds_all(name)]
        grouped.append(replace(source, patient="/".join(own)))
        if not own:
            without.append(path_in(root, path))
    remedy = (
        "Name the patients in a table of two columns, image and patient: --groups patients.csv."
    )
    if without:
        raise InputError(
            "--groups folders needs a folder of each patient, but "
            f"{len(without)} of {len(sources)} images lie in none: {first_five(without)}. {remedy}"
        )
    patients = sorted({source.patient for source in grouped})
    classes = [name for name in patients if name.lower().split("/")[-1] in CLASS_FOLDERS]
    if classes:
        raise InputError(
            f"--groups folders takes each folder as one patient, but {first_five(classes)} in "
            f"{root} are classes of images. {remedy}"
        )
    if len(patients) < 2:
        raise InputError(
            "--groups folders needs a folder of each patient, but all images of "
            f"{root} lie in one. {remedy}"
        )
    print(f"{len(patients)} folders are taken as patients: {first_five(patients)}")
    return grouped


def _holds_all(name: str) -> bool:
    """Whether a folder is named after a split, or after what images of any patient are."""
    return name.lower() in SPLIT_NAMES or folder_role(name)[1] == "images"


def pair_patients(patients: Sequence[str]) -> list[NearDuplicate]:
    """Pairs of images that connect those of each patient, as near-duplicates are given.

    Args:
        patients: of each image; empty where it is not known.

    Returns:
        (i, j, 1.0): each image and the one before it of the same patient.
    """
    pairs = []
    latest: dict[str, int] = {}
    for index, patient in enumerate(patients):
        if patient and patient in latest:
            pairs.append((latest[patient], index, SAME_PATIENT))
        if patient:
            latest[patient] = index
    return pairs
