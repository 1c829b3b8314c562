import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.samplers import TrainSampler
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


def test_categories_without_names_are_numbered(own_root, caplog):
    (own_root / "manifest.json").unlink()
    make(own_root).prepare_data()  # one class needs no manifest
    data = make(own_root, classes=5)
    with caplog.at_level("INFO"):
        data.prepare_data()
    assert "data.category_names gives them names" in caplog.text
    assert data.categories == ["category 1", "category 2", "category 3", "category 4"]


def test_categories_can_be_named(own_root):
    names = ["a", "b", "c", "d"]
    assert make(own_root, classes=5, category_names=names).categories == names
    for classes, wrong, message in (
        (
            5,
            ["a"],
            r"data\.category_names has 1 names, .* is 5\. Set data.classes: 2",
        ),
        (5, ["a", "b", "c", "a"], r"data\.category_names has a name twice"),
        (1, names, r"data\.category_names has 4 names, but data\.classes is 1"),
    ):
        with pytest.raises(InputError, match=message):
            make(own_root, classes=classes, category_names=wrong).prepare_data()


def test_another_number_of_categories_is_an_error(phantom_root):
    with pytest.raises(
        InputError, match=r"data\.classes is 9, but .* has 4 categories\. Set data\.classes: 5 "
    ):
        make(phantom_root, classes=9).prepare_data()


