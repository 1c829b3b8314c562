"""Who is in which split: whole groups of near-duplicates, dealt so that each split resembles the whole."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.data.pairs import natural_key
from ovseg.data.prepare.duplicates import NearDuplicate, find_leakage

FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def deal_groups(
    groups: Sequence[int], strata: Sequence[object], fractions: dict, seed: int
) -> list:
    """Deal whole groups to splits, largest first: always to the split that lacks most of what the group holds.

    What a split lacks is counted relative to its share, of all images and of each stratum alike.

    Args:
        groups: group id of each image.
        strata: what each image is stratified by.
        fractions: share of each split; they sum to 1.
        seed: shuffles groups of one size.

    Returns:
        The split of each image.
    """
    members: dict[int, list[int]] = {}
    for image, group in enumerate(groups):
        members.setdefault(int(group), []).append(image)
    shuffled = np.random.default_rng(seed).permutation(list(members))
    totals = Counter({"all": len(strata)}) + Counter(strata)
    held = {split: Counter() for split in fractions}
    result = [None] * len(strata)
    for group in sorted(shuffled, key=lambda group: -len(members[group])):
        content = Counter({"all": len(members[group])}) + Counter(
            strata[image] for image in members[group]
        )

        def lack(split: object, content: Counter = content) -> float:
            share = {kind: fractions[split] * totals[kind] for kind in content}
            return sum(
                count * (1 - held[split][kind] / share[kind]) for kind, count in content.items()
            )

        chosen = max(fractions, key=lack)
        held[chosen].update(content)
        for image in members[group]:
            result[image] = chosen
    return result


def stratify(categories: Sequence[int], lesion_fractions: Sequence[float]) -> list[tuple[int, int]]:
    """Category and tercile (0..2) of the lesion's share of the image, of each image."""
    terciles = np.searchsorted(np.quantile(lesion_fractions, [1 / 3, 2 / 3]), lesion_fractions)
    return list(zip(map(int, categories), map(int, terciles), strict=True))


def read_split_file(path: Path, stems: Sequence[str]) -> dict[str, str]:
    """A split that somebody else made: JSON `{stem: split}`, or CSV lines `stem,split` (a heading may come first).

    Raises:
        InputError: unreadable, a stem twice, an unknown split, or not exactly the stems of the images.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text, object_pairs_hook=list)
            if path.suffix.lower() == ".json"
            else _read_csv(text)
        )
        rows = [(str(stem), str(split)) for stem, split in rows]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Expected JSON {{stem: split}} or CSV stem,split."
        ) from None
    wrong = [f"{stem}: {split}" for stem, split in rows if split not in FRACTIONS]
    if wrong:
        raise InputError(
            f"{path} names {len(wrong)} unknown splits: {first_five(wrong)}. Use {', '.join(FRACTIONS)}."
        )
    check_listed([stem for stem, _ in rows], stems, str(path))
    return dict(rows)


def _read_csv(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    return rows[1:] if rows and rows[0] == ["stem", "split"] else rows


def read_official(source: Path, stems: Sequence[str]) -> dict[str, str]:
    """The download's own lists, a stem or a file name a line: `train` for train.txt, `test` for val.txt.

    Raises:
        InputError: a list is missing, or the lists do not name each image once.
    """
    paths = {
        split: Path(source) / name for split, name in (("train", "train.txt"), ("test", "val.txt"))
    }
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise InputError(
            f"--split official needs {' and '.join(missing)} in {source}. Add them or use --split groups."
        )
    lines = {split: path.read_text(encoding="utf-8").split() for split, path in paths.items()}
    rows = [
        (Path(line).stem if "." in line else line, split)
        for split, names in lines.items()
        for line in names
    ]
    rows = [
        row for row in rows if row[0] in set(stems)
    ]  # what is listed but has no usable pair is named as a failure
    check_listed([stem for stem, _ in rows], stems, f"train.txt and val.txt in {source}")
    return dict(rows)


def check_listed(listed: Sequence[str], stems: Sequence[str], where: str) -> None:
    """Raise InputError unless `listed` has each of `stems` once and no other."""
    counts, present = Counter(listed), set(stems)
    problems = {
        "name stems twice": [stem for stem, count in counts.items() if count > 1],
        "name stems that have no image": [stem for stem in counts if stem not in present],
        "miss images": [stem for stem in stems if stem not in counts],
    }
    found = [
        f"{what} ({len(bad)}: {first_five(sorted(bad, key=natural_key))})"
        for what, bad in problems.items()
        if bad
    ]
    if found:
        raise InputError(
            f"{where}: the lists {', '.join(found)}. Name each image once, or use --split groups."
        )


def check_leakage(
    pairs: Sequence[NearDuplicate], splits: Sequence[str], stems: Sequence[str], allow: bool
) -> list:
    """The near-duplicates across splits as [stem, stem, similarity].

    Raises:
        InputError: there are some, and `allow` is not set.
    """
    leaks = [[stems[i], stems[j], similarity] for i, j, similarity in find_leakage(pairs, splits)]
    if leaks and not allow:
        split_of = dict(zip(stems, splits, strict=True))
        named = first_five(
            f"{split_of[a]}/{a} and {split_of[b]}/{b} ({value:.2f})" for a, b, value in leaks
        )
        raise InputError(
            f"{len(leaks)} pairs of near-duplicates are in two splits: {named}. Use --split groups, or add "
            "--allow-leakage: every result will then say leakage."
        )
    return leaks
