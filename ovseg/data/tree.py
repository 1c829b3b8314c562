"""The pairs of a dataset tree `root/{train,valid,test}/{images,masks}`, by split or by fold."""

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose
from ovseg.data.manifest import cut_borders, labels_dir, read_folds
from ovseg.data.pairs import Pair, find_pairs, list_images, natural_key, normal_stem
from ovseg.data.pictures import describe_left_out, list_pictures, list_visible

SPLITS = ("train", "valid", "test")
# What others call the folders of a dataset.
OTHER_NAMES = {
    "train": ("training", "trainval"),
    "valid": ("val", "validation", "dev"),
    "test": ("testing",),
    "images": ("image", "imgs", "img"),
    "masks": ("mask", "labels", "label", "annotations", "annotation", "segmentations", "gt"),
}
FOLD_SPLITS = ("train", "valid")  # whose images a fold divides anew


def has_images(root: str | Path, split: str) -> bool:
    """Whether a dataset's folder of a split holds any picture."""
    folder = Path(root) / split / "images"
    return folder.is_dir() and bool(list_pictures(folder))


class DatasetTree:
    """Which pairs are trained on, validated with and tested on.

    Args:
        root: the dataset's folder.
        exclude: stems to leave out of every split.
        classes: 1 for masks; more for category maps.
        fold: the fold of the manifest that is `valid`; `train` are the other images of the folders
            train and valid. None takes the folders as they are, as `test` always is.
        fit: how pictures fill the network's square, see `ovseg.data.manifest.cut_borders`.
        valid_share: share of the folder train that is `valid`, the last of its images in
            alphabetical order of the files, as the TensorFlow baseline takes them; 0 takes the
            folders as they are.
        train_on_valid: whether `train` are the images of both folders, train and valid; `valid`
            are those of its folder all the same.
    """

    def __init__(
        self,
        root: Path,
        exclude: Iterable[str | int] | None,
        classes: int,
        fold: int | None,
        fit: str,
        valid_share: float = 0.0,
        train_on_valid: bool = False,
    ):
        self.root = Path(root)
        self.exclude = [normal_stem(str(stem)) for stem in exclude or ()]
        self.classes = classes
        self.fold = fold
        self.fit = fit
        self.valid_share = valid_share
        self.train_on_valid = train_on_valid

        self._folders: dict[str, list[Pair]] = {}
        self._pairs: dict[str, list[Pair]] = {}

    def folders(self, split: str) -> dict[str, list[Pair]]:
        """All pairs of each folder that holds pairs of a split.

        That is the split's own folder, or both `train` and `valid` where a fold divides them or
        both are trained on, or `train` alone where `valid` is a share of it.

        Raises:
            InputError: no such split, a folder is missing, or pairs are incomplete.
        """
        choose("split", split, dict.fromkeys(SPLITS))
        if self.valid_share and split in FOLD_SPLITS:
            return {"train": self._folder("train")}
        divided = self.fold is not None and split in FOLD_SPLITS
        if divided or (self.train_on_valid and split == "train"):
            return {name: self._folder(name) for name in FOLD_SPLITS}
        return {split: self._folder(split)}

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split, in natural order of their stems.

        Raises:
            InputError: see `folders`, `fold_pairs` and `share_pairs`.
        """
        if split not in self._pairs:
            folders = self.folders(split)
            if self.valid_share and split in FOLD_SPLITS:
                self._pairs |= share_pairs(self.root, folders["train"], self.valid_share)
            elif self.fold is not None and split in FOLD_SPLITS:
                self._pairs |= fold_pairs(self.root, folders, self.fold)
            else:
                pairs = [pair for folder in folders.values() for pair in folder]
                self._pairs[split] = sorted(pairs, key=lambda pair: natural_key(pair.stem))
        return self._pairs[split]

    def describe_left_out(self, split: str) -> list[str]:
        """Lines on files of a split's folders that are not read."""
        images = self.root / split / "images"
        masks = labels_dir(self.root, split, self.classes)
        lines = [describe_left_out(images), describe_left_out(masks)]
        return [line for line in lines if line]

    def check_exclude(self, splits: Iterable[str]) -> None:
        """Refuse to exclude stems that no split has: a misspelt stem would still be used.

        Args:
            splits: those that are there.

        Raises:
            InputError: there are such stems.
        """
        present: set[str] = set()
        for split in splits:
            for name in self.folders(split):
                present.update(list_images(self.root / name / "images"))

        unknown = sorted(set(self.exclude) - present, key=natural_key)
        if unknown:
            raise InputError(
                f"data.exclude names {len(unknown)} stems that no split of {self.root} has: "
                f"{first_five(unknown)}."
            )

    def held_out(self) -> str | None:
        """SHA-256 of the names of the images that the fold holds out, excluded ones too.

        Returns:
            64 hexadecimal digits; None where there is no fold.
        """
        if self.fold is None:
            return None

        names = []
        for (split, stem), fold in read_folds(self.root).items():
            if fold == self.fold:
                names.append(f"{split}/{stem}")
        # A name that is not UTF-8 has surrogates.
        listed = "\n".join(sorted(names)).encode(errors="surrogatepass")
        return hashlib.sha256(listed).hexdigest()

    def _folder(self, split: str) -> list[Pair]:
        """All pairs in the folder of a split; the files are listed once only."""
        if split not in self._folders:
            if not self.root.is_dir():
                raise InputError(
                    f"There is no dataset folder {self.root}. Name it (data.root in train, --data "
                    "in other commands; a relative path starts at the current folder), or make it: "
                    "ovseg prepare_data --source OTU_2d --output FOLDER."
                )
            if not any((self.root / name).is_dir() for name in SPLITS):
                refuse_layout(self.root)
                raise InputError(
                    f"{self.root} is no dataset: it has none of the folders {', '.join(SPLITS)}. "
                    "Make one of images and their masks or annotations: ovseg prepare_data "
                    "--source FOLDER --output FOLDER."
                )
            if not (self.root / split / "masks").is_dir():
                refuse_layout(self.root, but=("folders",))
            images = self.root / split / "images"
            check_folder(self.root / split)
            check_folder(images)
            masks = labels_dir(self.root, split, self.classes)
            check_folder(masks)
            refuse_mask_names(self.root, images, masks)
            pairs = find_pairs(images, masks, self.exclude)
            self._folders[split] = cut_borders(pairs, self.root, self.fit)
        return self._folders[split]


