"""The page of an evaluation shows its numbers, and is one safe file."""

import json
import re
import shutil

import pandas as pd
import pytest

from ovseg import evaluate
from ovseg.evaluation.page import CASES_OF_A_KIND, choose_cases


@pytest.fixture(scope="module")
def folder(make_run, phantom_root, tmp_path_factory):
    """An evaluation of a tiny run. Not to be changed."""
    run = make_run(tmp_path_factory.mktemp("run"))
    output = tmp_path_factory.mktemp("out") / "evaluation"
    evaluate(run, "test", phantom_root, output, device="cpu")
    return output


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_numbers_of_the_page_are_those_of_the_summary(folder, page):
    summary = json.loads((folder / "summary.json").read_text())
    dice = summary["scores"]["dice_original"]
    assert f"mean Dice<b>{dice['mean']:.3f}</b>" in page
    assert f"median Dice<b>{dice['median']:.3f}</b>" in page
    assert f"pooled IoU<b>{summary['scores']['iou_pooled_original']:.3f}</b>" in page
    assert f"{dice['ci95'][0]:.3f} to {dice['ci95'][1]:.3f}" in page
    for row in summary["failures"]:
        if row["images"]:
            assert f"<td>{row['kind']}</td>" in page


def test_every_image_is_in_the_table(folder, page):
    for stem in pd.read_csv(folder / "per_image.csv")["stem"]:
        assert f"<td>{stem}</td>" in page


def test_page_needs_nothing_else(page):
    assert "http:" not in page
    assert "https:" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/|#)[^"]*', page) == []


def test_minimal_report_has_no_page(make_run, phantom_root, tmp_path, run_command):
    run = make_run(tmp_path / "run")
    command = ["evaluate", "--run", run, "--data", phantom_root, "--device", "cpu"]
    assert run_command(*command, "--output", tmp_path / "out", "--report", "minimal") == 0
    assert (tmp_path / "out" / "summary.json").is_file()
    assert not (tmp_path / "out" / "report.html").exists()
    assert run_command(*command, "--output", tmp_path / "other", "--report", "long") == 2


def test_name_of_an_image_is_escaped(make_run, phantom_root, tmp_path, run_command):
    name = "<script>alert(1)<"
    root = shutil.copytree(phantom_root, tmp_path / "tree")
    (root / "manifest.json").unlink()
    first = min(path.stem for path in (root / "test" / "images").iterdir())
    for kind in ("images", "masks"):
        path = next((root / "test" / kind).glob(f"{first}.*"))
        path.rename(path.with_name(f"{name}{path.suffix}"))
    run = make_run(tmp_path / "run")
    command = ["evaluate", "--run", run, "--data", root, "--device", "cpu"]
    assert run_command(*command, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert name not in page


def test_worst_cases_of_each_kind_come_first():
    count = 2 * CASES_OF_A_KIND
    table = pd.DataFrame(
        {
            "stem": [str(number) for number in range(count + 2)],
            "dice_original": [0.9, None] + [0.7 - 0.01 * number for number in range(count)],
            "failure": ["good", "good"] + ["part of it"] * (count - 1) + ["missed"],
        }
    )
    chosen = choose_cases(table)
    assert list(chosen) == [
        f"part of it: {count - 1} of {count + 2} images",
        f"missed: 1 of {count + 2} images",
        "median cases",
        "best cases",
    ]
    worst = [row["stem"] for row in next(iter(chosen.values()))]
    assert worst == [str(count - number) for number in range(CASES_OF_A_KIND)]
    # Both maps of image 1 are empty, which is exact.
    assert [row["stem"] for row in chosen["best cases"]][:2] == ["1", "0"]


def test_flags_and_temperature_are_sentences_of_the_page(
    make_run, phantom_root, tmp_path, run_command
):
    run = make_run(tmp_path / "run")
    command = ["--run", run, "--data", phantom_root, "--device", "cpu"]
    assert run_command("postprocess", *command, "--failure_dice", "1") == 0
    assert run_command("evaluate", *command, "--output", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    text = " ".join((tmp_path / "out" / "report.html").read_text(encoding="utf-8").split())
    flags = summary["flags"]
    assert flags["failures"] == 3
    assert f"Here {flags['flagged']} of 3 images ({flags['flagged_share']:.0%}) have a" in text
    assert f"{flags['flagged_failures']} of the 3 with a Dice below 1" in text
    error = summary["calibration"]["error"]
    raw = summary["calibration"]["raw"]["error"]
    temperature = summary["postprocessing"]["temperature"]
    assert f"error {error:.4f} at temperature {temperature:g}, {raw:.4f} without it" in text


def test_every_case_has_its_map_of_uncertainty(page):
    assert page.count('class="uncertainty"') == page.count('class="probabilities"') > 0
    assert 'data-class="show-uncertainty"' in page
