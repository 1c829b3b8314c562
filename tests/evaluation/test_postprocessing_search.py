"""Post-processing chosen on validation alone, and used from then on."""

import json
import shutil
from dataclasses import replace

import albumentations as A
import numpy as np
import pandas as pd
import pytest

from ovseg.cli.main import main
from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.errors import InputError
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import (
    GAIN,
    choose_flags,
    find_simplest,
    list_candidates,
    print_search,
    search_postprocessing,
    seen_flips,
    try_candidates,
)
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.metrics import SCORES


@pytest.fixture(scope="module")
def untuned(make_run, tmp_path_factory):
    """Trained with flips. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"), augmentation="flips")


@pytest.fixture
def run(untuned, tmp_path):
    """A copy to be tuned."""
    return shutil.copytree(untuned, tmp_path / "run")


def run_tune(run, *more: str) -> int:
    return main(["postprocess", "--run", str(run), "--device", "cpu", *more])


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_chosen_postprocessing_scores_in_evaluate_what_tune_says(run, metric, capsys):
    assert run_tune(run, "--metric", metric) == 0
    found = json.loads((run / "postprocessing.json").read_text())
    assert found["checkpoint_sha256"] == checkpoint_digest(run / "checkpoints" / "last.ckpt")
    assert (
        found["split"] == "valid"
        and found["images"] == 3
        and found["members"] == [str(run / "checkpoints" / "last.ckpt")]
    )
    scores = [candidate["score"] for candidate in found["candidates"]]
    assert len(scores) == 2 * 9 * 4 * 2 and scores == sorted(scores, reverse=True)
    assert scores[0] - GAIN <= found["score"] <= scores[0] and found["plain_score"] < found["score"]
    for more, expected in (((), found["score"]), (("--no-postprocessing",), found["plain_score"])):
        output = run / f"out{len(more)}"
        where = ["--run", str(run), "--split", "valid", "--output", str(output), "--device", "cpu"]
        assert main(["evaluate", *where, *more]) == 0
        table = pd.read_csv(output / "per_image.csv")
        assert table[f"{metric}_original"].mean() == pytest.approx(expected, abs=1e-6)
    printed = capsys.readouterr().out
    assert "144 tried" in printed and "chosen" in printed and "best 5" in printed


def test_choosing_twice_gives_the_same(run):
    assert search_postprocessing(run, device="cpu") == search_postprocessing(run, device="cpu")


def test_every_candidate_is_counted_as_its_labels_are(untuned):
    evaluation = Evaluation(untuned, "valid", device="cpu")
    candidates = [Postprocessing(), Postprocessing(("horizontal",), 0.3, keep_largest=True)]
    counts = try_candidates(evaluation, candidates, {})
    assert counts.shape == (2, 3, 4) and (counts.sum(2) == 64 * 64).all()
    for candidate, rows in zip(candidates, counts, strict=True):
        evaluation.postprocessing = candidate
        table = evaluation.run()[0]
        assert rows[:, 0].tolist() == table["hit_pixels_original"].to_list()
        assert rows[:, :2].sum(1).tolist() == table["pred_pixels_original"].to_list()
        assert rows[:, ::2].sum(1).tolist() == table["lesion_pixels_original"].to_list()


def test_simpler_wins_where_the_gain_is_small():
    candidates = [
        Postprocessing(),
        Postprocessing(threshold=0.4),
        Postprocessing(threshold=0.4, fill_holes=True),
    ]
    assert find_simplest(candidates, [0.8, 0.8005, 0.8009]) == 0
    assert find_simplest(candidates, [0.8, 0.8105, 0.811]) == 1
    assert find_simplest(candidates, [0.8, 0.805, 0.811]) == 2
    assert (
        find_simplest([Postprocessing(threshold=0.3), Postprocessing(threshold=0.4)], [0.8, 0.8001])
        == 1
    )


def test_candidates_are_all_different_and_hold_the_plain_one():
    for flips, classes, count in [((), 1, 72), (("horizontal",), 1, 144), (("horizontal",), 5, 16)]:
        candidates = list_candidates(flips, classes)
        assert len(set(candidates)) == len(candidates) == count and Postprocessing() in candidates


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        ("none", ()),
        ("flips", ("horizontal", "vertical")),
        ("standard", ("horizontal",)),
        ("ultrasound_strong", ("horizontal",)),
    ],
)
def test_flips_are_those_of_the_augmentation(augmentation, expected):
    assert seen_flips(augmentation) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([A.D4(p=1)], ("horizontal", "vertical")),
        ([A.OneOf([A.VerticalFlip(p=1), A.RandomGamma(p=1)], p=0.5)], ("vertical",)),
        ([A.HorizontalFlip(p=0), A.RandomRotate90(p=1)], ()),
        ([A.OneOf([A.HorizontalFlip(p=1)], p=0)], ()),
    ],
)
def test_flips_are_found_inside_a_file(tmp_path, steps, expected):
    A.save(A.Compose(steps), tmp_path / "own.yaml", data_format="yaml")
    assert seen_flips(str(tmp_path / "own.yaml")) == expected


def test_augmentation_that_is_gone_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert seen_flips(str(tmp_path / "gone.yaml")) == ()
    assert "No flips are tried" in caplog.text and "gone.yaml" in caplog.text


def test_test_split_is_refused(run, capsys):
    assert run_tune(run, "--split", "test") == 2
    assert "test scores would no longer be those of unseen images" in capsys.readouterr().err
    assert not (run / "postprocessing.json").exists()


def test_other_mistakes_are_one_line(run, capsys):
    assert (
        run_tune(run, "--metric", "speed") == 2
        and "Unknown metric 'speed'" in capsys.readouterr().err
    )
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert (
        run_tune(checkpoint) == 2
        and "has no place for postprocessing.json" in capsys.readouterr().err
    )


def test_split_without_a_lesion_is_an_error(run, tmp_path, save_png):
    for number in range(2):
        save_png(
            tmp_path / "d" / "valid" / "images" / f"{number}.png",
            np.full((40, 40, 3), 90, np.uint8),
        )
        save_png(tmp_path / "d" / "valid" / "masks" / f"{number}.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="No image of valid in .* has a lesion"):
        search_postprocessing(run, data=tmp_path / "d", device="cpu")


def test_postprocessing_of_categories_has_no_threshold(make_run, tmp_path):
    run = make_run(tmp_path / "run", classes=5, augmentation="flips")
    found = search_postprocessing(run, device="cpu")
    assert len(found["candidates"]) == 16 and found["postprocessing"]["threshold"] == 0.5
    assert (
        Evaluation(run, "test", device="cpu").run()[1]["postprocessing"] == found["postprocessing"]
    )


def test_earlier_evaluation_with_another_postprocessing_is_kept(run, capsys):
    where = ["--run", str(run), "--device", "cpu"]
    assert main(["evaluate", *where]) == 0
    assert run_tune(run) == 0
    assert main(["evaluate", *where]) == 2 and "add --overwrite" in capsys.readouterr().err
    assert main(["evaluate", *where, "--overwrite"]) == 0
    assert main(["evaluate", *where]) == 0


def test_summary_from_before_there_were_postprocessings_counts_as_plain(run):
    where = ["--run", str(run), "--device", "cpu"]
    assert main(["evaluate", *where]) == 0
    path = run / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: value for name, value in summary.items() if name != "postprocessing"})
    )
    assert main(["evaluate", *where]) == 0 and json.loads(path.read_text())[
        "postprocessing"
    ] == to_dict(Postprocessing())


def test_table_names_the_five_best(capsys):
    candidates = [
        {**to_dict(postprocessing), "score": 0.5} for postprocessing in list_candidates((), 1)
    ]
    best = {
        "postprocessing": to_dict(Postprocessing(threshold=0.2)),
        "score": 0.5,
        "plain_score": 0.4,
        "metric": "mean Dice",
    }
    print_search({**best, "images": 3, "split": "valid", "flags": None, "candidates": candidates})
    printed = capsys.readouterr().out
    assert printed.count("best ") == 5 and "0.4000" in printed and "threshold 0.2" in printed
    assert "No image of valid has a Dice below 0.7" in printed


def test_score_that_is_best_low_is_minimised(run, monkeypatch):
    highest = search_postprocessing(run, device="cpu")["candidates"][0]["score"]
    lowest_first = replace(SCORES["dice"], best="min")
    monkeypatch.setitem(SCORES, "dice", lowest_first)
    ranking = search_postprocessing(run, device="cpu")["candidates"]
    assert ranking[-1]["score"] == highest
    assert ranking[0]["score"] == min(candidate["score"] for candidate in ranking)


def cross_entropy(probs: np.ndarray, lesion: np.ndarray) -> float:
    of_reference = np.where(lesion, probs, 1 - probs).clip(1e-7, 1)
    return float(-np.log(of_reference, dtype=np.float64).mean())


def test_temperature_lowers_the_cross_entropy_and_changes_no_mask(run):
    found = search_postprocessing(run, device="cpu")
    chosen = Postprocessing(**found["postprocessing"])
    assert chosen.temperature != 1
    evaluation = Evaluation(run, "valid", device="cpu")
    assert evaluation.postprocessing == chosen
    before = []
    after = []
    for stem in evaluation.originals.pairs:
        probs = evaluation.predict_again(stem)
        lesion = evaluation.originals.mask(stem) > 0
        before.append(cross_entropy(probs[0], lesion))
        after.append(cross_entropy(chosen.calibrate(probs)[0], lesion))
    assert np.mean(after) < np.mean(before)

    table, summary = evaluation.run()
    evaluation.postprocessing = replace(chosen, temperature=1.0)
    plain_table, plain_summary = evaluation.run()
    assert table["pred_pixels_original"].equals(plain_table["pred_pixels_original"])
    assert not table["confidence"].equals(plain_table["confidence"])
    assert summary["calibration"]["raw"] == plain_summary["calibration"]["raw"]
    assert summary["calibration"]["error"] != summary["calibration"]["raw"]["error"]
    assert plain_summary["calibration"]["error"] == plain_summary["calibration"]["raw"]["error"]


def test_flags_find_the_share_of_failures_that_was_asked_for(run, capsys):
    assert run_tune(run, "--failure_dice", "1", "--flag_recall", "0.5") == 0
    found = json.loads((run / "postprocessing.json").read_text())
    flags = found["flags"]
    # All three images fail: two of them are at least half.
    assert (flags["images"], flags["failures"], flags["flagged_failures"]) == (3, 3, 2)
    assert (flags["flagged"], flags["failure_dice"]) == (2, 1.0)
    assert found["postprocessing"]["flag_confidence"] == flags["confidence"]
    assert "Flags: 2 of 3 images (67%)" in " ".join(capsys.readouterr().out.split())
    table, summary = Evaluation(run, "valid", device="cpu").run()
    assert summary["flags"] == flags
    assert table["flagged"].sum() == 2
    assert table.loc[table["flagged"], "confidence"].max() <= flags["confidence"]


def test_without_a_failure_no_picture_is_flagged(untuned):
    # All is lesion, so each image has some overlap.
    everything = Postprocessing(threshold=1e-6, failure_dice=1e-4)
    evaluation = Evaluation(untuned, "valid", device="cpu")
    assert choose_flags([evaluation], everything, 0.9) == (everything, None)
    table, summary = evaluation.run()
    assert summary["flags"] is None
    assert "flagged" not in table


@pytest.mark.parametrize("option", ["--failure_dice", "--flag_recall"])
def test_share_out_of_range_is_one_line(run, option, capsys):
    for value in ("0", "1.5"):
        assert run_tune(run, option, value) == 2
        assert f"error: {option} is {value}, expected a number above" in capsys.readouterr().err
    assert not (run / "postprocessing.json").exists()
