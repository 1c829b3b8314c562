"""Which images `data.fold` trains on and which it holds out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.pairs import Pair
from ovseg.data.tree import DatasetTree


def tree_of(root: Path, fold: int | None, exclude: list[str | int] | None = None) -> DatasetTree:
    return DatasetTree(root, exclude, classes=1, fold=fold, fit="letterbox")


def stems(pairs: list[Pair]) -> list[str]:
    return [pair.stem for pair in pairs]


def phantoms(numbers: range) -> list[str]:
    return [f"phantom_{number}" for number in numbers]


def test_splits_without_a_fold_are_the_folders(phantom_root):
    tree = tree_of(phantom_root, None)
    assert stems(tree.pairs("train")) == phantoms(range(14))
    assert stems(tree.pairs("valid")) == phantoms(range(14, 17))
    assert stems(tree.pairs("test")) == phantoms(range(17, 20))


def test_unknown_split_is_an_error(phantom_root):
    with pytest.raises(InputError, match="Unknown split 'val'"):
        tree_of(phantom_root, None).pairs("val")


def test_missing_root_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match="There is no dataset folder .*ovseg prepare_data"):
        tree_of(tmp_path / "gone", None).pairs("train")


def test_folder_of_another_layout_says_how_to_prepare_it(tmp_path, save_png):
    for kind in ("images", "annotations"):
        save_png(tmp_path / "my set" / kind / "a.png", np.zeros((8, 8), np.uint8))
    command = "--source '.*/my set' --output '.*/my set_prepared'"
    message = f"another layout .folders: images and masks.*ovseg prepare_data {command}"
    with pytest.raises(InputError, match=message):
        tree_of(tmp_path / "my set", None).pairs("train")


def test_split_of_another_layout_says_how_to_prepare_it(tmp_path, save_png):
    save_png(tmp_path / "train" / "images" / "a.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    with pytest.raises(InputError, match="another layout .YOLO.*ovseg prepare_data"):
        tree_of(tmp_path, None).pairs("train")


def test_masks_of_other_names_say_how_to_prepare_them(tmp_path, save_png):
    save_png(tmp_path / "train" / "images" / "benign (1).png", np.zeros((8, 8), np.uint8))
    save_png(tmp_path / "train" / "masks" / "benign (1)_mask.png", np.zeros((8, 8), np.uint8))
    message = r"images such as benign \(1\), masks such as benign \(1\)_mask.*prepare_data"
    with pytest.raises(InputError, match=message):
        tree_of(tmp_path, None).pairs("train")


def test_folds_are_complementary_and_leave_test_as_it_is(fold_root):
    held_out = []
    for fold in range(3):
        tree = tree_of(fold_root, fold)
        train = stems(tree.pairs("train"))
        valid = stems(tree.pairs("valid"))
        assert not set(train) & set(valid)
        assert len(train) + len(valid) == 17
        assert valid == phantoms(range(fold, 17, 3))  # in natural order
        assert stems(tree.pairs("test")) == phantoms(range(17, 20))
        held_out += valid

    assert sorted(held_out) == sorted(phantoms(range(17)))


def test_numbers_can_be_excluded(phantom_root):
    tree = tree_of(phantom_root, None, exclude=["phantom_0", 7])
    assert stems(tree.pairs("train")) == phantoms(range(1, 14))
    with pytest.raises(InputError, match="data.exclude names 1 stems that no split of .* has: 7"):
        tree.check_exclude(["train", "valid", "test"])


def no_manifest(manifest: dict[str, Any]) -> None:
    return None


def of_prepare_data_without_items(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "made_by": "prepare_data", "items": []}


def of_phantoms_without_items(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "items": []}


def without_the_first_image(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "items": manifest["items"][1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            no_manifest,
            "has no manifest.json, which lists the folds.*ovseg prepare_data .* --folds 5",
        ),
        (
            of_prepare_data_without_items,
            "has no folds. .*ovseg prepare_data --source",
        ),
        (
            of_phantoms_without_items,
            "has no folds. .*ovseg make_phantoms .* --count 20 .* --folds 5",
        ),
        (
            without_the_first_image,
            "1 images of .* have no fold .*train/phantom_0",
        ),
    ],
)
def test_manifest_without_the_folds_is_an_error_with_the_command(
    own_fold_root, change: Callable[[dict[str, Any]], dict[str, Any] | None], message
):
    path = own_fold_root / "manifest.json"
    changed = change(json.loads(path.read_text()))
    if changed is None:
        path.unlink()
    else:
        path.write_text(json.dumps(changed))

    with pytest.raises(InputError, match=message):
        tree_of(own_fold_root, 0).pairs("train")
    assert len(tree_of(own_fold_root, None).pairs("train")) == 14  # needs no manifest


@pytest.mark.parametrize("fold", [-1, 3])
def test_fold_out_of_range_is_an_error(fold_root, fold):
    with pytest.raises(InputError, match=rf"data.fold is {fold}, but .* has the folds 0..2"):
        tree_of(fold_root, fold).pairs("train")


def test_excluding_a_whole_fold_is_an_error(fold_root):
    fold_1 = phantoms(range(1, 17, 3))
    assert len(tree_of(fold_root, 0, exclude=fold_1).pairs("train")) == 5
    with pytest.raises(InputError, match="data.exclude leaves fold 1 of .* no image for valid"):
        tree_of(fold_root, 1, exclude=fold_1).pairs("valid")


def test_digest_of_the_held_out_images_follows_from_their_names_alone(fold_root):
    first = tree_of(fold_root, 0).held_out()
    assert tree_of(fold_root, 1).held_out() != first
    assert tree_of(fold_root, 0, exclude=["phantom_0"]).held_out() == first
    assert tree_of(fold_root, None).held_out() is None


def test_share_of_train_validates_in_alphabetical_order(phantom_root):
    tree = DatasetTree(phantom_root, None, 1, None, "letterbox", valid_share=0.2)
    # int(0.8 * 14) = 11 of phantom_0, _1, _10, ... _13, _2, ..., _9 are trained on.
    assert stems(tree.pairs("valid")) == ["phantom_7", "phantom_8", "phantom_9"]
    assert stems(tree.pairs("train")) == phantoms(range(7)) + phantoms(range(10, 14))
    assert stems(tree.pairs("test")) == phantoms(range(17, 20))
    assert list(tree.folders("valid")) == ["train"]


def test_valid_can_be_trained_on_too(phantom_root):
    tree = DatasetTree(phantom_root, None, 1, None, "letterbox", train_on_valid=True)
    assert stems(tree.pairs("train")) == phantoms(range(17))
    assert stems(tree.pairs("valid")) == phantoms(range(14, 17))
    assert stems(tree.pairs("test")) == phantoms(range(17, 20))
    assert list(tree.folders("train")) == ["train", "valid"]


def test_share_that_leaves_nothing_is_an_error(phantom_root):
    tree = DatasetTree(phantom_root, None, 1, None, "letterbox", valid_share=0.95)
    with pytest.raises(InputError, match="leaves none to train on or none to validate with"):
        tree.pairs("train")
