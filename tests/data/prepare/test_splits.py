from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.prepare.sources import Source, no_lesion
from ovseg.data.prepare.splits import (
    DEFAULT_FRACTIONS,
    check_leakage,
    check_listed,
    deal_groups,
    read_fractions,
    read_official,
    read_split_file,
    stratify,
)

SOURCES = [Source(stem, Path(f"in/{stem}.png"), (), no_lesion) for stem in ("a", "b")]


def test_split_by_groups_is_stratified_and_keeps_the_shares():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(700), rng.integers(1, 4, 700))
    strata = stratify(rng.integers(0, 4, len(groups)), rng.uniform(0, 0.6, len(groups)))
    splits = deal_groups(groups, strata, read_fractions(DEFAULT_FRACTIONS), 5)

    assert len(set(zip(groups.tolist(), splits, strict=True))) == 700  # no group is divided
    assert abs(splits.count("train") - 0.8 * len(groups)) <= 10
    whole = Counter(strata)
    of_test = Counter()
    for stratum, split in zip(strata, splits, strict=True):
        if split == "test":
            of_test[stratum] += 1
    for stratum, count in whole.items():
        assert abs(of_test[stratum] - count / 10) <= 2


def test_largest_group_is_placed_first_where_most_is_lacking():
    groups = [0, 0, 0, 1, 2, 3]
    splits = deal_groups(groups, ["a"] * 6, {"train": 2 / 3, "test": 1 / 3}, 0)
    assert splits[:3] == ["train"] * 3
    assert sorted(splits[3:]) == ["test", "test", "train"]


def test_strata_are_category_and_tercile():
    assert stratify([1, 2, 2], [0.1, 0.5, 0.3]) == [(1, 0), (2, 2), (2, 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("split.json", '{"a": "train", "b": "test"}'),
        ("split.csv", "stem,split\na, train\n\nb, test\n"),
        ("split.csv", "a,train\nb,test"),
        ("split.csv", "Subset;filename\ntrain;a.png\ntest;in/b.png"),
        ("split.json", '{"a.png": "train", "b.dcm": "test"}'),
    ],
)
def test_split_file_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_split_file(tmp_path / name, SOURCES) == {"a": "train", "b": "test"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a": "train", "a": "test", "b": "test"}', "name stems twice .1: a"),
        ("a.csv", "a,train\nb,test\nb,test", "name stems twice .1: b"),
        ("a.csv", "a,train\nb,test\nc,test", "name stems that have no image .1: c"),
        ("a.csv", "a,train", "miss images .1: b"),
        ("a.csv", "a,train\nb,training", "1 unknown splits: b: training"),
        (
            "a.csv",
            "a\nb",
            r"begins with a, expected the heading of a column of images \(stem, .*split",
        ),
        ("a.csv", "a,train\nb", "1 lines without image or split: b. Complete"),
        ("a.csv", "", "is empty"),
        ("a.csv", 'a,"' + "x" * 200_000, "is no CSV"),
        ("a.json", "7", "holds something else than {image: split}"),
        ("a.json", '{"a": ["train"]}', "holds something else than {image: split}"),
        ("a.json", "[" * 100_000, "is no JSON .it is nested too deeply"),
    ],
)
def test_bad_split_file_is_an_error(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_split_file(tmp_path / name, SOURCES)


def test_offenders_are_listed_in_natural_order():
    with pytest.raises(InputError, match=r"miss images \(3: 2, 9, 10\)"):
        check_listed(["1"], ["10", "9", "2", "1"], "here")


def test_official_lists_may_name_images_that_cannot_be_used(tmp_path):
    (tmp_path / "train.txt").write_text("1\n2\n9\n")
    (tmp_path / "val.txt").write_text("3.JPG\n")
    assert read_official(tmp_path, ["1", "2", "3"]) == {"1": "train", "2": "train", "3": "test"}
    with pytest.raises(InputError, match="miss images .1: 4"):
        read_official(tmp_path, ["1", "2", "3", "4"])


def test_official_split_without_both_lists_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"needs train.txt and val.txt in .*--split groups"):
        read_official(tmp_path, ["1"])


def test_leakage_is_an_error_unless_it_is_allowed():
    pairs = [(0, 1, 0.7), (0, 2, 0.8)]
    splits = ["train", "train", "test"]
    stems = ["a", "b", "c"]
    message = (
        "1 pairs of near-duplicates are in two splits: train/a and test/c .0.80.*--allow_leakage"
    )
    with pytest.raises(InputError, match=message):
        check_leakage(pairs, splits, stems, allow=False)
    assert check_leakage(pairs, splits, stems, allow=True) == [["a", "c", 0.8]]
    assert check_leakage(pairs[:1], splits, stems, allow=False) == []


def test_fractions_name_the_splits_and_leave_out_an_empty_test():
    assert read_fractions("0.7, 0.15, 0.15") == {"train": 0.7, "valid": 0.15, "test": 0.15}
    assert read_fractions("0.8,0.2,0") == {"train": 0.8, "valid": 0.2}


@pytest.mark.parametrize(
    "text", ["", "0.8,0.2", "0.8,a,0.1", "80,10,10", "1,0,0", "1.1,-0.1,0", "0.8,0.2,nan"]
)
def test_other_fractions_are_refused(text):
    with pytest.raises(InputError, match=r"--fractions is .*sum to 1"):
        read_fractions(text)
