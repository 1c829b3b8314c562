"""The page of an evaluation shows its numbers, and is one safe file."""

import json
import re
import shutil

import pandas as pd
import pytest

from ovseg import evaluate
from ovseg.core.runs import RunFolder
from ovseg.evaluation.page import CASES_OF_A_KIND, COLUMNS, choose_cases, find_worst, read_curves
from pages import PageText

LOSSES = "epoch,loss,val_loss\n1,0.9,0.8\n2,0.5,0.6\n3,0.4,0.7\n"
METRICS = "epoch,dice_coef,val_dice\n1,0.1,0.2\n2,0.5,0.4\n3,0.6,0.3\n"


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A tiny run with the files that `train` writes. Not to be changed."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    run = RunFolder(folder)
    run.curves("losses", ".csv").write_text(LOSSES)
    run.curves("metrics", ".csv").write_text(METRICS)
    run.config.write_text("seed_everything: 11\ndata:\n  seed: 12\n")
    record = {
        "command": "ovseg train --config unet --data.root my_data",
        "started": "2026-11-02T10:00:00+0100",
        "resumed_from": None,
        "versions": {"torch": "2.14.1"},
        "host": {"system": "Linux", "processor": "Z80", "gpus": [], "name": "hidden-name"},
        "git": {"commit": "abc123", "dirty": True},
    }
    run.record.write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def folder(run, phantom_root, tmp_path_factory):
    """An evaluation of a tiny run. Not to be changed."""
    output = tmp_path_factory.mktemp("out") / "evaluation"
    evaluate(run, "test", phantom_root, output, device="cpu")
    return output


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(page):
    return PageText(page)


def places(value, count=3):
    """A number as the page has it."""
    return "" if value is None or value != value else f"{value:.{count}f}"


def test_summary_in_words_has_the_numbers_of_the_summary(summary, shown):
    dice = summary["scores"]["dice_original"]
    failed = sum(row["images"] for row in summary["failures"] if row["kind"] != "good")
    assert f"outlined lesions in {summary['images']} ultrasound images" in shown.text
    assert f"mean Dice is {dice['mean']:.3f}" in shown.text
    low, high = dice["ci95"]
    assert f"is between {low:.3f} and {high:.3f}" in shown.text
    assert f"fails in {failed} of {summary['images']} images" in shown.text
    worst = max(summary["failures"][1:], key=lambda row: row["images"])
    assert f'most frequent failure is "{worst["kind"]}" ({worst["images"]} images' in shown.text
    assert "do not use it to diagnose" in shown.text


def test_table_of_scores_is_that_of_the_summary(summary, shown):
    rows = {row[0]: row[1:] for row in shown.table("score", "mean")}
    names = {
        "Dice": "dice_original",
        "IoU": "iou_original",
        "sensitivity": "sensitivity_original",
        "specificity": "specificity_original",
        "precision": "precision_original",
        "HD95, pixels": "hd95",
        "ASSD, pixels": "assd",
        "NSD at 5 pixels": "nsd",
    }
    for label, name in names.items():
        score = summary["scores"][name]
        count = 1 if name in ("hd95", "assd") else 3
        mean, interval, deviation, median, quartiles, images = rows[label]
        assert mean == places(score["mean"], count)
        assert interval == " to ".join(places(bound, count) for bound in score["ci95"])
        assert deviation == places(score["sd"], count)
        assert median == places(score["median"], count)
        assert quartiles == " to ".join(places(score[name], count) for name in ("q1", "q3"))
        assert images == str(score["images"])
    for label, name in (("IoU pooled", "iou_pooled"), ("mIoU pooled", "miou_pooled")):
        assert rows[label][0] == places(summary["scores"][f"{name}_original"])


def test_tables_of_failures_and_subgroups_are_those_of_the_summary(summary, shown):
    kinds = {row[0]: row[1:] for row in shown.table("kind", "images")}
    expected = {}
    for row in summary["failures"]:
        if row["images"]:
            expected[row["kind"]] = [
                str(row["images"]),
                f"{100 * row['share']:.0f} %",
                row["means"],
            ]
    assert kinds == expected

    subgroups = shown.table("by", "subgroup")
    assert len(subgroups) == len(summary["subgroups"])
    for cells, row in zip(subgroups, summary["subgroups"], strict=True):
        interval = " to ".join(places(bound) for bound in row["ci95"] or [])
        numbers = [str(row["images"]), str(row["failed"]), places(row["mean"]), interval]
        assert cells == [row["by"], row["name"], *numbers, places(row["median"])]


def test_every_image_is_in_the_table_with_its_numbers(folder, shown):
    table = pd.read_csv(folder / "per_image.csv", dtype={"stem": str, "category": str})
    rows = shown.table("image", "category")
    assert len(rows) == len(table)
    for cells, row in zip(rows, table.to_dict("records"), strict=True):
        expected = []
        for name in [name for name in COLUMNS if name in table]:
            is_text = name in ("stem", "category", "failure")
            expected.append(row[name] if is_text else places(row[name], 1 if name == "hd95" else 3))
        assert cells == expected