def test_split_without_category_maps_is_an_error(own_root):
    shutil.rmtree(own_root / "valid" / "categories")
    with pytest.raises(
        InputError,
        match=r"there is no folder .*valid/categories of category maps\. Put a PNG",
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
    assert make(phantom_root).state_dict() == {"root": str(phantom_root)}
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
        ({"invert_masks": True, "classes": 5}, r"data\.invert_masks is for masks"),
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


def change_masks(root, change, suffix: str = ".png", split: str = "*") -> None:
    for path in root.glob(f"{split}/masks/*.png"):
        mask = np.array(Image.open(path))
        path.unlink()
        Image.fromarray(change(mask)).save(path.with_suffix(suffix), quality=95)


@pytest.mark.parametrize(
    ("change", "suffix", "message"),
    [
        (
            lambda mask: mask // 255 * 20,
            ".jpg",
            r"None of the 14 masks .* threshold to 11 ",
        ),
        (lambda mask: mask // 255, ".jpg", r"None of the 14 masks .* threshold to 0 "),
        (
            lambda mask: mask * 0,
            ".png",
            r"^All 14 masks in train are empty, expected some with a lesion",
        ),
        (lambda mask: mask * 0 + 255, ".png", r"All 14 masks in train are lesion everywhere"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(own_root, change, suffix, message):
    change_masks(own_root, change, suffix)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InputError, match=message):
            make(own_root).prepare_data()


def test_inverted_masks_are_asked_about_and_can_be_inverted(own_root, phantom_root, caplog):
    change_masks(own_root, lambda mask: 255 - mask)
    with caplog.at_level("INFO"):
        for _ in range(2):  # the second time from the cache
            make(own_root).prepare_data()
    text = "14 of 14 masks in train are white at all four corners: is the lesion drawn in black?"
    assert caplog.text.count(text) == 2
    caplog.clear()
    inverted = make(own_root, invert_masks=True)
    with caplog.at_level("INFO"):
        inverted.prepare_data()
    assert "corners" not in caplog.text
    expected = make(phantom_root)
    for cached in (True, False):
        if not cached:
            inverted = make(own_root, invert_masks=True, cache=False)
        for first, second in zip(inverted.val_dataloader(), expected.val_dataloader(), strict=True):
            assert torch.equal(first["mask"], second["mask"])


def test_what_is_left_out_is_said(own_root, caplog):
    (own_root / "train" / "images" / "scan.dcm").touch()
    (own_root / "valid" / "masks" / "more").mkdir()
    (own_root / "test" / "images" / ".DS_Store").touch()
    with caplog.at_level("INFO"):
        make(own_root).prepare_data()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{own_root}/train/images: 1 file was left out: 1 .dcm.",
        f"{own_root}/valid/masks: it holds 1 folder, whose pictures are not looked for.",
    ]


@pytest.mark.parametrize("empty", [True, False])
def test_dataset_without_test_images_trains_where_they_are_not_needed(own_root, caplog, empty):
    if empty:
        for path in own_root.glob("test/*/*.png"):
            path.unlink()
    else:
        shutil.rmtree(own_root / "test")
    data = make(own_root)
    data.needs_test = False
    with caplog.at_level("INFO"):
        data.prepare_data()
    assert "has no test images: nothing is scored on test" in caplog.text
    assert data.splits == ("train", "valid")
    assert data.mini_test_pairs(2) == data.pairs("valid")[:2]
    with pytest.raises(InputError, match="evaluate_test: false|holds no picture"):
        make(own_root).prepare_data()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("valid", "val"), ("valid", "Validation"), ("train/masks", "train/labels"), ("test", "Test")],
)
def test_folder_of_another_name_is_named(own_root, right, wrong):
    (own_root / right).rename(own_root / wrong)
    names = (wrong.split("/")[-1], right.split("/")[-1])
    with pytest.raises(InputError, match="Found {}: rename it to {}".format(*names)):
        make(own_root).prepare_data()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", ["vanishes", "is cut", "has another size"])
def test_file_that_changes_in_mid_epoch_is_named_from_a_worker_too(own_root, workers, change):
    data = make(own_root, cache=False, num_workers=workers)
    data.prepare_data()
    path = own_root / "valid" / "images" / "phantom_15.png"
    if change == "vanishes":
        path.unlink()
    elif change == "is cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    with pytest.raises(InputError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def write_config(folder: Path, root: Path, **data: object) -> Path:
    """A configuration of a tiny training, `tiny.yaml`, with runs in `folder/runs`."""
    arch_args = {"base_filters": 4, "base_kernel": 3, "num_layers": 3, "dilation": 1}
    settings = {
        "model": {"arch_args": arch_args},
        "data": {"root": str(root), "image_size": 32, "num_workers": 0, **data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "runs_dir": str(folder / "runs"),
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder / "tiny.yaml"


@pytest.mark.parametrize("workers", [0, 1])
def test_training_names_a_file_that_vanishes_and_keeps_its_checkpoint(
    own_root, tmp_path, run_command, monkeypatch, capfd, workers
):
    path = own_root / "train" / "images" / "phantom_3.png"

    def remove_and_set(sampler, epoch):
        if epoch == 1:
            path.unlink()
        sampler.epoch = epoch

    monkeypatch.setattr(TrainSampler, "set_epoch", remove_and_set)
    config = write_config(tmp_path, own_root, cache=False, num_workers=workers, batch_size=1)
    assert run_command("train", "--config", config, "--trainer.max_epochs", "3") == 2
    error = capfd.readouterr().err
    reason = "(No such file or directory). Replace or remove the file."
    assert error.splitlines()[-1] == f"error: {path} cannot be read {reason}"
    assert "Traceback" not in error
    assert (tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_training_without_test_images_says_what_to_set(own_root, tmp_path, run_command, capfd):
    shutil.rmtree(own_root / "test")
    config = write_config(tmp_path, own_root)
    assert run_command("train", "--config", config) == 2
    message = f"error: There is no folder {own_root / 'test'}. Add it; without test images train "
    assert f"{message}with evaluate_test: false" in capfd.readouterr().err
    assert run_command("train", "--config", config, "--evaluate_test", "false") == 0
    assert len(list((tmp_path / "runs" / "tiny").glob("*/epoch_change_infer/Epoch_1_*.png"))) == 3


HOSTILE = [
    os.fsdecode(b"\xc2\xd1\xb3\xb2_%d" % 14),
    "x[red]",
    "line\nbreak",
    "\x1b[31mred",
    "=1+1",
    "<script>",
    "a" * 251,
    "$\\frac",
    "卵巢",
]


def rename_phantoms(root) -> None:
    for name, number in zip(HOSTILE, (14, 15, 16, 17, 18, 19, 0, 1, 2), strict=True):
        for path in root.glob(f"*/*/phantom_{number}.png"):
            path.rename(path.with_name(f"{name}.png"))
    (root / "manifest.json").unlink()
    for folder in root.glob("*/categories"):
        shutil.rmtree(folder)


def test_hostile_names_train_and_are_never_shown_raw(
    own_root, tmp_path, run_command, capfd, caplog
):
    caplog.set_level("INFO")
    rename_phantoms(own_root)
    for path in own_root.glob("valid/masks/*"):
        if path.stem != "x[red]":
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    config = write_config(tmp_path, own_root)
    assert run_command("train", "--config", config) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert len(list((run / "epoch_change_infer").iterdir())) == 4
    scores = pd.read_csv(run / "evaluation" / "per_image.csv")["stem"]
    assert sorted(scores) == ["'=1+1", "<script>", r"\x1b[31mred"]
    where = ["--run", run, "--images", own_root / "train" / "images", "--output", tmp_path / "out"]
    assert run_command("infer", *where) == 0
    assert {path.name for path in (own_root / "train" / "images").iterdir()} < {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert run_command("audit_data", "--data", own_root, "--output", tmp_path / "audit") == 0
    (own_root / "valid" / "images" / "\x1b[31mblue.png").touch()
    assert run_command("train", "--config", config) == 2
    out, err = capfd.readouterr()
    assert r"error: 1 of 4 images" in err and r"\x1b[31mblue" in err
    assert "\x1b" not in out + err + caplog.text
    assert r"2 of 3 masks in valid are empty: line\nbreak, \udcc2" in caplog.text


def test_borders_of_a_prepared_dataset_are_not_inverted(own_root):
    (own_root / "manifest.json").write_text(json.dumps({"fit": "letterbox"}))
    with pytest.raises(InputError, match=r"prepared with borders, which data\.invert_masks would"):
        make(own_root, invert_masks=True).prepare_data()


def test_epoch_of_steps_and_a_validation_share_train(own_root):
    shutil.rmtree(own_root / "valid")
    data = make(own_root, valid_share=0.2, steps_per_epoch=5, mask_blur=3)
    data.prepare_data()
    assert len(data.train_dataloader()) == 5
    assert [len(batch["stem"]) for batch in data.train_dataloader()] == [4] * 5
    stems = [stem for batch in data.val_dataloader() for stem in batch["stem"]]
    assert stems == ["phantom_7", "phantom_8", "phantom_9"]
    digests = data.state_dict()["digests"]
    assert digests["train"] != digests["valid"]
    plain = make(own_root, valid_share=0.2, cache=False)
    blurred = data.dataset("train")[0]["mask"]
    assert blurred.sum() > plain.dataset("train")[0]["mask"].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_share": 0.2, "fold": 0}, "both choose the validation images"),
        ({"train_on_valid": True, "fold": 0}, "leaves no image to validate with"),
        ({"train_on_valid": True, "valid_share": 0.2}, "leaves no image to validate with"),
        ({"mask_blur": 3, "invert_masks": True}, "mask_blur is for white masks of one class"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0, expected 1"),
        ({"augmentation_args": {"p": 1}}, "augmentation none does not take p"),
    ],
)
def test_options_that_exclude_each_other_are_errors(phantom_root, options, message):
    with pytest.raises(InputError, match=message):
        make(phantom_root, **options)
