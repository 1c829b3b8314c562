"""The pairs of a dataset tree `root/{train,valid,test}/{images,masks}`, by split or by fold."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose
from ovseg.data.manifest import cut_borders, labels_dir, read_folds
from ovseg.data.pairs import Pair, find_pairs, list_images, natural_key

SPLITS = ("train", "valid", "test")


class DatasetTree:
    """Which pairs are trained on, validated with and tested on.

    Args:
        root: the dataset's folder.
        exclude: stems to leave out of every split.
        classes: 1 for masks; more for category maps.
        fold: the fold of the manifest that is `valid`; `train` are the other images of the folders train and valid.
            None takes the folders as they are, as `test` always is.
        fit: how pictures fill the network's square, see `ovseg.data.manifest.cut_borders`.
    """

    def __init__(
        self,
        root: Path,
        exclude: Iterable[str | int] | None,
        classes: int,
        fold: int | None,
        fit: str,
    ):
        self.root, self.exclude, self.classes, self.fold, self.fit = (
            Path(root),
            exclude or (),
            classes,
            fold,
            fit,
        )
        self._folders: dict[str, list[Pair]] = {}
        self._pairs: dict[str, list[Pair]] = {}

    def folders(self, split: str) -> dict[str, list[Pair]]:
        """The folders that hold a split's pairs, with all pairs in them; two for the sides of a fold.

        Raises:
            InputError: no such split, a folder is missing, or pairs are incomplete.
        """
        choose("split", split, dict.fromkeys(SPLITS))
        names = (split,) if self.fold is None or split == "test" else ("train", "valid")
        return {name: self._folder(name) for name in names}

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split, in natural order of their stems.

        Raises:
            InputError: see `folders` and `fold_pairs`.
        """
        if split not in self._pairs:
            folders = self.folders(split)
            self._pairs |= (
                folders if len(folders) == 1 else fold_pairs(self.root, folders, self.fold)
            )
        return self._pairs[split]

    def check_exclude(self) -> None:
        """A stem that no split has was misspelt: its image would go on being used.

        Raises:
            InputError: there are such stems.
        """
        present = {stem for split in SPLITS for stem in list_images(self.root / split / "images")}
        unknown = sorted(set(map(str, self.exclude)) - present, key=natural_key)
        if unknown:
            raise InputError(
                f"data.exclude names {len(unknown)} stems that no split of {self.root} has: {first_five(unknown)}."
            )

    def held_out(self) -> str | None:
        """Changes with the images that the fold holds out (SHA-256 of names), whatever is excluded; None without."""
        if self.fold is None:
            return None
        names = sorted(
            "/".join(key) for key, fold in read_folds(self.root).items() if fold == self.fold
        )
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def _folder(self, split: str) -> list[Pair]:
        if split not in self._folders:
            if not self.root.is_dir():
                raise InputError(
                    f"There is no dataset folder {self.root}. Set data.root, or make it: "
                    "python scripts/prepare_data.py --source OTU_2d --output FOLDER."
                )
            masks = labels_dir(self.root, split, self.classes)
            pairs = find_pairs(self.root / split / "images", masks, self.exclude)
            self._folders[split] = cut_borders(pairs, self.root, self.fit)
        return self._folders[split]


def fold_pairs(root: Path, folders: dict[str, list[Pair]], fold: int) -> dict[str, list[Pair]]:
    """What a fold trains on (`train`) and what it holds out (`valid`), in natural order of the stems.

    Args:
        root: a dataset prepared with folds.
        folders: the pairs in its folders `train` and `valid`.
        fold: the one held out.

    Raises:
        InputError: see `read_folds`; no such fold, a pair that the manifest gives no fold, or one side has no pair.
    """
    folds = read_folds(root)
    if fold not in folds.values():
        raise InputError(
            f"data.fold is {fold}, but {root} has the folds 0..{max(folds.values())}. Set one of them."
        )
    pairs = [(split, pair) for split, members in folders.items() for pair in members]
    unknown = [f"{split}/{pair.stem}" for split, pair in pairs if (split, pair.stem) not in folds]
    if unknown:
        raise InputError(
            f"{len(unknown)} images of {root} have no fold in its manifest.json: {first_five(unknown)}. Prepare the "
            "dataset again, or list the stems under data.exclude."
        )
    pairs.sort(key=lambda item: natural_key(item[1].stem))
    sides = {
        side: [p for s, p in pairs if (folds[s, p.stem] == fold) == (side == "valid")]
        for side in SPLITS[:2]
    }
    empty = [side for side, members in sides.items() if not members]
    if empty:
        raise InputError(
            f"data.exclude leaves fold {fold} of {root} no image for {empty[0]}. Exclude fewer."
        )
    return sides