def test_figures_are_text_with_the_main_numbers_as_alternative(summary, page, shown):
    dice = summary["scores"]["dice_original"]
    labels = re.findall(r'<figure class="drawing" role="img" aria-label="([^"]*)"', page)
    labels = [" ".join(label.split()) for label in labels]
    histogram, kinds, subgroups, reliability, coverage, losses, metrics = labels
    assert f"mean {dice['mean']:.3f}, median {dice['median']:.3f}" in histogram
    for row in summary["failures"]:
        assert (f"{row['kind']} {row['images']}" in kinds) == bool(row["images"])
    for row in summary["subgroups"]:
        if row["mean"] is not None:
            assert f"{row['by']} {row['name']} {row['mean']:.3f}" in subgroups
    assert f"error {summary['calibration']['error']:.3f}" in reliability
    assert f"area {summary['confidence']['area']:.3f}" in coverage
    assert losses.startswith("losses by epoch") and metrics.startswith("metrics by epoch")
    assert "share of the images kept, the surest first" in shown.text  # an axis


def test_training_is_drawn_with_the_evaluated_epoch(summary, shown):
    assert f"epoch; grey: the evaluated one, {summary['epoch']}" in shown.text
    for name in ("loss, training", "loss, validation", "dice_coef, training", "dice, validation"):
        assert name in shown.text


def test_lone_checkpoint_has_no_curves_and_no_training(run, phantom_root, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "lone.ckpt")
    evaluate(lone, "test", phantom_root, tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="training"' not in page
    assert "<h3>Training</h3>" not in page


@pytest.mark.parametrize("content", [b"", b"epoch\n1\n", b"a,b\n1,2\n", b'epoch,loss\n"', b"\xff"])
def test_damaged_curves_are_left_out(tmp_path, content):
    run = RunFolder(tmp_path)
    run.curves("losses", ".csv").write_bytes(content)
    run.curves("metrics", ".csv").write_text(METRICS)
    assert list(read_curves(run)) == ["metrics"]


def test_model_card_tells_how_the_run_was_made(shown, page):
    for text in (
        "ovseg train --config unet --data.root my_data",
        "Z80; Linux",
        "torch 2.14.1",
        "abc123, with changes",
        "seed_everything 11, data.seed 12",
        "train 14, valid 3, test 3",
        "It is no medical device",
    ):
        assert text in shown.text
    assert "hidden-name" not in page


@pytest.mark.parametrize("content", ["", "[]", '{"command": 1}', "{"])
def test_damaged_record_is_left_out(run, phantom_root, tmp_path, content):
    damaged = shutil.copytree(run, tmp_path / "run")
    RunFolder(damaged).record.write_text(content)
    RunFolder(damaged).config.write_text("a: [")
    evaluate(damaged, "test", phantom_root, tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h3>Training</h3>" not in page


def test_worst_are_the_most_frequent_kind_and_the_size_that_fails_most_often():
    summary = {
        "failures": [
            {"kind": "good", "images": 90},
            {"kind": "missed", "images": 2},
            {"kind": "split", "images": 5},
        ],
        "subgroups": [
            {"by": "lesion", "name": "none", "images": 1, "failed": 1},
            {"by": "lesion", "name": "small", "images": 5, "failed": 2},
            {"by": "lesion", "name": "tiny", "images": 1, "failed": 1},
            {"by": "lesion", "name": "large", "images": 90, "failed": 5},
            {"by": "doppler", "name": "Doppler", "images": 1, "failed": 1},
        ],
    }
    worst = find_worst(summary)
    assert worst["kind"]["kind"] == "split"
    assert worst["size"]["name"] == "small"
    nothing = {"failures": summary["failures"][:1], "subgroups": []}
    assert find_worst(nothing) == {"kind": None, "size": None}


def test_categories_are_counted_by_reference_and_prediction(make_run, phantom_root, tmp_path):
    run = make_run(tmp_path / "run", classes=5)
    evaluate(run, "train", phantom_root, tmp_path / "out", device="cpu")
    shown = PageText((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    table = pd.read_csv(tmp_path / "out" / "per_image.csv", keep_default_na=False)
    expected = table.groupby(["category", "pred_category"]).size().to_dict()
    rows = next(rows for rows in shown.tables if rows[0][:3] == ["", "cyst", "haze"])
    counted = {}
    for name, *cells in rows[1:]:
        for predicted, cell in zip(rows[0][1:], cells, strict=True):
            if cell:
                counted[name, predicted] = int(cell)
    assert counted == expected


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


def test_name_of_a_category_is_escaped_in_table_and_figure(run, phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "tree")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["categories"] = ["<b>$x$", *manifest["categories"][1:]]
    (root / "manifest.json").write_text(json.dumps(manifest))
    evaluate(run, "train", root, tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<b>$x$" not in page
    assert "category: &lt;b&gt;$x$" in page  # in the figure of subgroups


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
    assert (
        f"{flags['flagged_failures']} of the 3 with a Dice below 1, for which flags were chosen,"
        in text
    )
    error = summary["calibration"]["error"]
    raw = summary["calibration"]["raw"]["error"]
    temperature = summary["postprocessing"]["temperature"]
    assert f"error {error:.4f} at temperature {temperature:g}, {raw:.4f} without it" in text


def test_every_case_has_its_map_of_uncertainty(page):
    assert page.count('class="uncertainty"') == page.count('class="probabilities"') > 0
    assert 'data-class="show-uncertainty"' in page
