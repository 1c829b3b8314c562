"""Runs and folders of masks, image by image."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.evaluation.compare_runs import compare_tables, name_candidates

COUNT = 60


def table_of(dice):
    dice = np.asarray(dice, float)
    return pd.DataFrame(
        {
            "stem": [str(number) for number in range(len(dice))],
            "dice_original": dice,
            "lesion_pixels_original": 100,
            "pred_pixels_original": 100,
            "hit_pixels_original": np.nan_to_num(dice) * 100,
        }
    )


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_candidates_of_the_same_quality_are_not_distinguishable(generator):
    base = generator.uniform(0.6, 0.9, COUNT)
    tables = {
        "one": table_of(base + generator.normal(0, 0.05, COUNT)),
        "two": table_of(base + generator.normal(0, 0.05, COUNT)),
    }
    comparison = compare_tables(tables, {})
    assert not comparison.pairs[0]["certain"]
    assert comparison.intervals == "images"


def test_better_candidate_comes_first_and_is_certain(generator):
    base = generator.uniform(0.5, 0.8, COUNT)
    tables = {"worse": table_of(base), "better": table_of(base + 0.05)}
    comparison = compare_tables(tables, {})
    assert [row["name"] for row in comparison.ranking] == ["better", "worse"]
    (pair,) = comparison.pairs
    assert (pair["better"], pair["worse"]) == ("better", "worse")
    assert pair["difference"] == pytest.approx(0.05)
    assert (pair["higher"], pair["lower"], pair["images"]) == (COUNT, 0, COUNT)
    assert pair["certain"]


def test_images_of_one_group_are_no_proof(generator):
    """A difference in one examination of 50 images, and none in ten others."""
    base = generator.uniform(0.5, 0.8, COUNT)
    gain = np.where(np.arange(COUNT) < 50, 0.05, 0.0) + generator.normal(0, 0.01, COUNT)
    tables = {"worse": table_of(base), "better": table_of(base + gain)}
    groups = {str(number): max(0, number - 49) for number in range(COUNT)}
    by_image = compare_tables(tables, {})
    by_group = compare_tables(tables, groups)
    assert by_group.intervals == "groups"
    assert by_image.pairs[0]["ci95"][0] > 0.03
    assert by_group.pairs[0]["ci95"][0] < 0.03


def test_p_is_corrected_for_the_number_of_pairs(generator):
    base = generator.uniform(0.5, 0.8, COUNT)
    names = ("a", "b", "c")
    tables = {name: table_of(base + generator.normal(0, 0.05, COUNT)) for name in names}
    pairs = compare_tables(tables, {}).pairs
    assert len(pairs) == 3
    smallest = min(pairs, key=lambda pair: pair["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    for pair in pairs:
        assert pair["p"] <= pair["p_holm"] <= 1


def test_image_without_a_score_is_left_out_of_the_pair():
    tables = {"one": table_of([np.nan, 0.5, 0.6]), "two": table_of([0.1, 0.4, 0.6])}
    (pair,) = compare_tables(tables, {}).pairs
    assert pair["images"] == 2
    assert pair["difference"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/version_0", "runs/b/version_0"], ["a", "b"]),
        (["runs/a/version_0", "runs/a/version_1"], ["version_0", "version_1"]),
        (["x/a/masks", "y/a/masks", "y/b/masks"], ["x/a", "y/a", "y/b"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    assert name_candidates([Path(path) for path in paths]) == names


def test_run_named_twice_is_an_error():
    with pytest.raises(InputError, match="named twice"):
        name_candidates([Path("runs/a"), Path("runs/../runs/a")])


@pytest.fixture
def run(make_run, tmp_path):
    return make_run(tmp_path / "run")


def test_masks_of_infer_are_the_run(run, phantom_root, tmp_path, run_command, capsys):
    images = phantom_root / "test" / "images"
    masks = tmp_path / "masks"
    command = ["infer", "--run", run, "--images", images, "--output", masks, "--device", "cpu"]
    assert run_command(*command) == 0
    output = tmp_path / "out"
    command = ["compare", "--runs", run, masks, "--output", output, "--device", "cpu"]
    assert run_command(*command) == 0
    assert "not distinguishable" in capsys.readouterr().out

    table = pd.read_csv(output / "paired.csv")
    assert table["run"].to_list() == pytest.approx(table["masks"].to_list())
    content = json.loads((output / "comparison.json").read_text())
    assert content["pairs"][0]["difference"] == pytest.approx(0)
    page = (output / "compare.html").read_text(encoding="utf-8")
    for stem in table["stem"]:
        assert f"<h3>{stem}</h3>" in page
    names = {path.name for path in output.iterdir()}
    assert names - {".ovseg_files"} == {
        "compare.html",
        "compare.png",
        "comparison.json",
        "paired.csv",
    }


def test_mistakes_are_one_sentence(run, phantom_root, tmp_path, save_png, run_command, capsys):
    masks = tmp_path / "masks"
    save_png(masks / "other.png", np.zeros((8, 8), np.uint8))
    for runs, more, message in (
        ([run], [], "1 run to compare, expected two or more"),
        ([run, masks], [], "images have no mask in"),
        ([masks, phantom_root / "test" / "masks"], [], "Add --data."),
    ):
        command = ["compare", "--runs", *runs, "--output", tmp_path / "out", *more]
        assert run_command(*command, "--device", "cpu") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_exact_masks_against_empty_ones(phantom_root, tmp_path, save_png, run_command):
    reference = phantom_root / "test" / "masks"
    empty = tmp_path / "empty"
    for path in reference.iterdir():
        with Image.open(path) as mask:
            shape = mask.size[::-1]
        save_png(empty / f"{path.stem}.png", np.zeros(shape, np.uint8))
    command = ["compare", "--runs", empty, reference, "--data", phantom_root]
    assert run_command(*command, "--output", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in content["ranking"]] == ["masks", "empty"]
    assert [row["mean"] for row in content["ranking"]] == [1.0, 0.0]


def test_masks_without_a_value_above_the_threshold_are_refused(
    phantom_root, tmp_path, save_png, run_command, capsys
):
    reference = phantom_root / "test" / "masks"
    small = tmp_path / "small"
    for path in reference.iterdir():
        with Image.open(path) as mask:
            save_png(small / f"{path.stem}.png", (np.array(mask.convert("L")) > 0).astype(np.uint8))
    command = ["compare", "--runs", small, reference, "--data", phantom_root]
    assert run_command(*command, "--output", tmp_path / "out") == 2
    assert (
        "above the threshold 127 (the largest is 1). Set --threshold 0." in capsys.readouterr().err
    )
    assert run_command(*command, "--output", tmp_path / "out", "--threshold", "0") == 0
