"""An evaluation scores the masks that `infer` writes, with the same post-processing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ovseg import evaluate
from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.errors import InputError
from ovseg.core.files import write_json
from ovseg.data.boxes import fit_box
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import search_postprocessing
from ovseg.inference.folder import infer_folder
from ovseg.inference.labels import Postprocessing, to_dict

CHOSEN = Postprocessing(("horizontal", "vertical"), 0.3, keep_largest=True, fill_holes=True)


def write_postprocessing(
    run: Path, postprocessing: Postprocessing, digest: str | None = None
) -> None:
    if digest is None:
        digest = checkpoint_digest(run / "checkpoints" / "last.ckpt")
    content = {"postprocessing": to_dict(postprocessing), "checkpoint_sha256": digest}
    write_json(run / "postprocessing.json", content)


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    """A run that has CHOSEN as its post-processing. Not to be changed."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    write_postprocessing(folder, CHOSEN)
    return folder


def read_lesion(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture) > 0


@pytest.mark.parametrize("chosen", [CHOSEN, None])
def test_evaluation_scores_the_masks_that_infer_writes(run, phantom_root, tmp_path, chosen):
    options = {"device": "cpu", "postprocessing": chosen is not None}
    summary = evaluate(run, output=tmp_path / "out", **options)
    test = phantom_root / "test"
    infer_folder(run, test / "images", tmp_path / "masks", **options)

    assert summary["postprocessing"] == to_dict(chosen or Postprocessing())
    assert summary["postprocessing_file"] == ("postprocessing.json" if chosen else None)
    assert summary["threshold"] == (0.3 if chosen else 0.5)
    table = pd.read_csv(tmp_path / "out" / "per_image.csv").set_index("stem")
    assert len(table) == 3
    for stem, row in table.iterrows():
        pred = read_lesion(tmp_path / "masks" / f"{stem}.png")
        mask = read_lesion(test / "masks" / f"{stem}.png")
        hit = (pred & mask).sum()
        assert row["pred_pixels_original"] == pred.sum()
        assert row["hit_pixels_original"] == hit
        assert row["dice_original"] == pytest.approx(2 * hit / (pred.sum() + mask.sum()))


def test_command_prints_what_evaluate_returns(run, tmp_path, run_command, capsys):
    output = tmp_path / "out"
    assert run_command("evaluate", "--run", run, "--output", output, "--device", "cpu") == 0
    words = "flips horizontal and vertical, threshold 0.3, holes filled, largest component"
    assert words in " ".join(capsys.readouterr().out.split())
    summary = evaluate(run, output=tmp_path / "again", device="cpu")
    assert json.loads((output / "summary.json").read_text()) == summary


def test_evaluation_lies_in_the_run_folder_by_default(make_run, tmp_path):
    folder = make_run(tmp_path / "run")
    evaluate(folder, device="cpu")
    evaluate(folder, "valid", device="cpu")
    written = {path.parent.name for path in folder.glob("*/summary.json")}
    assert written == {"evaluation", "evaluation_valid"}


def test_scores_at_the_networks_size_follow_the_postprocessing(run):
    chosen = Evaluation(run, "test", device="cpu")
    plain = Evaluation(run, "test", device="cpu", postprocessing=False)
    stems = [pair.stem for pair in plain.datamodule.pairs("test")]
    logits = torch.full((3, 1, 32, 32), -2.0)
    logits[:, :, 4:8, 4:8] = -0.5  # probability 0.38
    logits[:, :, 20, 20] = 3
    assert chosen.postprocess(stems, logits)[0].sum((1, 2, 3)).tolist() == [16] * 3
    assert plain.postprocess(stems, logits)[0].sum((1, 2, 3)).tolist() == [1] * 3

    table, summary = chosen.run()
    assert summary["scores"]["dice"]["mean"] == pytest.approx(table["dice"].mean())
    hit = table["hit_pixels"].sum()
    areas = (table["lesion_pixels"] + table["pred_pixels"]).sum()
    assert summary["scores"]["iou_pooled"] == pytest.approx(hit / (areas - hit), abs=1e-6)
    assert not plain.run()[0]["pred_pixels"].equals(table["pred_pixels"])


def test_share_at_the_networks_size_is_of_the_pictures_box(make_run, tmp_path, save_png):
    data = tmp_path / "data" / "test"
    save_png(data / "images" / "a.png", np.zeros((16, 64, 3), np.uint8))
    save_png(data / "masks" / "a.png", np.zeros((16, 64), np.uint8))
    run = make_run(tmp_path / "run")
    write_postprocessing(run, Postprocessing(min_area=17 / 256))
    evaluation = Evaluation(run, "test", tmp_path / "data", device="cpu")
    assert fit_box(16, 64, 32, "letterbox").height == 8

    logits = torch.full((1, 1, 32, 32), -5.0)
    logits[:, :, 14:18, 10:14] = 5
    assert evaluation.postprocess(["a"], logits)[0].sum() == 0
    logits[:, :, 13, 10] = 5
    assert evaluation.postprocess(["a"], logits)[0].sum() == 17


