"""Which split each image is in, by groups of near-duplicates; each split resembles the whole."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.limits import MAX_TEXT_BYTES
from ovseg.core.schema import parse_json, read_text
from ovseg.data.pairs import natural_key, normal_stem
from ovseg.data.prepare.duplicates import NearDuplicate, find_leakage
from ovseg.data.prepare.sources import Source
from ovseg.data.prepare.tables import find_stems, read_table
from ovseg.data.tree import SPLITS

DEFAULT_FRACTIONS = "0.8,0.1,0.1"
OFFICIAL_LISTS = {"train": "train.txt", "test": "val.txt"}  # split -> file of the download

Name = TypeVar("Name", str, int)  # of a split or a fold


def read_fractions(text: str) -> dict[str, float]:
    """The share of each split, from `train,valid,test` such as `0.8,0.1,0.1`.

    Returns:
        Split -> share, above 0; `test` is left out where its share is 0.

    Raises:
        InputError: not three numbers that sum to 1, or only test may be 0.
    """
    try:
        train, valid, test = [float(number) for number in text.split(",")]
    except ValueError:
        train, valid, test = 0, 0, 0
    if not (train > 0 and valid > 0 and test >= 0 and abs(train + valid + test - 1) < 1e-6):
        raise InputError(
            f"--fractions is {text}, expected the shares of train, valid and test, which sum to 1, "
            f"such as {DEFAULT_FRACTIONS}. Only test may be 0."
        )
    fractions = {"train": train, "valid": valid, "test": test}
    return {split: share for split, share in fractions.items() if share > 0}


def deal_groups(
    groups: Sequence[int], strata: Sequence[Hashable], fractions: Mapping[Name, float], seed: int
) -> list[Name]:
    """Divide images into splits by whole groups, stratified.

    The groups are placed one by one, largest first, each in the split that lacks most of what the
    group holds. What a split lacks is counted relative to its share, of all images and of each
    stratum alike.

    Args:
        groups: group id of each image.
        strata: what each image is stratified by.
        fractions: share of each split; they sum to 1.
        seed: shuffles groups of one size.

    Returns:
        The split of each image.
    """
    images_of: dict[int, list[int]] = {}
    for image, group in enumerate(groups):
        images_of.setdefault(int(group), []).append(image)
    order = np.random.default_rng(seed).permutation(list(images_of)).tolist()
    order.sort(key=lambda group: -len(images_of[group]))

    totals = _count_strata(strata)
    shares: dict[Name, dict[Hashable, float]] = {}
    for split, fraction in fractions.items():
        shares[split] = {stratum: fraction * total for stratum, total in totals.items()}

    split_of: dict[int, Name] = {}
    held: dict[Name, Counter[Hashable]] = {split: Counter() for split in fractions}
    for group in order:
        content = _count_strata([strata[image] for image in images_of[group]])
        lacks = {split: _lack(content, held[split], shares[split]) for split in fractions}
        chosen = max(fractions, key=lambda split: lacks[split])
        held[chosen].update(content)
        split_of.update(dict.fromkeys(images_of[group], chosen))
    return [split_of[image] for image in range(len(strata))]


def _count_strata(strata: Sequence[Hashable]) -> Counter[Hashable]:
    """Number of images in all and of each stratum."""
    counts: Counter[Hashable] = Counter({"all": len(strata)})
    counts.update(strata)
    return counts


def _lack(
    content: Mapping[Hashable, int],
    held: Mapping[Hashable, int],
    share: Mapping[Hashable, float],
) -> float:
    """How much a split lacks of what a group holds, weighted by how much the group holds."""
    return sum(count * (1 - held[stratum] / share[stratum]) for stratum, count in content.items())


def stratify(categories: Sequence[int], lesion_fractions: Sequence[float]) -> list[tuple[int, int]]:
    """Category and tercile (0..2) of the lesion's share of the image, of each image."""
    limits = np.quantile(lesion_fractions, [1 / 3, 2 / 3])
    terciles = np.searchsorted(limits, lesion_fractions).tolist()
    return [
        (int(category), tercile) for category, tercile in zip(categories, terciles, strict=True)
    ]


