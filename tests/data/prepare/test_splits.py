import json
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.cli.main import COMMANDS
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.duplicates import find_tree_leakage
from ovseg.data.prepare.otu2d import prepare_dataset
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.data.prepare.splits import (
    FRACTIONS,
    deal_groups,
    read_official,
    read_split_file,
    stratify,
)

STEMS = [f"case {n}" for n in range(40)]  # 3k, 3k + 1 and 3k + 2 show one phantom


def near_duplicate(image: np.ndarray, kind: int) -> np.ndarray:
    """The image, a brighter one, or one with yellow calipers."""
    if kind == 1:
        return cv2.convertScaleAbs(image, alpha=1.3, beta=0)
    return (
        cv2.drawMarker(image.copy(), (50, 50), (255, 255, 0), cv2.MARKER_CROSS, 6)
        if kind == 2
        else image
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pairs of 14 phantoms, in the layout of the download: each phantom, a brighter one, one with calipers."""
    folder = tmp_path_factory.mktemp("download")
    for kind in ("images", "annotations"):
        (folder / kind).mkdir()
    for number, stem in enumerate(STEMS):
        image, mask = make_phantom(number // 3, 96)
        colour = [(64, 0, 0), (0, 64, 0)][number // 3 % 2]
        Image.fromarray(near_duplicate(image, number % 3)).save(
            folder / "images" / f"{stem}.JPG", quality=95
        )
        Image.fromarray(mask[..., None] * np.uint8(colour)).save(
            folder / "annotations" / f"{stem}.PNG"
        )
    return folder


@pytest.fixture
def prepare(source, tmp_path):
    def run(**options):
        return prepare_dataset(
            source, tmp_path / "out", **{"size": 32, "overwrite": True, **options}
        )

    return run


def column(manifest, name):
    return {item["stem"]: item[name] for item in manifest["items"]}


def by_group(torn: dict | None = None) -> dict[str, str]:
    """A split that respects the phantoms, but for what `torn` says."""
    names = ["train"] * 10 + ["valid"] * 2 + ["test"] * 2
    return {stem: names[number // 3] for number, stem in enumerate(STEMS)} | (torn or {})


def test_copies_of_a_phantom_are_one_group_in_one_split(prepare):
    manifest = prepare()
    groups, splits = column(manifest, "group"), column(manifest, "split")
    assert len(set(groups.values())) == 14 and set(splits.values()) == set(FRACTIONS)
    for first in range(0, 39, 3):
        trio = STEMS[first : first + 3]
        assert len({groups[stem] for stem in trio}) == len({splits[stem] for stem in trio}) == 1
    assert (
        manifest["split"] == "groups"
        and manifest["leakage"] is False
        and manifest["leaking_pairs"] == []
    )


def test_split_and_folds_are_the_same_every_time(prepare):
    first = prepare(folds=3)
    assert prepare(folds=3)["items"] == first["items"]
    assert column(prepare(folds=3, seed=1), "split") != column(first, "split")


def test_folds_partition_train_and_valid_by_groups(prepare):
    manifest = prepare(folds=3)
    folds, splits, groups = (column(manifest, name) for name in ("fold", "split", "group"))
    assert {folds[stem] for stem in STEMS if splits[stem] == "test"} == {None}
    assert {folds[stem] for stem in STEMS if splits[stem] != "test"} == {0, 1, 2}
    assert len({(groups[stem], folds[stem]) for stem in STEMS}) == 14
    assert set(column(prepare(), "fold").values()) == {None}


def test_folds_that_can_not_be_filled_are_an_error(prepare):
    with pytest.raises(InputError, match="--folds is 1, expected 2..20"):
        prepare(folds=1)
    with pytest.raises(
        InputError, match="in 1. groups of near-duplicates leave split or fold .* empty"
    ):
        prepare(folds=20)


def test_dealing_is_stratified_and_keeps_the_shares():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(700), rng.integers(1, 4, 700))
    strata = stratify(rng.integers(0, 4, len(groups)), rng.uniform(0, 0.6, len(groups)))
    splits = deal_groups(groups, strata, FRACTIONS, 5)
    assert len({(group, split) for group, split in zip(groups, splits, strict=True)}) == 700
    whole, test = (
        Counter(strata),
        Counter(s for s, split in zip(strata, splits, strict=True) if split == "test"),
    )
    assert all(abs(test[stratum] - whole[stratum] / 10) <= 2 for stratum in whole)
    assert abs(splits.count("train") - 0.8 * len(groups)) <= 10


def test_strata_are_category_and_tercile():
    assert stratify([1, 2, 2], [0.1, 0.5, 0.3]) == [(1, 0), (2, 2), (2, 1)]


@pytest.mark.parametrize("name", ["split.json", "split.csv"])
def test_a_split_file_is_followed(prepare, tmp_path, name):
    split = by_group()
    lines = "stem,split\n" + "\n".join(f"{stem}, {split}" for stem, split in split.items())
    (tmp_path / name).write_text(json.dumps(split) if name.endswith("json") else lines)
    manifest = prepare(split_file=tmp_path / name)
    assert (
        manifest["split"] == "file"
        and column(manifest, "split") == split
        and not manifest["leakage"]
    )


def test_running_again_with_an_edited_split_file_is_another_dataset(prepare, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(by_group()))
    first = prepare(split_file=path)
    assert prepare(split_file=path, overwrite=False) == first
    path.write_text(json.dumps(by_group(dict.fromkeys(STEMS[:3], "test"))))
    with pytest.raises(InputError, match="add --overwrite"):
        prepare(split_file=path, overwrite=False)


def test_a_split_file_that_tears_a_group_needs_allow_leakage(prepare, tmp_path, capsys, source):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(by_group({STEMS[0]: "test"})))
    with pytest.raises(
        InputError, match="2 pairs of near-duplicates are in two splits: test/case 0 and train/case"
    ):
        prepare(split_file=path)
    assert not (tmp_path / "out").exists()
    manifest = prepare(split_file=path, allow_leakage=True)
    assert manifest["leakage"] is True and {
        frozenset(pair[:2]) for pair in manifest["leaking_pairs"]
    } == {
        frozenset((STEMS[0], STEMS[1])),
        frozenset((STEMS[0], STEMS[2])),
    }
    assert OvarianTumorDataModule(str(tmp_path / "out"), image_size=32).leakage
    arguments = [
        "--source",
        source,
        "--output",
        tmp_path / "told",
        "--size",
        32,
        "--split-file",
        path,
    ]
    assert COMMANDS["prepare_data"]([*map(str, arguments), "--allow-leakage"]) == 0
    assert (
        "14 groups of near-duplicates with leakage: 2 pairs are in two splits"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a": "train", "a": "test", "b": "test"}', "name stems twice .1: a"),
        ("a.csv", "a,train\nb,test\nb,test", "name stems twice .1: b"),
        ("a.csv", "a,train\nb,test\nc,test", "name stems that have no image .1: c"),
        ("a.csv", "a,train", "miss images .1: b"),
        ("a.csv", "a,train\nb,training", "1 unknown splits: b: training"),
        ("a.csv", "a\nb", "cannot be read"),
        ("a.json", "7", "cannot be read"),
    ],
)
def test_a_bad_split_file_is_one_clear_error(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_split_file(tmp_path / name, ["a", "b"])


def test_official_lists_may_name_images_that_cannot_be_used(tmp_path):
    (tmp_path / "train.txt").write_text("1\n2\n9\n")
    (tmp_path / "val.txt").write_text("3.JPG\n")
    assert read_official(tmp_path, ["1", "2", "3"]) == {"1": "train", "2": "train", "3": "test"}
    with pytest.raises(InputError, match="miss images .1: 4"):
        read_official(tmp_path, ["1", "2", "3", "4"])


def test_two_splits_at_once_are_an_error(prepare, tmp_path):
    with pytest.raises(InputError, match="are two splits"):
        prepare(split="official", split_file=tmp_path / "a.csv")


@pytest.fixture
def numbered(source, tmp_path):
    """The same pairs with stems that a list can hold."""
    for kind, suffix in (("images", "JPG"), ("annotations", "PNG")):
        (tmp_path / "numbered" / kind).mkdir(parents=True)
        for number, stem in enumerate(STEMS):
            target = tmp_path / "numbered" / kind / f"{1000 * (number // 3) + number}.{suffix}"
            target.write_bytes((source / kind / f"{stem}.{suffix}").read_bytes())
    numbers = [1000 * (number // 3) + number for number in range(40)]

    def run(first_test: int, **options):
        (tmp_path / "numbered" / "train.txt").write_text(
            "\n".join(f"{n}.JPG" for n in numbers[:first_test])
        )
        (tmp_path / "numbered" / "val.txt").write_text("\n".join(map(str, numbers[first_test:])))
        return prepare_dataset(
            tmp_path / "numbered", tmp_path / "out", size=32, split="official", **options
        )

    return run


def test_official_lists_make_the_test_split_and_groups_carve_valid(numbered):
    manifest = numbered(30)
    groups, splits = column(manifest, "group"), column(manifest, "split")
    assert sum(split == "test" for split in splits.values()) == 10 and set(splits.values()) == set(
        FRACTIONS
    )
    assert len({(groups[stem], splits[stem]) for stem in groups}) == 14


def test_official_lists_that_tear_a_group_are_leakage(numbered):
    with pytest.raises(
        InputError, match="pairs of near-duplicates are in two splits.*--allow_leakage"
    ):
        numbered(31)
    assert numbered(31, allow_leakage=True)["leakage"] is True


def test_official_without_both_lists_is_an_error(prepare):
    with pytest.raises(InputError, match="needs train.txt and val.txt"):
        prepare(split="official")


@pytest.mark.slow
def test_an_independent_detector_finds_no_leak_in_the_real_split(shared_file, tmp_path):
    """Plain correlation of 32 x 32 thumbnails of the whole source images, which the grouping does not use."""
    source = shared_file("data/OTU_2d")
    items = prepare_dataset(source, tmp_path / "out", size=32)["items"]
    grey = [np.array(Image.open(source / item["source"]).convert("L")) for item in items]
    thumbnails = [
        cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).ravel() for image in grey
    ]
    splits = np.array([item["split"] for item in items])
    similar = np.corrcoef(np.float32(thumbnails)) > 0.9
    assert similar.sum() > len(items) + 200 and not (similar & (splits[:, None] != splits)).any()


def test_no_near_duplicates_cross_the_prepared_splits(prepare, tmp_path):
    prepare(size=96)
    assert find_tree_leakage(tmp_path / "out") == []
