"""Which pictures `infer` predicts, and the names of their masks."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import fit_file_name
from ovseg.data.pairs import list_images, natural_key
from ovseg.data.pictures import (
    describe_left_out,
    import_dicom,
    is_dicom,
    list_pictures,
    list_visible,
    read_image,
    stem_of,
)

OVERLAYS = "overlays"  # the folders in the output, of the same structure as the masks
PROBABILITIES = "probabilities"
SEGS = "dicomseg"

# Why a picture gets no mask: the mask that it should have, and a message.
Problem = tuple[Path, str]


@dataclass(frozen=True)
class InferPicture:
    """A picture, and the files that are made of it, relative to the output folder.

    Attributes:
        path: of the picture.
        mask: `<stem>.png`, in the picture's folder where folders keep their structure.
        overlay: the overlay; None for none.
        probabilities: the map of probabilities; None for none.
        uncertainty: the map of uncertainty, `<stem>_uncertainty.png` beside the overlay; None for
            none.
        frame: of a DICOM file, from 0; None for other pictures.
        seg: the DICOM-SEG; None for none.
        problem: why the file can't be read, where that is known already; else empty.
    """

    path: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None
    uncertainty: Path | None
    frame: int | None = None
    seg: Path | None = None
    problem: str = ""

    @property
    def files(self) -> list[Path]:
        """What is written, the mask last: where it is there, the others are."""
        paths = (self.overlay, self.uncertainty, self.probabilities, self.seg, self.mask)
        return [path for path in paths if path is not None]


def find_pictures(
    sources: Sequence[Path],
    recursive: bool,
    overlays: bool,
    probabilities: bool,
    uncertainty: bool,
    frame_step: int = 1,
    segs: bool = False,
) -> list[InferPicture]:
    """The pictures of files and folders, in natural order within each.

    Of a DICOM file with several frames each frame is one; its mask is `<stem>_0001.png` and so on.

    Args:
        sources: pictures, and folders of pictures.
        recursive: also take the folders in folders; masks keep their structure. A folder without
            pictures of its own is taken so in any case. Hidden folders and
            links to folders are left out.
        overlays: whether there are overlays.
        probabilities: whether there are maps of probabilities.
        uncertainty: whether there are maps of uncertainty.
        frame_step: take every n-th frame of a DICOM file, from the first on.
        segs: whether there is a DICOM-SEG of each DICOM picture.

    Raises:
        InputError: a source is missing or has no picture, two pictures would get one mask, or a
            DICOM-SEG is asked for where there is no DICOM.
    """
    pictures = []
    seen: set[Path] = set()
    for source in sources:
        for path, folder in _list_source(Path(source), recursive):
            # A link is a picture of its own name, and may lead nowhere.
            place = path.parent.resolve() / path.name
            if place in seen:  # named twice
                continue
            seen.add(place)
            for stem, frame, problem in _list_frames(path, frame_step):
                mask = folder / f"{stem}.png"
                beside = OVERLAYS / folder / fit_file_name(f"{stem}_uncertainty", ".png")
                seg = folder / f"{stem}.dcm"
                picture = InferPicture(
                    path=path,
                    mask=mask,
                    overlay=OVERLAYS / mask if overlays else None,
                    probabilities=PROBABILITIES / mask if probabilities else None,
                    uncertainty=beside if uncertainty else None,
                    frame=frame,
                    seg=SEGS / seg if segs and frame is not None else None,
                    problem=problem,
                )
                pictures.append(picture)
    _check_names(pictures)
    if segs and not any(picture.seg for picture in pictures):
        raise InputError(
            f"--format dicomseg needs DICOM files, but none of the {len(pictures)} pictures is one."
        )
    _warn_of_names(pictures)
    return pictures


def list_folder(folder: Path) -> list[tuple[Path, int | None, str]]:
    """Each picture of a folder, in natural order, and each frame of a DICOM file.

    Returns:
        The path, the frame of DICOM from 0, and why the file can't be read, where that is known.

    Raises:
        InputError: there is none.
    """
    found = []
    for path in sorted(list_pictures(folder, dicom=True), key=lambda path: natural_key(path.name)):
        found += [(path, frame, problem) for _, frame, problem in _list_frames(path, 1)]
    if not found:
        raise InputError(f"There is no picture in {folder}. Name a folder of pictures.")
    return found


def _list_frames(path: Path, frame_step: int) -> Iterator[tuple[str, int | None, str]]:
    """The stem of each mask of a file, the frame in DICOM, and why the file can't be read."""
    stem = stem_of(path)
    if not is_dicom(path):
        yield stem, None, ""
        return
    try:
        frames = import_dicom(path).count_frames(path)
    except InputError as error:
        yield stem, 0, str(error)
        return
    if frames == 1:
        yield stem, 0, ""
        return
    for frame in range(0, frames, frame_step):
        yield f"{stem}_{frame + 1:04d}", frame, ""


