import json

import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.core.files import write_image, write_json
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import place
from ovseg.data.manifest import check_bordered, check_manifest, image_categories, read_manifest


def write(root, content: object) -> None:
    (root / "manifest.json").write_text(json.dumps(content))


def test_tree_without_a_manifest_knows_no_categories(tmp_path):
    assert read_manifest(tmp_path) == {} and image_categories(tmp_path, "test") == {}
    check_manifest(tmp_path, "letterbox", classes=1)


@pytest.mark.parametrize("text", ["[", "[]", "3"])
def test_foreign_manifest_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is not the JSON that prepare_data writes"):
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


def letterboxed(root, **item):
    """One 100 x 50 picture in a 64 x 64 square: white on a black border, its left half lesion."""
    image, mask = np.full((50, 100, 3), 255, np.uint8), np.zeros((50, 100), np.uint8)
    mask[:, :50] = 255
    for kind, picture in (("images", image), ("masks", mask)):
        write_image(root / "train" / kind / "a.png", place(picture, 64, "letterbox"))
    box = {"top": 16, "left": 0, "height": 32, "width": 64}
    write_json(
        root / "manifest.json", {"fit": "letterbox", "items": [{"stem": "a", "box": box, **item}]}
    )


@pytest.mark.parametrize("cache", [False, True])
def test_stretch_takes_a_letterboxed_picture_without_its_border(tmp_path, cache):
    letterboxed(tmp_path)
    data = OvarianTumorDataModule(root=str(tmp_path), image_size=32, fit="stretch", cache=cache)
    data.verify(["train"], keep=True)
    item = data.dataset("train")[0]
    assert (item["image"] == 255).all()
    assert (item["mask"][..., :16] == 1).all() and (item["mask"][..., 16:] == 0).all()


def test_letterbox_keeps_the_border(tmp_path):
    letterboxed(tmp_path)
    data = OvarianTumorDataModule(root=str(tmp_path), image_size=32, fit="letterbox", cache=False)
    assert (data.dataset("train")[0]["image"][:, :8] == 0).all()


def test_stretched_pictures_cannot_be_letterboxed(tmp_path):
    write_json(tmp_path / "manifest.json", {"fit": "stretch"})
    with pytest.raises(
        InputError,
        match="was prepared with --fit stretch, but data.fit is letterbox. Set data.fit: s",
    ):
        check_manifest(tmp_path, "letterbox", classes=1)


def test_a_manifest_without_boxes_cannot_be_stretched(tmp_path):
    letterboxed(tmp_path, stem="b")
    with pytest.raises(
        InputError,
        match="does not tell where the pictures of 1 stems lie: a. Prepare the dataset ag",
    ):
        OvarianTumorDataModule(root=str(tmp_path), fit="stretch").pairs("train")


def test_a_box_outside_of_the_picture_is_an_error(tmp_path):
    letterboxed(tmp_path, box={"top": 16, "left": 0, "height": 80, "width": 64})
    data = OvarianTumorDataModule(root=str(tmp_path), image_size=32, fit="stretch", cache=False)
    with pytest.raises(
        InputError, match="is 64 x 64 pixels, but manifest.json has its picture in Box"
    ):
        data.verify(["train"])


def test_bordered_pictures_are_not_stretched_by_inference(tmp_path):
    letterboxed(tmp_path)
    check_bordered(tmp_path / "train" / "images", "letterbox")
    check_bordered(tmp_path / "elsewhere", "stretch")
    with pytest.raises(
        InputError, match="with --fit letterbox, but the run places pictures with stretch. Give"
    ):
        check_bordered(tmp_path / "train" / "images", "stretch")
