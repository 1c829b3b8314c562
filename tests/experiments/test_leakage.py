"""Measuring the leak: sets of one size that differ only in relatives, and results to continue."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from ovseg.core.errors import InputError
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.experiments.leakage import draw_sets, measure_leakage, summarise_leakage


@pytest.fixture(scope="module")
def grouped_root(tmp_path_factory):
    """40 phantoms, each with the next one as its near-duplicate. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "grouped"
    write_phantoms(root, 40, size=48)
    change_items(root, lambda items: [{**item, "group": i // 2} for i, item in enumerate(items)])
    return root


@pytest.fixture(scope="module")
def measured(grouped_root, tmp_path_factory):
    """The results of one seed. Not to be changed."""
    output = tmp_path_factory.mktemp("results") / "out"
    measure_leakage(grouped_root, output, seeds=1, image_size=32, epochs=1, device="cpu")
    return output


def change_items(root, change) -> None:
    """Replace the images that a dataset's manifest lists."""
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["items"] = change(manifest["items"])
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("seed", range(3))
def test_sets_are_of_one_size_and_differ_in_relatives_only(seed):
    groups = np.random.default_rng(seed).integers(0, 60, 100)
    sets = draw_sets(groups, [0] * 100, seed)
    assert len({len(train) for train, _ in sets.values()}) == 1
    related = {}
    for name, (train, test) in sets.items():
        assert not set(train) & set(test)
        related[name] = np.isin(groups[test], groups[train]).mean()
    assert related["random"] > 0
    assert related["clean"] == related["groups"] == 0

    random_train, random_test = sets["random"]
    clean_train, clean_test = sets["clean"]
    assert np.array_equal(random_test, clean_test)
    left_out = set(clean_train) - set(random_train)
    added = set(random_train) - set(clean_train)
    assert len(left_out) == len(added)
    assert all(groups[i] in groups[random_test] for i in added)


def test_second_call_continues_and_keeps_what_is_done(
    grouped_root, measured, tmp_path, run_command, capsys
):
    output = shutil.copytree(measured, tmp_path / "out")
    first = pd.read_csv(output / "images.csv")
    options = ("--epochs", "1", "--image_size", "32", "--device", "cpu", "--seeds", "2")
    assert run_command("measure_leakage", "--data", grouped_root, "--output", output, *options) == 0

    both = pd.read_csv(output / "images.csv")
    assert both[: len(first)].equals(first)
    assert set(both["seed"]) == {0, 1}
    by_training = pd.read_csv(output / "leakage.csv")
    assert list(by_training["split"]) == ["random", "clean", "groups"] * 2
    summary = json.loads((output / "leakage.json").read_text())
    assert summary["differences"]["random - groups, by split"]["ci95"] is not None
    assert (output / "leakage.png").exists()
    assert "random - clean, all" in capsys.readouterr().out


def test_dataset_without_groups_is_refused(phantom_root, tmp_path):
    with pytest.raises(InputError, match="has no manifest.json with groups"):
        measure_leakage(phantom_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_image_size_that_is_no_multiple_of_16_is_refused(grouped_root, tmp_path):
    with pytest.raises(InputError, match="--image_size 50 a multiple of 16"):
        measure_leakage(grouped_root, tmp_path / "out", image_size=50)
    assert not (tmp_path / "out").exists()


def test_small_dataset_is_refused(grouped_root, tmp_path):
    few = shutil.copytree(grouped_root, tmp_path / "few")
    change_items(few, lambda items: items[:20])
    with pytest.raises(InputError, match="has 20 images, too few"):
        measure_leakage(few, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_something_else_is_refused(grouped_root, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        measure_leakage(grouped_root, tmp_path)


def test_folder_of_other_settings_is_refused(grouped_root, measured):
    with pytest.raises(InputError, match="holds results of other settings"):
        measure_leakage(grouped_root, measured, image_size=32, epochs=2, device="cpu")


def test_folder_of_other_groups_is_refused(grouped_root, measured, tmp_path):
    regrouped = shutil.copytree(grouped_root, tmp_path / "regrouped")
    change_items(regrouped, lambda items: [{**item, "group": 0} for item in items[:5]] + items[5:])
    with pytest.raises(InputError, match="holds results of other settings"):
        measure_leakage(regrouped, measured, image_size=32, epochs=1, device="cpu")


def test_summary_by_hand():
    dice = {"random": {"a": 0.9, "b": 0.5}, "clean": {"a": 0.7, "b": 0.5}}
    dice["groups"] = {"a": 0.6, "b": 0.6}
    rows = []
    for seed in (0, 1):
        for split, dice_of_stem in dice.items():
            for stem, value in dice_of_stem.items():
                rows.append((seed, split, stem, value, stem == "a"))
    table = pd.DataFrame(rows, columns=["seed", "split", "stem", "dice", "related"])

    summary = summarise_leakage(table)
    means = {name: found["mean"] for name, found in summary["differences"].items()}
    expected = {
        "random - groups, by split": 0.1,
        "random - clean, by split": 0.1,
        "random - clean, all": 0.1,
        "random - clean, with relatives": 0.2,
        "random - clean, without": 0.0,
    }
    assert means == pytest.approx(expected)
    assert summary["related_share"] == 0.5
    assert summary["dice"]["clean"] == pytest.approx(0.6)


def test_one_seed_has_no_interval_over_seeds(measured):
    summary = json.loads((measured / "leakage.json").read_text())
    assert summary["differences"]["random - groups, by split"]["ci95"] is None


def test_output_in_the_dataset_is_refused(grouped_root):
    with pytest.raises(InputError, match="lies in .*, which is read"):
        measure_leakage(grouped_root, grouped_root / "leakage")
    assert not (grouped_root / "leakage").exists()