def check_folder(folder: Path) -> None:
    """Refuse a missing folder of a dataset, with the folder that may be meant.

    Raises:
        InputError: it is not there.
    """
    if folder.is_dir():
        return
    message = f"There is no folder {folder}."
    other = find_other_name(folder)
    if other is not None:
        message += f" Found {other.name}: rename it to {folder.name}."
    elif folder.name == "test":
        message += (
            " Add it; without test images train with evaluate_test: false, or score another split "
            "with --split."
        )
    else:
        message += f" A dataset has {', '.join(SPLITS)} with images and masks in each."
    raise InputError(message)


def find_other_name(folder: Path) -> Path | None:
    """The folder that stands in the place of a missing one under another usual name."""
    if not folder.parent.is_dir():
        return None
    names = (folder.name, *OTHER_NAMES.get(folder.name, ()))
    for path in sorted(folder.parent.iterdir()):
        if path.name.lower() in names and path.is_dir():
            return path
    return None


def refuse_layout(root: Path, but: Iterable[str] = ()) -> None:
    """Refuse a folder of a layout that `prepare_data` reads, and say how to prepare it.

    Args:
        root: the folder.
        but: layouts to pass over.

    Raises:
        InputError: it is of such a layout.
    """
    from ovseg.data.prepare.files import SourceFiles
    from ovseg.data.prepare.layouts import LAYOUTS, recognise, unwrap

    layout = recognise(SourceFiles(unwrap(root)))
    if layout and layout not in but:
        raise InputError(
            f"{root} is a dataset of another layout ({LAYOUTS[layout].description}), expected "
            f"{', '.join(SPLITS)} with images and masks in each. Prepare it: "
            f"{preparing_command(root)}."
        )


