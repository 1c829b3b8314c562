import json
import shutil

import numpy as np
import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.data.augment.pipelines import augment, build_transform
from support import make_data as make


def epoch_of(loader, epoch: int) -> tuple[list[str], torch.Tensor]:
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return [stem for batch in batches for stem in batch["stem"]], torch.cat(
        [batch["image"] for batch in batches]
    )


def test_batch_contract(phantom_root):
    batch = next(iter(make(phantom_root).train_dataloader()))
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert batch["image"].shape == (4, 3, 48, 48) and batch["mask"].shape == (4, 1, 48, 48)
    assert batch["mask"].unique().tolist() == [0, 1] and len(batch["stem"]) == 4


def test_epochs_differ_and_runs_agree_whatever_the_workers(phantom_root):
    first = make(phantom_root, augmentation="standard").train_dataloader()
    second = make(phantom_root, augmentation="standard", num_workers=2).train_dataloader()
    for epoch in (0, 1):
        (stems, images), (stems2, images2) = epoch_of(first, epoch), epoch_of(second, epoch)
        assert stems == stems2 and torch.equal(images, images2)
    zero, one = (dict(zip(*epoch_of(second, epoch), strict=True)) for epoch in (0, 1))
    assert list(zero) != list(one)
    assert np.mean([torch.equal(zero[stem], one[stem]) for stem in zero]) < 0.2


def test_no_shuffle_keeps_the_natural_order(phantom_root):
    data = make(phantom_root, shuffle=False)
    assert epoch_of(data.train_dataloader(), 3)[0] == [pair.stem for pair in data.pairs("train")]


def test_excluded_stems_leave_their_split_and_unknown_ones_are_an_error(own_root):
    data = make(own_root, exclude=["phantom_0", "phantom_19"])
    data.prepare_data()
    assert [len(data.pairs(split)) for split in ("train", "valid", "test")] == [13, 3, 2]
    with pytest.raises(
        InputError, match="data.exclude names 1 stems that no split of .* has: phantom_99"
    ):
        make(own_root, exclude=["phantom_0", "phantom_99"]).prepare_data()


def test_mini_test_comes_from_test_or_a_folder(phantom_root):
    assert make(phantom_root).mini_test_pairs(2)[0].image_path.parent.parent.name == "test"
    folder = phantom_root / "valid" / "images"
    pairs = make(phantom_root, mini_test=str(folder)).mini_test_pairs(2)
    assert [(pair.image_path.parent, pair.mask_path) for pair in pairs] == [(folder, None)] * 2


def test_baseline_layout_with_jpeg_masks_loads(own_root):
    from PIL import Image

    for path in (own_root / "train" / "masks").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    data = make(own_root)
    data.prepare_data()
    assert next(iter(data.train_dataloader()))["mask"].unique().tolist() == [0, 1]


