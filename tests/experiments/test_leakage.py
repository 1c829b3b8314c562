"""Measuring the leak: sets of one size that differ only in relatives, results that can be continued."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from ovseg.cli.main import COMMANDS, _run
from ovseg.core.errors import InputError
from ovseg.experiments.leakage import draw_sets, measure_leakage, summarise_leakage


@pytest.fixture(scope="module")
def grouped_root(tmp_path_factory):
    """40 phantoms of which neighbours are said to be relatives."""
    from ovseg.data.prepare.phantoms import write_phantoms

    root = tmp_path_factory.mktemp("data") / "grouped"
    write_phantoms(root, 40, size=48)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["items"] = [{**item, "group": i // 2} for i, item in enumerate(manifest["items"])]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.mark.parametrize("seed", range(3))
def test_sets_are_of_one_size_and_differ_in_relatives_only(seed):
    groups = np.random.default_rng(seed).integers(0, 60, 100)
    sets = draw_sets(groups, [0] * 100, seed)
    assert len({len(train) for train, _ in sets.values()}) == 1
    assert all(not set(train) & set(test) for train, test in sets.values())
    related = {
        name: np.isin(groups[test], groups[train]).mean() for name, (train, test) in sets.items()
    }
    assert related["random"] > 0 and related["clean"] == related["groups"] == 0
    assert np.array_equal(sets["random"][1], sets["clean"][1])
    gone = set(sets["clean"][0]) - set(sets["random"][0])
    come = set(sets["random"][0]) - set(sets["clean"][0])
    assert len(gone) == len(come) and all(groups[i] in groups[sets["random"][1]] for i in come)


def measure(root, output, *more: str) -> int:
    arguments = [
        "--root",
        str(root),
        "--output",
        str(output),
        "--epochs",
        "1",
        "--image-size",
        "32",
    ]
    return _run(COMMANDS["measure_leakage"], [*arguments, "--device", "cpu", *more])


def test_a_second_call_goes_on_and_keeps_what_is_done(grouped_root, tmp_path, capsys):
    assert measure(grouped_root, tmp_path / "out", "--seeds", "1") == 0
    first = pd.read_csv(tmp_path / "out" / "images.csv")
    assert measure(grouped_root, tmp_path / "out", "--seeds", "2") == 0
    both = pd.read_csv(tmp_path / "out" / "images.csv")
    assert both[: len(first)].equals(first) and set(both["seed"]) == {0, 1}
    assert (
        list(pd.read_csv(tmp_path / "out" / "leakage.csv")["split"])
        == ["random", "clean", "groups"] * 2
    )
    summary = json.loads((tmp_path / "out" / "leakage.json").read_text())
    assert summary["differences"]["random - groups, by split"]["ci95"] is not None
    assert (
        tmp_path / "out" / "leakage.png"
    ).exists() and "random - clean, all" in capsys.readouterr().out


def test_mistakes_are_errors(grouped_root, phantom_root, tmp_path):
    with pytest.raises(InputError, match="has no manifest.json with groups"):
        measure_leakage(phantom_root, tmp_path / "out")
    with pytest.raises(InputError, match="--image_size 50 a multiple of 16"):
        measure_leakage(grouped_root, tmp_path / "out", image_size=50)
    few = shutil.copytree(grouped_root, tmp_path / "few")
    manifest = json.loads((few / "manifest.json").read_text())
    (few / "manifest.json").write_text(json.dumps({**manifest, "items": manifest["items"][:20]}))
    with pytest.raises(InputError, match="has 20 images, too few"):
        measure_leakage(few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds something else"):
        measure_leakage(grouped_root, few)
    measure_leakage(grouped_root, tmp_path / "out", seeds=1, epochs=1, image_size=32, device="cpu")
    with pytest.raises(InputError, match="holds results of other settings"):
        measure_leakage(
            grouped_root, tmp_path / "out", seeds=1, epochs=2, image_size=32, device="cpu"
        )
    regrouped = shutil.copytree(grouped_root, tmp_path / "regrouped")
    items = [{**item, "group": 0} for item in manifest["items"][:5]] + manifest["items"][5:]
    (regrouped / "manifest.json").write_text(json.dumps({**manifest, "items": items}))
    with pytest.raises(InputError, match="holds results of other settings"):
        measure_leakage(regrouped, tmp_path / "out", seeds=2, epochs=1, image_size=32, device="cpu")


def test_summary_by_hand():
    rows = [
        (seed, split, stem, dice, stem == "a")
        for seed in (0, 1)
        for split, values in {
            "random": (0.9, 0.5),
            "clean": (0.7, 0.5),
            "groups": (0.6, 0.6),
        }.items()
        for stem, dice in zip("ab", values, strict=True)
    ]
    summary = summarise_leakage(
        pd.DataFrame(rows, columns=["seed", "split", "stem", "dice", "related"])
    )
    differences = {name: found["mean"] for name, found in summary["differences"].items()}
    assert differences == pytest.approx(
        {
            "random - groups, by split": 0.1,
            "random - clean, by split": 0.1,
            "random - clean, all": 0.1,
            "random - clean, with relatives": 0.2,
            "random - clean, without": 0.0,
        }
    )
    assert summary["related_share"] == 0.5 and summary["dice"]["clean"] == pytest.approx(0.6)