def refuse_mask_names(root: Path, images: Path, masks: Path) -> None:
    """Refuse folders in which no mask has the stem of an image.

    Raises:
        InputError: they are so, and the names show which images the masks belong to.
    """
    image_stems = _shown_stems(images)
    mask_stems = _shown_stems(masks)
    if image_stems & mask_stems or not image_stems or not mask_stems:
        return
    raise InputError(
        f"No mask in {masks} has the stem of an image in {images}: images such as "
        f"{min(image_stems, key=natural_key)}, masks such as {min(mask_stems, key=natural_key)}. "
        f"Name them alike, or make a dataset of them: {preparing_command(root)}."
    )


def _shown_stems(folder: Path) -> set[str]:
    """The stems of what a folder holds, see `normal_stem`, without hidden files."""
    return {normal_stem(path.stem) for path, _ in list_visible(folder)}


def preparing_command(root: Path) -> str:
    """The command that prepares a folder of another layout."""
    output = root.resolve()
    prepared = output.with_name(f"{output.name}_prepared")
    if not root.is_absolute() and root.name:
        prepared = root.with_name(f"{root.name}_prepared")
    return f"ovseg prepare_data --source {shlex.quote(str(root))} --output " + shlex.quote(
        str(prepared)
    )


def share_pairs(root: Path, pairs: list[Pair], share: float) -> dict[str, list[Pair]]:
    """What is trained on (`train`) and the share that validates (`valid`), see `DatasetTree`.

    Args:
        root: of the dataset, for the message.
        pairs: of the folder train, in natural order of stems, which both parts keep.
        share: above 0 and below 1.

    Raises:
        InputError: no pair is left for one of the two.
    """
    alphabetical = sorted(pairs, key=lambda pair: pair.image_path.name)
    trained = set(alphabetical[: int((1 - share) * len(pairs))])
    divided: dict[str, list[Pair]] = {"train": [], "valid": []}
    for pair in pairs:
        divided["train" if pair in trained else "valid"].append(pair)
    if not all(divided.values()):
        raise InputError(
            f"data.valid_share {share} of the {len(pairs)} images of train in {root} leaves none "
            "to train on or none to validate with. Add images, or change the share."
        )
    return divided


def fold_pairs(root: Path, folders: dict[str, list[Pair]], fold: int) -> dict[str, list[Pair]]:
    """What a fold trains on (`train`) and what it holds out (`valid`), in natural order of stems.

    Args:
        root: a dataset prepared with folds.
        folders: the pairs in its folders `train` and `valid`.
        fold: the one held out.

    Raises:
        InputError: see `read_folds`; no such fold, a pair without a fold in the manifest, or no
            pair is left to train on or to hold out.
    """
    folds = read_folds(root)
    if fold not in folds.values():
        raise InputError(
            f"data.fold is {fold}, but {root} has the folds 0..{max(folds.values())}. "
            "Set one of them."
        )

    train = []
    valid = []
    without_fold = []
    for split, pairs in folders.items():
        for pair in pairs:
            pair_fold = folds.get((split, pair.stem))
            if pair_fold is None:
                without_fold.append(f"{split}/{pair.stem}")
            elif pair_fold == fold:
                valid.append(pair)
            else:
                train.append(pair)

    if without_fold:
        raise InputError(
            f"{len(without_fold)} images of {root} have no fold in its manifest.json: "
            f"{first_five(without_fold)}. Prepare the dataset again, or list the stems under "
            "data.exclude."
        )

    divided = {"train": train, "valid": valid}
    for split, pairs in divided.items():
        if not pairs:
            raise InputError(
                f"data.exclude leaves fold {fold} of {root} no image for {split}. Exclude fewer."
            )
        pairs.sort(key=lambda pair: natural_key(pair.stem))
    return divided
