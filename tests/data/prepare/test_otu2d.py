import json

import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.otu2d import CATEGORIES, prepare_dataset, read_categories

TERATOMA = (0, 0, 64)


def annotation(height: int, width: int, colour: tuple[int, int, int] = TERATOMA) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = colour
    return picture


@pytest.fixture
def source(tmp_path, save_png):
    """30 pairs of varied size in the layout of the download; no lists, no binary masks."""
    rng = np.random.default_rng(0)
    for number in range(1, 31):
        height, width = 40 + number, 90 - number
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        (tmp_path / "OTU_2d" / "images").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "OTU_2d" / "images" / f"{number}.JPG")
        save_png(tmp_path / "OTU_2d" / "annotations" / f"{number}.PNG", annotation(height, width))
    return tmp_path / "OTU_2d"


def prepare(source, **options):
    return prepare_dataset(source, source.parent / "out", **{"size": 32, **options})


def test_tree_holds_squares_masks_and_categories(source):
    manifest = prepare(source)
    for item in manifest["items"]:
        image, mask, ids = (
            np.array(
                Image.open(source.parent / "out" / item["split"] / kind / f"{item['stem']}.png")
            )
            for kind in ("images", "masks", "categories")
        )
        assert (
            image.shape == (32, 32, 3)
            and set(np.unique(mask)) == {0, 255}
            and set(np.unique(ids)) == {0, 3}
        )
        assert np.array_equal(mask > 0, ids > 0)
        box = item["box"]
        outside = np.ones((32, 32), bool)
        outside[
            box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]
        ] = False
        assert not image[outside].any() and not mask[outside].any()
    assert json.loads((source.parent / "out" / "manifest.json").read_text()) == manifest
    OvarianTumorDataModule(str(source.parent / "out"), image_size=32).prepare_data()


def test_split_follows_the_seed(source):
    first = {i["stem"]: i["split"] for i in prepare(source)["items"]}
    other = {i["stem"]: i["split"] for i in prepare(source, seed=1, overwrite=True)["items"]}
    assert first != other


def test_running_again_does_nothing(source):
    first = prepare(source)
    stamp = (source.parent / "out" / "manifest.json").stat().st_mtime_ns
    assert (
        prepare(source) == first
        and (source.parent / "out" / "manifest.json").stat().st_mtime_ns == stamp
    )


def test_other_settings_need_overwrite(source):
    prepare(source)
    with pytest.raises(InputError, match="add --overwrite"):
        prepare(source, size=64)
    assert prepare(source, size=64, overwrite=True)["size"] == 64


def test_stretch_fills_the_square(source):
    assert prepare(source, fit="stretch")["items"][0]["box"] == {
        "top": 0,
        "left": 0,
        "height": 32,
        "width": 32,
    }


def test_binary_annotation_is_used_where_present(source, save_png):
    binary = np.zeros((41, 89), np.uint8)
    binary[:20] = 1
    save_png(source / "annotations" / "1_binary.PNG", binary)
    item = prepare(source, fit="stretch")["items"][0]
    mask = np.array(Image.open(source.parent / "out" / item["split"] / "masks" / "1.png"))
    assert mask[:14].all() and not mask[18:].any()


def test_broken_files_are_named_and_stop_nothing_else(source, save_png):
    (source / "images" / "3.JPG").write_bytes(b"")
    save_png(source / "annotations" / "4.PNG", annotation(10, 10))
    save_png(source / "annotations" / "5.PNG", annotation(45, 85, (1, 2, 3)))
    manifest = prepare(source)
    assert len(manifest["items"]) == 27
    named = [text.split(" ")[0].split("/")[-1].rstrip(",") for text in manifest["failures"]]
    assert named == ["3.JPG", "4.JPG", "5.PNG"]


def test_nothing_usable_leaves_nothing(source):
    for path in (source / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 30 pairs"):
        prepare(source)
    assert not (source.parent / "out").exists()


def test_files_without_partner_are_named_and_stop_nothing_else(source):
    (source / "annotations" / "7.PNG").unlink()
    (source / "images" / "9.JPG").unlink()
    manifest = prepare(source)
    assert len(manifest["items"]) == 28
    assert [text.rpartition("/")[2] for text in manifest["failures"]] == [
        "7.JPG has no annotation of its stem.",
        "9.PNG has no image of its stem.",
    ]


def test_nothing_that_matches_is_an_error(source):
    for path in (source / "images").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(InputError, match="No image in .* has an annotation of its stem"):
        prepare(source)


def test_missing_source_and_bad_settings_are_errors(source, tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        prepare_dataset(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(InputError, match="--size is 4"):
        prepare(source, size=4)
    with pytest.raises(InputError, match="--seed is -1"):
        prepare(source, seed=-1)
    with pytest.raises(InputError, match="Unknown split 'random'. Choose one of: groups, official"):
        prepare(source, split="random")


def test_every_category_colour_has_its_id(tmp_path, save_png):
    for number, colour in enumerate(CATEGORIES, 1):
        ids, category = read_categories(save_png(tmp_path / "a.png", annotation(8, 8, colour)))
        assert category == number and set(np.unique(ids)) == {0, number}


def test_two_categories_are_an_error(tmp_path, save_png):
    picture = annotation(8, 8)
    picture[0, 0] = (64, 0, 0)
    with pytest.raises(
        InputError,
        match="has 2 categories, expected one: teratoma, chocolate cyst|chocolate cyst, teratoma",
    ):
        read_categories(save_png(tmp_path / "a.png", picture))


@pytest.mark.slow
def test_the_real_pairs_become_a_tree(shared_file, tmp_path):
    manifest = prepare_dataset(shared_file("data/OTU_2d"), tmp_path / "out", size=64)
    assert len(manifest["items"]) == 1218 and not manifest["failures"]
