import json
from pathlib import Path

import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.core.files import write_image, write_json
from ovseg.data.geometry import place
from ovseg.data.manifest import (
    check_manifest,
    image_categories,
    prepared_items,
    read_folds,
    read_manifest,
    refuse_borders,
)
from ovseg.data.prepare.phantoms import write_phantoms
from support import make_data


def write(root: Path, content: object) -> None:
    write_json(root / "manifest.json", content)


def with_item(**entries: object) -> dict[str, object]:
    """A manifest of one category and one image, with more entries for the image."""
    return {"categories": ["cyst"], "items": [{"stem": "a", "split": "train", **entries}]}


def test_tree_without_a_manifest_has_no_categories(tmp_path):
    assert read_manifest(tmp_path) == {}
    assert image_categories(tmp_path, "test") == {}
    check_manifest(tmp_path, "letterbox", classes=1)


@pytest.mark.parametrize("text", ["[", "[]", "3", "[" * 100_000, '{"items": ' * 100_000])
def test_manifest_of_another_program_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is not what prepare_data writes"):
        read_manifest(tmp_path)


BOX = {"top": 0, "left": 0, "height": 4, "width": 8}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ({"categories": 3}, r"Expected `array`, got `int` - at `\$.categories`"),
        ({"categories": {"a": 1}}, r"Expected `array`, got `object` - at `\$.categories`"),
        ({"categories": ["a", 7]}, r"Expected `str`, got `int` - at `\$.categories\[1\]`"),
        ({"items": {"a": "train"}}, r"Expected `array`, got `object` - at `\$.items`"),
        ({"items": ["a"]}, r"Expected `object`, got `str` - at `\$.items\[0\]`"),
        ({"items": [{"split": "train"}]}, "missing required field `stem`"),
        ({"items": [{"stem": "a"}]}, "missing required field `split`"),
        (with_item(category=2), r"item 0 has the category 2, expected 0\.\.1"),
        (with_item(category="cyst"), r"got `str` - at `\$.items\[0\].category`"),
        (with_item(category=None), r"got `null` - at `\$.items\[0\].category`"),
        (with_item(fold="x"), r"got `str` - at `\$.items\[0\].fold`"),
        (with_item(group=[1]), r"got `array` - at `\$.items\[0\].group`"),
        (with_item(box=[1, 2]), r"Expected `object`, got `array` - at `\$.items\[0\].box`"),
        (with_item(box=BOX), "item 0 has a box, but not the picture's height and width"),
        (with_item(box={**BOX, "top": "0"}, height=4, width=8), r"got `str` - at .*box.top"),
        (with_item(box={**BOX, "top": -1}, height=4, width=8), r"`int` >= 0 - at .*box.top"),
        ({"leakage": "no"}, r"Expected `bool`, got `str` - at `\$.leakage`"),
        ({"fit": 3}, r"Expected `str`, got `int` - at `\$.fit`"),
        ({"made_by": "phantoms", "count": 3}, "no count, size or seed"),
    ],
)
def test_malformed_entry_is_an_error_that_names_it(tmp_path, manifest, problem):
    write(tmp_path, manifest)
    with pytest.raises(InputError, match=problem):
        read_manifest(tmp_path)


def test_categories_of_a_split_by_name(tmp_path):
    items = [
        {"stem": "1", "split": "test", "category": 2},
        {"stem": "2", "split": "test", "category": 0},
        {"stem": "3", "split": "train", "category": 1},
        {"stem": "4", "split": "test"},
    ]
    write(tmp_path, {"categories": ["a", "b"], "items": items})
    assert image_categories(tmp_path, "test") == {"1": "b", "2": "none"}


def test_only_pictures_in_a_square_are_prepared_items(tmp_path, phantom_root):
    write(tmp_path, with_item(box=BOX, height=20, width=40))
    assert prepared_items(tmp_path)["a"]["box"] == BOX
    assert prepared_items(phantom_root) == {}


