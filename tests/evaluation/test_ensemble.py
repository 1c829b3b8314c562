"""A folder of members stands wherever a run does, and predicts their average."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from ovseg.cli.main import main
from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.core.errors import InputError
from ovseg.data.pictures import read_image
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import search_postprocessing
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import Predictor

ALONE = {"a": {"augmentation": "flips"}, "b": {"seed": 1, "augmentation": "standard"}}
STRANGE = {
    "large": {"image_size": 48, "fit": "stretch"},
    "many": {"classes": 5},
    "excluding": {"exclude": ["phantom_3"]},
}


@pytest.fixture(scope="module")
def runs(make_run, tmp_path_factory):
    """Runs by name: `a` and `b` go together, the others differ from them. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: make_run(folder / name, **options) for name, options in {**ALONE, **STRANGE}.items()
    }


@pytest.fixture
def ensemble(runs, tmp_path):
    """A function that writes the folder of an ensemble of some runs."""

    def write(*names: str):
        folder = tmp_path / "-".join(names)
        for name in names:
            shutil.copytree(runs[name], folder / "members" / name)
        (folder / "ensemble.json").write_text(
            json.dumps({"members": [f"members/{name}" for name in names]})
        )
        return folder

    return write


def evaluate(run, output, *more: str) -> int:
    return main(["evaluate", "--run", str(run), "--output", str(output), "--device", "cpu", *more])


def test_evaluation_of_an_ensemble_is_of_the_average(
    runs, ensemble, phantom_root, tmp_path, capsys
):
    folder = ensemble("a", "b")
    assert evaluate(folder, tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "per_image.csv").set_index("stem")
    predictor = Predictor.load(folder, "cpu")
    for stem, row in table.iterrows():
        labels = predictor.predict([read_image(phantom_root / "test" / "images" / f"{stem}.png")])[
            0
        ].labels
        assert (
            abs(row["pred_pixels_original"] - labels.sum()) <= 1
        )  # averages of squares are rounded otherwise
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    paths = find_checkpoints(folder)
    assert summary["checkpoint"] == "ensemble of 2" and summary["members"] == [
        str(path) for path in paths
    ]
    assert summary["checkpoint_sha256"] == checkpoint_digest(*paths) != checkpoint_digest(paths[0])
    assert "ensemble of 2" in capsys.readouterr().out
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    evaluations = [Evaluation(run, "test", device="cpu") for run in (folder, runs["a"], runs["b"])]
    stems = list(evaluations[0].originals.pairs)[:2]
    probs = [evaluation.logits(stems, image, ()).sigmoid() for evaluation in evaluations]
    assert torch.allclose(probs[0], (probs[1] + probs[2]) / 2, atol=1e-6)


def test_ensemble_of_one_is_its_member(runs, ensemble, tmp_path):
    for name, run in (("one", ensemble("a")), ("member", runs["a"])):
        assert evaluate(run, tmp_path / name) == 0
    one, member = (pd.read_csv(tmp_path / name / "per_image.csv") for name in ("one", "member"))
    assert one.drop(columns="seconds").equals(member.drop(columns="seconds"))


def test_postprocessing_of_an_ensemble_is_chosen_on_each_members_own_images(
    ensemble, tmp_path, capsys
):
    folder = ensemble("a", "b")
    assert main(["postprocess", "--run", str(folder), "--device", "cpu"]) == 0
    found = json.loads((folder / "postprocessing.json").read_text())
    assert found["images"] == 6 and len(found["members"]) == 2
    assert {tuple(candidate["flips"]) for candidate in found["candidates"]} == {
        (),
        ("horizontal",),
    }  # b met no other
    scores = [
        Evaluation(folder / "members" / n, "valid", device="cpu").run()[0]["dice_original"]
        for n in "ab"
    ]
    assert found["plain_score"] == pytest.approx(pd.concat(scores).mean(), abs=1e-6)
    assert evaluate(folder, tmp_path / "out") == 0
    assert (
        json.loads((tmp_path / "out" / "summary.json").read_text())["postprocessing"]
        == found["postprocessing"]
    )
    assert Predictor.load(folder, "cpu").postprocessing == Postprocessing(**found["postprocessing"])
    (folder / "ensemble.json").write_text(json.dumps({"members": ["members/a"]}))
    assert (
        evaluate(folder, tmp_path / "out2") == 2
        and "was chosen for another checkpoint" in capsys.readouterr().err
    )


def test_members_of_different_sizes_have_no_common_evaluation(ensemble, tmp_path, capsys):
    assert evaluate(ensemble("a", "large"), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "data.image_size 32 and 48" in error and "data.fit letterbox and stretch" in error
    assert "no common size to be scored at" in error


def test_members_of_different_images_are_scored_on_test_alone(ensemble, tmp_path, capsys):
    folder = ensemble("a", "excluding")
    assert evaluate(folder, tmp_path / "out", "--split", "valid") == 2
    error = capsys.readouterr().err
    assert (
        "data.exclude None and ['phantom_3']" in error
        and "may have seen valid images of the other" in error
    )
    assert evaluate(folder, tmp_path / "out") == 0


def test_members_of_different_datasets_need_one_to_be_named(
    make_run, runs, phantom_root, tmp_path, capsys
):
    root = shutil.copytree(phantom_root, tmp_path / "copy")
    make_run(tmp_path / "e" / "c", root)
    shutil.copytree(runs["a"], tmp_path / "e" / "a")
    (tmp_path / "e" / "ensemble.json").write_text('{"members": ["c", "a"]}')
    assert evaluate(tmp_path / "e", tmp_path / "out") == 2
    assert "Name the dataset to score with --data" in capsys.readouterr().err
    assert evaluate(tmp_path / "e", tmp_path / "out", "--data", str(root)) == 0


def test_tune_refuses_members_whose_validation_has_no_lesion(ensemble, tmp_path, save_png):
    save_png(tmp_path / "d" / "valid" / "images" / "1.png", np.full((40, 40, 3), 90, np.uint8))
    save_png(tmp_path / "d" / "valid" / "masks" / "1.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="No image of valid in .* has a lesion"):
        search_postprocessing(ensemble("a", "b"), data=tmp_path / "d", device="cpu")