def test_bad_pair_stops_before_the_first_epoch(own_root):
    (own_root / "valid" / "images" / "phantom_14.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"phantom_14\.png cannot be read"):
        make(own_root).prepare_data()


def test_phantoms_are_drawn_where_the_root_is_missing(tmp_path):
    data = make(tmp_path / "new", phantoms=10)
    data.prepare_data()
    assert len(data.pairs("train")) == 7


def test_dataset_prepared_with_another_fit_is_an_error(own_root):
    (own_root / "manifest.json").write_text(json.dumps({"fit": "stretch"}))
    with pytest.raises(InputError, match=r"Set data\.fit: stretch"):
        make(own_root).prepare_data()
    (own_root / "manifest.json").write_text("[")
    with pytest.raises(InputError, match="is not what prepare_data writes"):
        make(own_root).prepare_data()


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_category_ids_survive_resizing_and_augmentation(phantom_root, fit):
    data = make(
        phantom_root, classes=5, image_size=100, fit=fit, augmentation="standard", batch_size=14
    )
    data.prepare_data()
    mask = next(iter(data.train_dataloader()))["mask"]
    assert mask.dtype == torch.uint8 and mask.shape == (14, 1, 100, 100)
    assert all(len(image.unique()) <= 2 for image in mask)  # one category an image, as it was drawn
    assert {int(image.max()) for image in mask} == set(image_categories_of(phantom_root).values())
    assert data.categories == ["cyst", "haze", "solid", "mixed"]


def image_categories_of(root) -> dict[str, int]:
    items = json.loads((root / "manifest.json").read_text())["items"]
    return {item["stem"]: item["category"] for item in items if item["split"] == "train"}


def test_dataset_without_names_of_categories_is_an_error(own_root):
    (own_root / "manifest.json").unlink()
    make(own_root).prepare_data()  # one class needs no manifest
    with pytest.raises(
        InputError,
        match=r"data\.classes is 5, but .*own has no manifest\.json that names categories",
    ):
        make(own_root, classes=5).prepare_data()


def test_another_number_of_categories_is_an_error(phantom_root):
    with pytest.raises(
        InputError, match=r"data\.classes is 9, but .* has 4 categories\. Set data\.classes: 5 "
    ):
        make(phantom_root, classes=9).prepare_data()


def test_split_without_category_maps_is_an_error(own_root):
    shutil.rmtree(own_root / "valid" / "categories")
    with pytest.raises(
        InputError, match=r"there is no folder .*valid/categories of category maps\. Prepare the "
    ):
        make(own_root, classes=5).prepare_data()


def test_missing_category_map_is_an_error(own_root):
    (own_root / "test" / "categories" / "phantom_18.png").unlink()
    with pytest.raises(
        InputError,
        match=r"1 of 3 images .* have no mask of the same stem in .*categories: phantom_18",
    ):
        make(own_root, classes=5).prepare_data()


def test_checkpoint_of_other_categories_is_an_error(phantom_root):
    data = make(phantom_root, classes=5)
    data.load_state_dict(data.state_dict())
    assert make(phantom_root).state_dict() == {}
    with pytest.raises(
        InputError,
        match="was trained for cyst, gas, but the categories of .* are cyst, haze, solid",
    ):
        data.load_state_dict({"categories": ["cyst", "gas"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, r"data\.image_size is 8, expected 16\.\.8192"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"mask_threshold": 255}, r"data\.mask_threshold is 255"),
        ({"classes": 0}, r"data\.classes is 0, expected 1\.\.256"),
        ({"fit": "crop"}, "Unknown fit"),
        ({"augmentation": "heavy"}, "Unknown augmentation"),
    ],
)
def test_bad_settings_are_errors(phantom_root, options, message):
    with pytest.raises(InputError, match=message):
        make(phantom_root, **options)


def test_dropping_the_only_batch_is_an_error(phantom_root):
    with pytest.raises(InputError, match="do not fill one batch of 50"):
        make(phantom_root, batch_size=50, drop_last=True).train_dataloader()


@pytest.mark.parametrize("cache", [True, False])
def test_batch_holds_what_the_pipeline_made(phantom_root, tmp_path, cache):
    data = make(phantom_root, augmentation="standard", cache=str(tmp_path) if cache else False)
    data.prepare_data()
    dataset = data.dataset("train", "standard")
    batch = dataset.__getitems__([(3, 7), (5, 8)])
    for row, (index, seed) in enumerate(((3, 7), (5, 8))):
        image, mask = augment(build_transform("standard"), *dataset.load(index), seed)
        assert np.array_equal(batch["image"][row].permute(1, 2, 0), image)
        assert np.array_equal(batch["mask"][row, 0], mask)


def test_other_number_of_phantoms_is_said(tmp_path, caplog):
    make(tmp_path / "new", phantoms=10).prepare_data()
    with caplog.at_level("INFO"):
        make(tmp_path / "new", phantoms=20).prepare_data()
    assert "holds 10 phantoms, which are used: data.phantoms 20 is" in caplog.text


def test_bad_files_of_all_splits_are_named_at_once(own_root):
    for split, number in (("train", 0), ("test", 19)):
        [path] = own_root.glob(f"{split}/images/phantom_{number}.png")
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"(?s)phantom_0\.png cannot be read.*phantom_19\.png"):
        make(own_root).prepare_data()


def test_folder_that_is_no_dataset_names_the_command_that_makes_one(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="none of the folders train, valid, test. .* --source"):
        make(tmp_path).prepare_data()
