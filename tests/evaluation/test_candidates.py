"""What is compared: names of candidates, and folders of masks of any tool."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.candidates import name_candidates
from ovseg.evaluation.compare import compare_runs

# Names


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["runs/a/version_0", "runs/b/version_0"], ["a", "b"]),
        (["runs/a/version_0", "runs/a/version_1"], ["a/version_0", "a/version_1"]),
        (["runs/a/version_0", "theirs"], ["a/version_0", "theirs"]),
        (["x/a/masks", "y/a/masks", "y/b/masks"], ["x/a", "y/a", "y/b"]),
        (["big net=runs/a/version_0", "theirs"], ["big net", "theirs"]),
        (
            ["a/version_0/checkpoints/best.ckpt", "a/version_0/checkpoints/last.ckpt"],
            ["a/version_0/checkpoints/best.ckpt", "a/version_0/checkpoints/last.ckpt"],
        ),
    ],
)
def test_names_are_short_and_different(given, names):
    assert list(name_candidates(given)) == names


def test_path_with_an_equals_sign_is_a_path(tmp_path):
    (tmp_path / "lr=3").mkdir()
    paths = [tmp_path / "lr=3", tmp_path / "other"]
    assert name_candidates(paths) == {"lr=3": paths[0], "other": paths[1]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["runs/a", "runs/../runs/a"], "runs/a is named twice"),
        (["x=runs/a", "x=runs/b"], "x can't be the name of a candidate: each needs its own"),
        (["stem=runs/a", "runs/b"], "stem is a column of the table. Give another one"),
    ],
)
def test_names_that_would_be_mixed_up_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        name_candidates(given)


# Folders of masks


@pytest.fixture
def folders(tmp_path, save_png):
    """Three references of 40 x 40; ours exact; theirs larger, green, with half of the lesion."""
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    half = np.zeros((80, 80, 3), np.uint8)
    half[20:60, 20:40, 1] = 200
    half[20:60, 40:60, 1] = 100
    for stem in "abc":
        save_png(tmp_path / "masks" / f"{stem}.png", mask)
        save_png(tmp_path / "ours" / f"{stem}.png", mask)
        save_png(tmp_path / "theirs" / f"{stem}.png", half)
    save_png(tmp_path / "ours" / "more.png", mask)
    return tmp_path


@pytest.fixture
def compare(folders):
    """A function that compares ours and theirs with the reference masks."""

    def run(**options):
        runs = [folders / "ours", folders / "theirs"]
        return compare_runs(runs, folders / "out", masks=folders / "masks", **options)

    return run


def test_paired_difference_by_hand(compare, folders):
    content = compare()
    assert [row["name"] for row in content["ranking"]] == ["ours", "theirs"]
    means = [row["mean"] for row in content["ranking"]]
    assert means == pytest.approx([1, 2 / 3], abs=1e-4)
    (pair,) = content["pairs"]
    assert pair["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert pair["ci95"] == pytest.approx([1 / 3, 1 / 3], abs=1e-4)
    assert content["references"] == str(folders / "masks")
    assert content["images"] == 3
    assert json.loads((folders / "out" / "comparison.json").read_text()) == content


def test_masks_of_another_size_are_stretched_and_that_is_said(compare, folders):
    line = (
        f"3 of 3 masks in {folders / 'theirs'} have another size than the original picture, so "
        "they are stretched to it by nearest neighbour (a: 80 x 80, not 40 x 40)."
    )
    assert compare()["notes"][-1] == line
    assert line in (folders / "out" / "compare.html").read_text()


def test_threshold_moves_their_lesion(compare):
    means = [row["mean"] for row in compare(mask_threshold=50)["ranking"]]
    assert means == [1, 1]


def test_missing_masks_are_named_with_the_way_out(compare, folders):
    (folders / "theirs" / "b.png").unlink()
    with pytest.raises(InputError) as error:
        compare()
    assert str(error.value) == (
        f"1 of 3 images have no mask in {folders / 'theirs'}: b. Add them, or compare the "
        "other 2 images alone with --common."
    )
    assert not (folders / "out").exists()
    content = compare(common=True)
    assert content["images"] == 2
    assert content["left_out"] == ["b"]
    assert "1 of 3 are left out" in content["notes"][0]


def blur(mask, strength):
    return cv2.GaussianBlur(mask, (0, 0), strength)


def test_probability_maps_are_refused_in_one_sentence(compare, folders, save_png):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    for stem in "ab":
        save_png(folders / "theirs" / f"{stem}.png", blur(mask, 8))
    with pytest.raises(InputError) as error:
        compare()
    text = str(error.value)
    assert text.startswith(f"2 of 3 masks in {folders / 'theirs'} can't be used: a, b. The first: ")
    assert "expected a binary mask of two. Save the lesion as one value on black." in text
    assert text.count("Save the lesion") == 1
    assert not (folders / "out").exists()


def test_photograph_is_refused(compare, folders, save_png):
    path = save_png(folders / "theirs" / "b.png", make_phantom(0, 40)[0])
    with pytest.raises(InputError, match=f"{path} holds .* grey values .* expected a binary mask"):
        compare()


def test_soft_masks_are_thresholded_and_that_is_said(compare, folders, save_png):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    for stem in "abc":
        save_png(folders / "theirs" / f"{stem}.png", blur(mask, 0.7))
    content = compare()
    assert [row["mean"] for row in content["ranking"]] == pytest.approx([1, 1], abs=0.02)
    (line,) = content["notes"]
    assert f"3 of 3 masks in {folders / 'theirs'} have values between black and white" in line
    assert line.endswith("which are lesion above 127.")


def test_inverted_masks_are_asked_about(compare, folders, save_png):
    mask = np.full((40, 40), 255, np.uint8)
    mask[10:30, 10:30] = 0
    for stem in "abc":
        save_png(folders / "theirs" / f"{stem}.png", mask)
    (line,) = compare()["notes"]
    assert line.endswith("If their lesion is drawn in black, invert them.")


def test_masks_of_small_values_name_the_option(folders, save_png, run_command, capsys):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    for stem in "abc":
        save_png(folders / "theirs" / f"{stem}.png", mask)
    command = ["compare", "--runs", folders / "ours", folders / "theirs"]
    command += ["--masks", folders / "masks", "--output", folders / "out"]
    assert run_command(*command) == 2
    error = capsys.readouterr().err
    assert error.count("Set the mask threshold to 0") == 1
    assert "--mask_threshold in other commands" in error
    assert run_command(*command, "--mask_threshold", 0) == 0


def test_masks_of_the_prepared_size_are_cut_as_the_reference_is(tmp_path, save_png):
    """A picture of 40 x 80, letterboxed into 64 x 64: its box is 32 rows from row 16."""
    root = tmp_path / "data"
    square = np.zeros((64, 64), np.uint8)
    square[20:40, 10:30] = 255
    for name in ("masks", "images"):
        save_png(root / "test" / name / "a.png", square)
    box = {"top": 16, "left": 0, "height": 32, "width": 64}
    item = {"stem": "a", "split": "test", "height": 40, "width": 80, "box": box}
    manifest = {"made_by": "prepare_data", "fit": "letterbox", "items": [item]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    save_png(tmp_path / "squares" / "a.png", square)
    stretched = cv2.resize(square[16:48], (80, 40), interpolation=cv2.INTER_NEAREST_EXACT)
    save_png(tmp_path / "originals" / "a.png", stretched)
    runs = [Path(tmp_path / "squares"), Path(tmp_path / "originals")]
    content = compare_runs(runs, tmp_path / "out", data=root)
    assert [row["mean"] for row in content["ranking"]] == [1, 1]
    (line,) = content["notes"]
    assert "so they are cut and resized as the reference masks are (a: 64 x 64, not 80" in line
