"""Which pictures `infer` predicts, and the names of their masks."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import fit_file_name
from ovseg.data.pairs import list_images
from ovseg.data.pictures import describe_left_out, list_pictures, list_visible

OVERLAYS = "overlays"  # the folders in the output, of the same structure as the masks
PROBABILITIES = "probabilities"


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
    """

    path: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None
    uncertainty: Path | None

    @property
    def files(self) -> list[Path]:
        """What is written, the mask last: where it is there, the others are."""
        paths = (self.overlay, self.uncertainty, self.probabilities, self.mask)
        return [path for path in paths if path is not None]


def find_pictures(
    sources: Sequence[Path],
    recursive: bool,
    overlays: bool,
    probabilities: bool,
    uncertainty: bool,
) -> list[InferPicture]:
    """The pictures of files and folders, in natural order within each.

    Args:
        sources: pictures, and folders of pictures.
        recursive: also take the folders in folders; masks keep their structure. A folder without
            pictures of its own is taken so in any case. Hidden folders and
            links to folders are left out.
        overlays: whether there are overlays.
        probabilities: whether there are maps of probabilities.
        uncertainty: whether there are maps of uncertainty.

    Raises:
        InputError: a source is missing or has no picture, or two pictures would get one mask.
    """
    pictures = []
    seen: set[Path] = set()
    for source in sources:
        for path, folder in _list_source(Path(source), recursive):
            if path.resolve() in seen:  # named twice
                continue
            seen.add(path.resolve())
            mask = folder / f"{path.stem}.png"
            beside = OVERLAYS / folder / fit_file_name(f"{path.stem}_uncertainty", ".png")
            picture = InferPicture(
                path=path,
                mask=mask,
                overlay=OVERLAYS / mask if overlays else None,
                probabilities=PROBABILITIES / mask if probabilities else None,
                uncertainty=beside if uncertainty else None,
            )
            pictures.append(picture)
    _check_names(pictures)
    return pictures


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
        if list_pictures(source):
            message = f"whose pictures are not looked for ({names}): add --recursive."
        else:
            message = f"whose pictures are taken ({names}), because it has none itself."
            recursive = True
        print(f"{source} holds {len(inner)} folders, {message}", file=sys.stderr)

    folders = [source]
    if recursive:
        folders = [folder for folder in _walk(source) if list_pictures(folder)] or [source]
    for folder in folders:
        left_out = describe_left_out(folder, with_folders=False)
        if left_out:
            print(left_out, file=sys.stderr)
        for path in list_images(folder).values():
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
