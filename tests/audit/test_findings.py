"""Copies are found in every orientation; a sound tree passes."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.audit.findings import audit_tree, summarise
from ovseg.core.errors import InputError
from ovseg.data.prepare.dataset import prepare_dataset


def test_a_sound_tree_passes(sound_tree):
    audit = audit_tree(sound_tree)
    assert audit.passed
    assert not audit.problems
    assert not audit.copies
    assert len(audit.entries) == 10


def test_entry_describes_its_pair(sound_tree, read_png):
    entry = audit_tree(sound_tree).entries[0]
    image = read_png(sound_tree / entry.image)
    mask = read_png(sound_tree / entry.mask)
    assert entry.lesion == pytest.approx((mask > 0).mean())
    assert (entry.height, entry.width) == (96, 96)
    assert image.mean() < entry.brightness < 255
    assert entry.usable
    assert not entry.doppler


def test_every_fault_at_once_is_found_in_one_audit(tree, copy_pair, save_png):
    image = tree / "train" / "images" / "phantom_1.png"
    image.write_bytes(image.read_bytes()[:200])
    (tree / "train" / "masks" / "phantom_2.png").unlink()
    save_png(tree / "train" / "masks" / "phantom_3.png", np.zeros((96, 96), np.uint8))
    copy_pair("train/phantom_4", "test/copied")
    audit = audit_tree(tree)
    kinds = {problem.kind for problem in audit.problems}
    assert kinds == {"unreadable", "image without mask", "empty mask"}
    assert len(audit.leaks) == 1
    assert sum(entry.usable for entry in audit.entries) == 9


CHANGES = {
    "same pixels": lambda image: image,
    "near-duplicate": lambda image: cv2.convertScaleAbs(image, alpha=1.3),
    "rotated by 90": lambda image: np.rot90(image, -1),
    "rotated by 180": lambda image: image[::-1, ::-1],
    "rotated by 270": lambda image: np.rot90(image),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "transposed": lambda image: image.swapaxes(0, 1),
    "transposed across": lambda image: image[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_in_every_orientation_across_and_within_splits(tree, copy_pair, change):
    copy_pair("train/phantom_0", "test/copied", CHANGES[change])
    copy_pair("train/phantom_1", "train/other", CHANGES[change])
    png = tree / "test/images/copied.png"
    Image.open(png).save(png.with_suffix(".bmp"))  # so that the files differ
    png.unlink()

    leak, within = audit_tree(tree).copies
    assert leak.across_splits
    assert (leak.first.name, leak.second.name) == ("train/phantom_0", "test/copied")
    assert leak.similarity > 0.6
    assert not within.across_splits
    assert {within.first.name, within.second.name} == {"train/phantom_1", "train/other"}
    if change in ("same pixels", "near-duplicate"):
        assert leak.kind == change
    else:
        assert leak.kind == "rotated copy"
        assert leak.rotation == change


def test_a_byte_for_byte_copy_is_the_same_file(tree):
    shutil.copy(tree / "train/images/phantom_0.png", tree / "test/images/copied.png")
    [leak] = audit_tree(tree).leaks
    assert leak.kind == "same file"


def test_phantoms_are_compared_exactly_only(phantom_root, tmp_path, copy_pair):
    root = shutil.copytree(phantom_root, tmp_path / "phantoms")
    audit = audit_tree(root)
    assert audit.passed
    assert audit.exact_only

    copy_pair("train/phantom_0", "test/copied", root=root)
    summary = summarise(audit_tree(root))
    assert summary["leaks"] == 1
    assert summary["compared_by"] == "file contents and pixels only (phantoms)"


@pytest.fixture
def prepared_tree(tmp_path, save_png):
    """A prepared dataset of 30 pairs of noise, half of them teratomas."""
    generator = np.random.default_rng(0)
    for number in range(30):
        colour = (0, 0, 64) if number % 2 else (64, 0, 0)
        annotation = np.zeros((64, 64, 3), np.uint8)
        annotation[10:30, 20:40] = colour
        image = generator.integers(0, 255, (64, 64, 3), np.uint8)
        save_png(tmp_path / "in" / "images" / f"{100 * number}.JPG", image)
        save_png(tmp_path / "in" / "annotations" / f"{100 * number}.PNG", annotation)
    prepare_dataset(tmp_path / "in", tmp_path / "out", size=64)
    return tmp_path / "out"


def test_categories_are_counted(prepared_tree):
    summary = summarise(audit_tree(prepared_tree))
    assert summary["passed"]
    counts = {split: found["categories"] for split, found in summary["splits"].items()}
    assert counts["all"] == {"chocolate cyst": 15, "teratoma": 15}
    assert sum(counts[split]["teratoma"] for split in ("train", "valid", "test")) == 15


def test_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no image in train/images"):
        audit_tree(tmp_path)


def test_threshold_out_of_range_is_an_error(sound_tree):
    with pytest.raises(InputError, match=r"--mask_threshold is 255, expected 0\.\.254"):
        audit_tree(sound_tree, 255)
