"""Which images are of one patient or examination, where the dataset or its user says so."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.data.prepare.duplicates import NearDuplicate
from ovseg.data.prepare.sources import Source
from ovseg.data.prepare.splits import check_listed, read_csv

SAME_PATIENT = 1.0  # similarity of two images that are said to be of one patient


def read_groups(path: Path, sources: Sequence[Source]) -> list[Source]:
    """Read the patient or examination of each image.

    Args:
        path: CSV lines `stem,group` (a heading may come first). In place of the stem the name of
            the image's file does, where no other image has it.
        sources: the images.

    Returns:
        The images with their `patient`.

    Raises:
        InputError: unreadable, a line of other than two cells, or not exactly the images.
    """
    try:
        rows = read_csv(path.read_text(encoding="utf-8-sig"), ["stem", "group"])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Expected CSV stem,group, or --groups folders."
        ) from None
    wrong = [",".join(row) for row in rows if len(row) != 2 or not all(row)]
    if wrong:
        raise InputError(f"{path} has lines that are no stem,group: {first_five(wrong)}.")

    stem_of: dict[str, str] = {}
    names = [source.image_path.name for source in sources]
    for source in sources:
        if names.count(source.image_path.name) == 1:
            stem_of[source.image_path.name] = source.stem
    patient_of = {}
    listed = []
    for name, patient in rows:
        stem = stem_of.get(name, name)
        listed.append(stem)
        patient_of[stem] = patient
    stems = [source.stem for source in sources]
    check_listed(listed, stems, str(path), remedy="leave out --groups")
    return [replace(source, patient=patient_of[source.stem]) for source in sources]


def group_by_folders(root: Path, sources: Sequence[Source]) -> list[Source]:
    """The images, each with its folder as its patient.

    Raises:
        InputError: all of them lie in one folder.
    """
    grouped = []
    for source in sources:
        folder = source.image_path.parent
        patient = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else ""
        grouped.append(replace(source, patient=patient or folder.name))
    if len({source.patient for source in grouped}) < 2:
        raise InputError(
            "--groups folders needs a folder of each patient, but all images of "
            f"{root} lie in one. Name the patients in a CSV stem,group."
        )
    return grouped


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
