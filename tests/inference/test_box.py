"""The model that comes with ovseg: its file, its card, and predictions without a run."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from ovseg.core.files import file_digest
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import BOX, Predictor

FILE = BOX / "model.safetensors"


def test_file_is_small_and_card_is_of_this_file():
    assert FILE.stat().st_size <= 12_000_000
    card = (BOX / "README.md").read_text(encoding="utf-8")
    assert file_digest(FILE) in card
    description = json.loads((BOX / "model.json").read_text())
    dice = description["scores"]["scores"]["dice_original"]
    low, high = dice["ci95"]
    assert f"| Dice per image | {dice['mean']:.3f} | {low:.3f} .. {high:.3f} |" in card
    for words in ("CC BY 4.0", "Intended use", "no medical device", "How it fails"):
        assert words in card


def test_no_path_of_the_machine_that_trained_it_is_in_the_files():
    for path in BOX.iterdir():
        content = path.read_bytes()
        for word in (b"/home/", b"/root/", b"/tmp/", b"/work/"):
            assert word not in content, path


def test_infer_without_a_run_writes_masks_and_flags(tmp_path, run_command, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    dice = []
    for seed in range(3):
        image, _ = make_phantom(seed, 256)
        Image.fromarray(image).save(pictures / f"{seed}.png")
    assert run_command("infer", "--images", pictures, "--output", tmp_path / "masks") == 0
    table = pd.read_csv(tmp_path / "masks" / "predictions.csv")
    assert len(table) == 3
    assert set(table["flag"]) <= {"yes", "no"}
    for seed in range(3):
        with Image.open(tmp_path / "masks" / f"{seed}.png") as picture:
            mask = np.array(picture) > 0
        reference = make_phantom(seed, 256)[1] > 0
        dice.append(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
    assert np.mean(dice) > 0.3  # it has never seen a phantom


def test_predictor_without_a_source_is_the_box():
    predictor = Predictor.load(device="cpu")
    assert predictor.description is not None
    assert predictor.postprocessing.flag_confidence is not None
    prediction = predictor.predict(np.zeros((50, 70, 3), np.uint8))
    assert prediction.labels.shape == (50, 70)
    plain = Predictor.load(device="cpu", postprocessing=False)
    assert plain.postprocessing == Postprocessing()