def _warn_of_names(pictures: Sequence[InferPicture]) -> None:
    """Say once that DICOM pictures may show who they are of."""
    count = len({picture.path for picture in pictures if picture.frame is not None})
    if count:
        files = "1 file is" if count == 1 else f"{count} files are"
        print(
            f"{files} DICOM. Names and dates may be burned into the pictures, and no tag "
            "proves that they are not: look at the overlays before you pass them on.",
            file=sys.stderr,
        )


def _list_source(source: Path, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """The pictures of one source, each with its folder relative to the source."""
    if source.is_file():
        yield source, Path()
        return
    if not source.exists():
        raise InputError(f"There is no file or folder {source}. Check the path.")
    if not source.is_dir():
        raise InputError(f"{source} is neither a file nor a folder. Name pictures or a folder.")

    inner = _folders_in(source)
    if inner and not recursive:
        names = first_five(folder.name for folder in inner)
        if list_pictures(source, dicom=True):
            message = f"whose pictures are not looked for ({names}): add --recursive."
        else:
            message = f"whose pictures are taken ({names}), because it has none itself."
            recursive = True
        print(f"{source} holds {len(inner)} folders, {message}", file=sys.stderr)

    folders = [source]
    if recursive:
        found = [folder for folder in _walk(source) if list_pictures(folder, dicom=True)]
        folders = found or [source]
    for folder in folders:
        left_out = describe_left_out(folder, with_folders=False, dicom=True)
        if left_out:
            print(left_out, file=sys.stderr)
        for path in list_images(folder, dicom=True).values():
            yield path, folder.relative_to(source)


def _walk(folder: Path) -> Iterator[Path]:
    """A folder, and all folders in it."""
    yield folder
    for inner in _folders_in(folder):
        yield from _walk(inner)


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and links."""
    folders = []
    for path, is_folder in list_visible(folder):
        if is_folder and not path.is_symlink():
            folders.append(path)
    return folders


def _check_names(pictures: Sequence[InferPicture]) -> None:
    """Raise InputError where two files would get the same name."""
    owner: dict[Path, Path] = {}
    clashes = []
    for picture in pictures:
        for file in picture.files:
            if file in owner:
                clashes.append(f"{file} ({owner[file]} and {picture.path})")
            owner[file] = picture.path
    if clashes:
        raise InputError(
            f"{len(clashes)} files would be made of two pictures each: {first_five(clashes)}. "
            "Rename one of each, call infer for one folder at a time, or give the folder above "
            "them with --recursive."
        )


def read_pictures(
    pictures: Sequence[InferPicture],
) -> tuple[list[tuple[InferPicture, np.ndarray]], list[Problem]]:
    """The pictures that can be read, and what is wrong with the others."""
    images = []
    problems = []
    for picture in pictures:
        if picture.problem:
            problems.append((picture.mask, picture.problem))
            continue
        try:
            images.append((picture, read_image(picture.path, picture.frame)))
        except InputError as error:
            problems.append((picture.mask, str(error)))
    return images, problems