def test_another_checkpoints_postprocessing_is_refused_with_the_remedy(
    run, make_run, phantom_root, tmp_path
):
    other = make_run(tmp_path / "other", seed=1)
    write_postprocessing(other, CHOSEN, checkpoint_digest(run / "checkpoints" / "last.ckpt"))
    remedy = f"ovseg postprocess --run {other}, or add --no_postprocessing"
    with pytest.raises(InputError, match=f"was chosen for another checkpoint .*{remedy}"):
        evaluate(other, output=tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match=f"was chosen for another checkpoint .*{remedy}"):
        infer_folder(other, phantom_root / "test" / "images", tmp_path / "masks", device="cpu")
    evaluate(other, output=tmp_path / "out", device="cpu", postprocessing=False)


def test_batch_size_of_zero_is_an_error(run):
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        Evaluation(run, batch_size=0)


def test_run_of_inverted_masks_is_scored_and_postprocessed_on_inverted_masks(
    make_run, phantom_root, tmp_path
):
    inverted = shutil.copytree(phantom_root, tmp_path / "inverted")
    for path in inverted.glob("*/masks/*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    scores = []
    for root, invert in ((phantom_root, False), (inverted, True)):
        folder = make_run(tmp_path / f"run_{invert}", root=root, invert_masks=invert)
        summary = evaluate(folder, device="cpu")
        search = search_postprocessing(folder, device="cpu")
        scores.append((summary["scores"], search["score"]))
    assert scores[0] == scores[1]


def test_spacing_adds_millimetres_beside_pixels(run, phantom_root, tmp_path, run_command, capsys):
    stems = sorted(path.stem for path in (phantom_root / "test" / "images").iterdir())
    (tmp_path / "spacing.csv").write_text(f"stem,row_mm,column_mm\n{stems[0]},0.2,0.5\n")
    command = ["evaluate", "--run", run, "--device", "cpu", "--report", "full"]
    plain = tmp_path / "plain"
    assert run_command(*command, "--output", plain) == 0
    pixels = pd.read_csv(plain / "per_image.csv").set_index("stem")
    assert not any("mm" in name for name in pixels)
    assert "(mm)" not in capsys.readouterr().out

    one = tmp_path / "one"
    assert run_command(*command, "--output", one, "--spacing", tmp_path / "spacing.csv") == 0
    table = pd.read_csv(one / "per_image.csv").set_index("stem")
    known = table.loc[stems[0]]
    assert known["lesion_area_mm2"] == pytest.approx(known["lesion_pixels_original"] * 0.1)
    assert table["hd95_mm"].notna().sum() == 1
    assert table["hd95"].equals(pixels["hd95"])
    summary = json.loads((one / "summary.json").read_text())
    assert summary["scores"]["hd95_mm"]["images"] == 1
    assert summary["nsd_tolerance_mm"] == 1
    page = (one / "report.html").read_text(encoding="utf-8")
    assert "<td>HD95, mm</td>" in page
    assert "NSD at 1 mm" in page
    assert "known of 1 of 3 images" in page

    everywhere = tmp_path / "everywhere"
    assert run_command(*command, "--output", everywhere, "--spacing", "0.5") == 0
    table = pd.read_csv(everywhere / "per_image.csv").set_index("stem")
    assert np.allclose(table["hd95_mm"], table["hd95"] / 2)
    assert np.allclose(table["assd_mm"], table["assd"] / 2)
    assert np.allclose(table["pred_area_mm2"], table["pred_pixels_original"] / 4)
    both = table["centroid_distance"].notna()
    assert np.allclose(table["centroid_distance_mm"][both], table["centroid_distance"][both] / 2)
    assert "HD95 (mm)" in capsys.readouterr().out

    # The same result with another spacing is another one.
    assert run_command(*command, "--output", everywhere) == 2
    assert "holds an evaluation with another spacing" in capsys.readouterr().err


def test_spacing_that_is_no_size_is_one_line(run, tmp_path, run_command, capsys):
    command = ["evaluate", "--run", run, "--device", "cpu", "--output", tmp_path / "out"]
    assert run_command(*command, "--spacing", "100") == 2
    assert "error: --spacing 100 is outside of 0.001 to 10 mm" in capsys.readouterr().err
    assert run_command(*command, "--spacing", "gone.csv") == 2
    assert "Cannot read gone.csv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