def read_split_file(path: Path, sources: Sequence[Source]) -> dict[str, str]:
    """Read a split that somebody else made.

    Args:
        path: JSON `{image: split}`, or a table of images and splits, see
            `ovseg.data.prepare.tables.read_table`.
        sources: the images.

    Returns:
        Stem -> split.

    Raises:
        InputError: unreadable, an image twice, an unknown split, or not exactly the images.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        rows = _read_split_json(path, sources)
    else:
        rows = read_table(path, "split", sources)

    wrong = [f"{stem}: {split}" for stem, split in rows if split not in SPLITS]
    if wrong:
        raise InputError(
            f"{path} names {len(wrong)} unknown splits: {first_five(wrong)}. "
            f"Use {', '.join(SPLITS)}."
        )
    stems = [source.stem for source in sources]
    check_listed([stem for stem, _ in rows], stems, str(path))
    return dict(rows)


def _read_split_json(path: Path, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Stem and split of each entry of a JSON; an image that is there twice is so here, too."""
    text = read_text(path, MAX_TEXT_BYTES)
    try:
        # Objects become tuples of pairs, which keep a name that is there twice.
        content = parse_json(text, pairs=tuple)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}). Correct it.") from None
    if not isinstance(content, tuple) or not all(isinstance(each, str) for _, each in content):
        raise InputError(f"{path} holds something else than {{image: split}}. Correct it.")
    stems = find_stems([name for name, _ in content], sources, path)
    return list(zip(stems, [split for _, split in content], strict=True))


def read_official(source: Path, stems: Sequence[str]) -> dict[str, str]:
    """Read the download's own lists, which hold a stem or a file name a line.

    Args:
        source: folder of the download.
        stems: of the usable pairs; other stems in the lists are left out.

    Returns:
        Stem -> split: `train` for train.txt, `test` for val.txt.

    Raises:
        InputError: a list is missing, or the lists do not name each image once.
    """
    source = Path(source)
    missing = [name for name in OFFICIAL_LISTS.values() if not (source / name).is_file()]
    if missing:
        raise InputError(
            f"--split official needs {' and '.join(missing)} in {source}. "
            "Add them or use --split groups."
        )

    usable = set(stems)
    rows = []
    for split, name in OFFICIAL_LISTS.items():
        for line in read_text(source / name, MAX_TEXT_BYTES).split():
            stem = normal_stem(Path(line).stem if "." in line else line)
            if stem in usable:
                rows.append((stem, split))
    check_listed([stem for stem, _ in rows], stems, f"train.txt and val.txt in {source}")
    return dict(rows)


def read_own_split(root: Path, splits: Mapping[str, str]) -> dict[str, str]:
    """The split that a dataset's own folders give.

    Its `trainval` is train where it has no valid of its own. Without test images its valid images
    are the test split.

    Args:
        root: the dataset, for the message.
        splits: stem -> `train`, `trainval`, `valid`, `test` or empty.

    Returns:
        Stem -> split; without `valid` where that is still to be taken out of train.

    Raises:
        InputError: an image is in none of its splits, or there is nothing to train or test on.
    """
    without = [stem for stem, split in splits.items() if not split]
    if without:
        raise InputError(
            f"{len(without)} images in {root} are in none of its splits: {first_five(without)}. "
            "Use --split groups."
        )
    renamed = {"trainval": "train"}
    if "test" not in splits.values():
        renamed["valid"] = "test"
    own = {stem: renamed.get(split, split) for stem, split in splits.items()}
    if not {"train", "test"} <= set(own.values()):
        raise InputError(
            f"{root} has no images to train on, or none to test on, in its own split. "
            "Use --split groups."
        )
    return own


def check_listed(
    listed: Sequence[str], stems: Sequence[str], where: str, remedy: str = "use --split groups"
) -> None:
    """Check that `listed` has each of `stems` once and no other.

    Raises:
        InputError: it has not; `where` is the subject of the message, `remedy` what else to do.
    """
    counts = Counter(listed)
    present = set(stems)
    problems: dict[str, list[str]] = {
        "name stems twice": [stem for stem, count in counts.items() if count > 1],
        "name stems that have no image": [stem for stem in counts if stem not in present],
        "miss images": [stem for stem in stems if stem not in counts],
    }

    found = []
    for problem, offenders in problems.items():
        if offenders:
            in_order = sorted(offenders, key=natural_key)
            found.append(f"{problem} ({len(offenders)}: {first_five(in_order)})")
    if found:
        raise InputError(
            f"{where}: the lists {', '.join(found)}. Name each image once, or {remedy}."
        )


def check_leakage(
    pairs: Sequence[NearDuplicate], splits: Sequence[str], stems: Sequence[str], allow: bool
) -> list[list[str | float]]:
    """The near-duplicates across splits as [stem, stem, similarity], as JSON holds them.

    Raises:
        InputError: there are some, and `allow` is not set.
    """
    leaks = find_leakage(pairs, splits)
    if leaks and not allow:
        named = first_five(
            f"{splits[i]}/{stems[i]} and {splits[j]}/{stems[j]} ({similarity:.2f})"
            for i, j, similarity in leaks
        )
        raise InputError(
            f"{len(leaks)} pairs of near-duplicates are in two splits: {named}. "
            "Use --split groups, or add --allow_leakage: every result will then say leakage."
        )
    return [[stems[i], stems[j], similarity] for i, j, similarity in leaks]