def letterboxed(root: Path, **item: object) -> None:
    """One 100 x 50 picture in a 64 x 64 square: white on a black border, its left half lesion."""
    image = np.full((50, 100, 3), 255, np.uint8)
    mask = np.zeros((50, 100), np.uint8)
    mask[:, :50] = 255
    write_image(root / "train" / "images" / "a.png", place(image, 64, "letterbox"))
    write_image(root / "train" / "masks" / "a.png", place(mask, 64, "letterbox"))

    box = {"top": 16, "left": 0, "height": 32, "width": 64}
    entry = {"stem": "a", "split": "train", "box": box, "height": 50, "width": 100, **item}
    write(root, {"fit": "letterbox", "items": [entry]})


@pytest.mark.parametrize("cache", [False, True])
def test_stretch_takes_a_letterboxed_picture_without_its_border(tmp_path, cache):
    letterboxed(tmp_path)
    data = make_data(tmp_path, image_size=32, fit="stretch", cache=cache)
    data.verify(["train"], keep=True)
    item = data.dataset("train")[0]
    assert (item["image"] == 255).all()
    assert (item["mask"][..., :16] == 1).all()
    assert (item["mask"][..., 16:] == 0).all()


def test_letterbox_keeps_the_border(tmp_path):
    letterboxed(tmp_path)
    data = make_data(tmp_path, image_size=32, fit="letterbox", cache=False)
    assert (data.dataset("train")[0]["image"][:, :8] == 0).all()


def test_stretched_pictures_cannot_be_letterboxed(tmp_path):
    write(tmp_path, {"fit": "stretch"})
    message = "was prepared with --fit stretch, but data.fit is letterbox. Set data.fit: stretch"
    with pytest.raises(InputError, match=message):
        check_manifest(tmp_path, "letterbox", classes=1)


def test_manifest_without_boxes_cannot_be_stretched(tmp_path):
    letterboxed(tmp_path, stem="b")
    message = "does not say where the pictures of 1 stems lie: a. Prepare the dataset again"
    with pytest.raises(InputError, match=message):
        make_data(tmp_path, fit="stretch").pairs("train")


def test_box_outside_of_the_picture_is_an_error(tmp_path):
    letterboxed(tmp_path, box={"top": 16, "left": 0, "height": 80, "width": 64})
    data = make_data(tmp_path, image_size=32, fit="stretch", cache=False)
    message = "is 64 x 64 pixels, but manifest.json has its picture in Box"
    with pytest.raises(InputError, match=message):
        data.verify(["train"])


def test_bordered_pictures_are_not_stretched_by_inference(tmp_path):
    letterboxed(tmp_path)
    refuse_borders(tmp_path / "train" / "images", "letterbox")
    refuse_borders(tmp_path / "elsewhere", "stretch")

    message = "with --fit letterbox, but the run places pictures with stretch. Give"
    with pytest.raises(InputError, match=message):
        refuse_borders(tmp_path / "train" / "images", "stretch")


def test_number_of_folds_that_was_not_expected_is_an_error(fold_root):
    assert len(read_folds(fold_root, 3)) == 17
    with pytest.raises(InputError, match="has 3 folds, expected 5. .* --folds 5 --overwrite"):
        read_folds(fold_root, 5)


def test_phantoms_take_two_to_eight_folds(tmp_path, run_command):
    with pytest.raises(InputError, match="--folds is 9, expected 2..8"):
        write_phantoms(tmp_path / "new", 10, 32, folds=9)

    options = ["--output", tmp_path / "new", "--count", 10, "--size", 32, "--folds", 8]
    assert run_command("make_phantoms", *options) == 0
    assert len(set(read_folds(tmp_path / "new").values())) == 8


def test_command_to_make_folds_has_the_settings_of_the_phantoms(own_fold_root):
    path = own_fold_root / "manifest.json"
    manifest = json.loads(path.read_text())
    write(own_fold_root, {**manifest, "items": []})
    message = (
        f"{own_fold_root} has no folds. Make it with folds: ovseg make_phantoms --output "
        f"{own_fold_root} --count 20 --size 64 --seed 3 --folds 5 --overwrite."
    )
    with pytest.raises(InputError) as error:
        read_folds(own_fold_root)
    assert str(error.value) == message
