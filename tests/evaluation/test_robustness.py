"""Disturbances do what they say, and are the same each time."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from ovseg.data.augment.calipers import YELLOWS, draw_caliper, find_calipers
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.robustness import DISTURBANCES


@pytest.fixture(scope="module")
def pair():
    image, mask = make_phantom(3, 128)
    marked = draw_caliper(image, ((30, 40), (90, 80)), YELLOWS[0])  # there is something to erase
    return marked, (mask > 0).astype(np.uint8)


@pytest.mark.parametrize("name", list(DISTURBANCES))
def test_disturbance_grows_with_its_level_and_is_the_same_each_time(name, pair):
    entry = DISTURBANCES[name]
    image, mask = pair
    before = image.copy()
    changes = []
    for level in entry.levels:
        changed, changed_mask = entry.change(image, mask, level, 7)
        again, _ = entry.change(image, mask, level, 7)
        assert np.array_equal(changed, again)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert changed_mask.shape == mask.shape
        assert set(np.unique(changed_mask)) <= {0, 1}
        changes.append(np.abs(changed.astype(int) - image).mean())
    assert np.array_equal(image, before)
    assert changes[0] > 0
    assert all(weaker < stronger for weaker, stronger in pairwise(changes))


def test_only_rotation_moves_the_mask(pair):
    image, mask = pair
    for name, entry in DISTURBANCES.items():
        _, changed = entry.change(image, mask, entry.levels[-1], 7)
        assert np.array_equal(changed, mask) == (name != "rotation")


def test_erased_calipers_leave_no_mark(pair):
    image, mask = pair
    assert find_calipers(image).any()
    changed, _ = DISTURBANCES["calipers erased"].change(image, mask, 1, 7)
    assert not find_calipers(changed).any()


def test_evaluation_with_disturbances(make_run, phantom_root, tmp_path, run_command):
    run = make_run(tmp_path / "run")
    command = ["evaluate", "--run", run, "--data", phantom_root, "--device", "cpu"]
    output = tmp_path / "out"
    assert run_command(*command, "--output", output, "--robustness", "2") == 0
    table = pd.read_csv(output / "robustness.csv")
    assert len(table) == 1 + sum(len(entry.levels) for entry in DISTURBANCES.values())
    assert table["disturbance"][0] == "none"
    assert (table["images"] <= 2).all()
    assert (output / "robustness.png").is_file()
    assert "Mean Dice under disturbances: none" in (output / "report.html").read_text(
        encoding="utf-8"
    )


def test_number_of_images_is_checked(make_run, phantom_root, tmp_path, run_command, capsys):
    run = make_run(tmp_path / "run")
    command = ["evaluate", "--run", run, "--data", phantom_root, "--device", "cpu"]
    assert run_command(*command, "--output", tmp_path / "out", "--robustness", "-1") == 2
    assert "robustness is -1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
