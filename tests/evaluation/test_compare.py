"""Runs and folders of masks against each other: ranking, verdicts, page."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ovseg.evaluation.compare import compare_tables, describe_method, format_p

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


# Verdicts


def test_candidates_of_the_same_quality_are_not_distinguishable(generator):
    base = generator.uniform(0.6, 0.9, COUNT)
    tables = {
        "one": table_of(base + generator.normal(0, 0.05, COUNT)),
        "two": table_of(base + generator.normal(0, 0.05, COUNT)),
    }
    comparison = compare_tables(tables, {})
    (pair,) = comparison.pairs
    assert not pair["distinguishable"]
    assert "are not distinguishable on these images" in pair["verdict"]
    low, high = pair["ci95"]
    assert f"(95 % interval {low:.3f} to {high:.3f}, p = {pair['p']:.3f})" in pair["verdict"]
    assert comparison.intervals == "images"


def test_better_candidate_comes_first_and_is_called_better():
    dice = np.linspace(0.5, 0.8, COUNT)
    tables = {"worse": table_of(dice), "better": table_of(dice + 0.05)}
    comparison = compare_tables(tables, {})
    assert [row["name"] for row in comparison.ranking] == ["better", "worse"]
    (pair,) = comparison.pairs
    assert (pair["better"], pair["worse"]) == ("better", "worse")
    assert pair["difference"] == pytest.approx(0.05)
    assert (pair["higher"], pair["lower"], pair["images"]) == (COUNT, 0, COUNT)
    assert pair["verdict"] == (
        "better is better than worse on these images: its mean Dice is 0.050 higher "
        "(95 % interval 0.050 to 0.050, p < 0.001)."
    )


def test_equal_candidates_are_called_equal():
    tables = {"one": table_of([0.5, 0.6]), "two": table_of([0.5, 0.6])}
    (pair,) = compare_tables(tables, {}).pairs
    assert pair["verdict"] == "one and two have the same Dice on every image."


def test_one_image_is_too_few():
    tables = {"one": table_of([0.9]), "two": table_of([0.1])}
    (pair,) = compare_tables(tables, {}).pairs
    assert pair["verdict"] == "There are too few images to tell one and two apart."


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.00099, "p < 0.001"), (0.0123, "p = 0.012"), (0.04957, "p = 0.050"), (1, "p = 1.000")],
)
def test_p_is_written_as_papers_do(p, text):
    assert format_p(p) == text


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


def test_p_is_corrected_for_the_number_of_pairs_and_that_is_said(generator):
    base = generator.uniform(0.5, 0.8, COUNT)
    names = ("a", "b", "c")
    tables = {name: table_of(base + generator.normal(0, 0.05, COUNT)) for name in names}
    comparison = compare_tables(tables, {})
    ordered = sorted(comparison.pairs, key=lambda pair: pair["p"])
    raw = [pair["p"] for pair in ordered]
    expected = np.minimum(1, np.maximum.accumulate([3 * raw[0], 2 * raw[1], raw[2]]))
    assert [pair["p_holm"] for pair in ordered] == pytest.approx(expected)
    assert "corrected for the 3 comparisons (Holm)" in describe_method(comparison)


def test_one_pair_needs_no_correction():
    comparison = compare_tables({"one": table_of([0.5, 0.7]), "two": table_of([0.6, 0.6])}, {})
    assert comparison.pairs[0]["p_holm"] == comparison.pairs[0]["p"]
    assert "Holm" not in describe_method(comparison)


def test_false_alarms_count_where_the_reference_is_empty():
    """Without a lesion and a prediction there is no Dice; a false alarm there has 0."""
    tables = {"one": table_of([np.nan, 0.5, 0.6]), "two": table_of([0.0, 0.7, 0.6])}
    comparison = compare_tables(tables, {})
    (pair,) = comparison.pairs
    assert pair["images"] == 3
    assert pair["better"] == "one"
    assert pair["difference"] == pytest.approx((1.0 - 0.2) / 3)
    assert [row["mean"] for row in comparison.ranking] == pytest.approx([0.7, 1.3 / 3])


# The command, on phantoms


@pytest.fixture
def run(make_run, tmp_path):
    return make_run(tmp_path / "run")


def test_runs_with_other_images_are_compared_on_the_common_ones(
    make_run, run, phantom_root, tmp_path, run_command, capsys
):
    stem = next((phantom_root / "test" / "images").iterdir()).stem
    other = make_run(tmp_path / "other", exclude=[stem])
    command = ["compare", "--runs", run, other, "--output", tmp_path / "out", "--device", "cpu"]
    assert run_command(*command) == 2
    message = f"1 of 3 images are not in the test images of {other}: {stem}. Add them, or compare"
    assert message in capsys.readouterr().err
    for runs in ([run, other], [other, run]):
        command[2:4] = runs
        assert run_command(*command, "--common", "--overwrite") == 0
        content = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert (content["images"], content["left_out"]) == (2, [stem])
        assert content["leakage"] is False


def test_masks_of_infer_are_the_run(run, phantom_root, tmp_path, run_command, capsys):
    images = phantom_root / "test" / "images"
    masks = tmp_path / "masks"
    command = ["infer", "--run", run, "--images", images, "--output", masks, "--device", "cpu"]
    assert run_command(*command) == 0
    output = tmp_path / "out"
    command = ["compare", "--runs", run, f"$ of [infer]={masks}", "--output", output]
    assert run_command(*command, "--device", "cpu") == 0
    verdict = "run and $ of [infer] have the same Dice on every image."
    assert verdict in capsys.readouterr().out

    table = pd.read_csv(output / "paired.csv")
    assert table["run"].to_list() == pytest.approx(table["$ of [infer]"].to_list())
    content = json.loads((output / "comparison.json").read_text())
    assert content["candidates"] == {"run": str(run), "$ of [infer]": str(masks)}
    assert content["pairs"][0]["difference"] == pytest.approx(0)
    page = (output / "compare.html").read_text(encoding="utf-8")
    assert f"<li>{verdict}</li>" in page
    for stem in table["stem"]:
        assert f"<h3>{stem}</h3>" in page
    names = {path.name for path in output.iterdir()}
    assert names - {".ovseg_files"} == {
        "compare.html",
        "compare.png",
        "comparison.json",
        "paired.csv",
    }


def test_run_is_scored_on_the_common_images(run, phantom_root, tmp_path, run_command, capsys):
    masks = tmp_path / "masks"
    shutil.copytree(phantom_root / "test" / "masks", masks)
    missing = sorted(masks.iterdir())[0]
    missing.unlink()
    command = ["compare", "--runs", run, masks, "--output", tmp_path / "out", "--device", "cpu"]
    assert run_command(*command, "--common") == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["left_out"] == [missing.stem]
    assert [row["images"] for row in content["ranking"]] == [2, 2]
    line = "Only the 2 images that all have are compared: 1 of 3 are left out"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "compare.html").read_text()


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
    assert content["references"] == f"test of {phantom_root}"


def test_mistakes_are_one_sentence(run, phantom_root, tmp_path, save_png, run_command, capsys):
    masks = tmp_path / "masks"
    save_png(masks / "other.png", np.zeros((8, 8), np.uint8))
    references = phantom_root / "test" / "masks"
    for runs, more, message in (
        ([run], [], "1 run to compare, expected two or more"),
        ([run, masks], [], "So none is left to compare. Name each mask as its image"),
        ([masks, references], [], "Add --data DATASET, or --masks FOLDER"),
        ([run, masks], ["--masks", references], "run: a run needs pictures, and --masks"),
        ([run, phantom_root], [], "is no run (it has no checkpoints/), and no mask lies in it"),
        ([masks, run], ["--masks", references, "--data", phantom_root], "Leave one out"),
    ):
        command = ["compare", "--runs", *runs, "--output", tmp_path / "out", *more]
        assert run_command(*command, "--device", "cpu") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
