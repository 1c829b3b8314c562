"""Another tool's masks against ours."""

import numpy as np
import pytest

from ovseg.evaluation.compare import compare_masks


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


def test_paired_difference_by_hand(folders):
    output = folders / "out"
    summary = compare_masks(folders / "theirs", folders / "ours", folders / "masks", output)
    assert summary["images"] == 3
    assert summary["ours"] == 1
    assert summary["theirs"] == pytest.approx(2 / 3, abs=1e-4)
    assert summary["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert summary["ci95"] == pytest.approx([1 / 3, 1 / 3], abs=1e-4)
    names = {path.name for path in output.iterdir()}
    assert names == {"paired.csv", "paired.json", "paired.png", ".ovseg_files"}


def test_threshold_moves_their_lesion(folders):
    summary = compare_masks(
        folders / "theirs", folders / "ours", folders / "masks", folders / "out", threshold=50
    )
    assert summary["theirs"] == 1


def test_prediction_without_partner_is_named(folders, capsys, run_command):
    (folders / "ours" / "b.png").unlink()
    masks = ("--ours", folders / "ours", "--masks", folders / "masks")
    given = ("--predictions", folders / "theirs", "--output", folders / "out")
    assert run_command("compare_baseline", *given, *masks) == 2
    assert "1 of 3 predictions have no mask in" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_predictions_need_ours_and_masks(folders, capsys, run_command):
    given = ("--predictions", folders / "theirs", "--output", folders / "out")
    assert run_command("compare_baseline", *given) == 2
    assert "--predictions needs --ours and --masks" in capsys.readouterr().err
