"""The exported file gives the masks that `infer` writes, by itself and its description alone."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.core.files import file_digest
from ovseg.inference import agreement as agreement_module
from ovseg.inference import export
from ovseg.inference.engines import open_onnx
from ovseg.inference.export import export_run
from ovseg.inference.model_files import FORMATS, open_model
from ovseg.inference.predictor import Predictor

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")


@pytest.mark.parametrize("format", ["onnx", "openvino", "safetensors"])
def test_infer_gives_the_masks_of_the_run(
    format, exported, tmp_path, phantom_root, run_command, read_png
):
    folder = exported / "export"
    if format != "onnx":
        pytest.importorskip("openvino", reason="needs the extra [openvino]")
        folder = tmp_path / "export"
        options = ["--format", format, "--output", folder]
        assert run_command("export", "--run", exported, *options) == 0
    images = phantom_root / "test" / "images"
    file = folder / FORMATS[format].file_name
    for run, output in ((exported, "of_run"), (file, "of_file"), (folder, "of_folder")):
        options = ["--run", run, "--images", images, "--output", tmp_path / output]
        assert run_command("infer", *options) == 0
    for path in images.iterdir():
        mask = read_png(tmp_path / "of_run" / f"{path.stem}.png")
        assert mask.any()
        for output in ("of_file", "of_folder"):
            assert np.array_equal(read_png(tmp_path / output / f"{path.stem}.png"), mask)


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (33, 75)])
def test_onnx_takes_any_batch_and_size_and_gives_probabilities(exported, size):
    engine, *_ = open_onnx(exported / "export" / "model.onnx")
    network = Predictor.load(exported, "cpu").members[0].network
    image = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(engine(image), network(image).sigmoid(), atol=1e-5, rtol=0)


def test_metadata_of_the_file_repeat_the_description(exported):
    description = json.loads((exported / "export" / "model.json").read_text())
    model = onnx.load(exported / "export" / "model.onnx")
    kept = {entry.key: entry.value for entry in model.metadata_props}
    agreement = description.pop("agreement")
    assert agreement["difference"] <= 1e-4
    assert agreement["dice_between_masks"] == 1
    assert agreement["images"] == "3 images of valid"
    assert json.loads(kept["ovseg"]) == description


def test_onnx_file_takes_no_other_engine(exported, images, tmp_path, run_command, capsys):
    file = exported / "export" / "model.onnx"
    options = ["--run", file, "--images", images, "--output", tmp_path / "out"]
    assert run_command("infer", *options, "--engine", "openvino") == 2
    assert "Leave --engine out, or name the run" in capsys.readouterr().err


def test_description_has_scores_of_this_checkpoint_alone(own_run, run_command):
    assert export_run(own_run, format="safetensors")["scores"] is None
    assert run_command("evaluate", "--run", own_run, "--report", "minimal") == 0
    summary = json.loads((own_run / "evaluation" / "summary.json").read_text())
    scores = export_run(own_run, format="safetensors", overwrite=True)["scores"]
    assert scores["images"] == 3
    assert scores["scores"] == summary["scores"]
    card = (own_run / "export" / "README.md").read_text()
    mean = summary["scores"]["dice_original"]["mean"]
    assert f"| Dice per image | {mean:.3f} |" in card
    digest = file_digest(own_run / "export" / "model.safetensors")
    assert digest in card

    path = own_run / "evaluation" / "summary.json"
    path.write_text(json.dumps({**summary, "checkpoint_sha256": "0" * 64}))
    assert export_run(own_run, format="safetensors", overwrite=True)["scores"] is None


def test_card_begins_with_the_notes(own_run, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("# Ovaries of Turin\n\nNot for sale.\n")
    export_run(own_run, format="safetensors", notes=notes)
    card = (own_run / "export" / "README.md").read_text()
    assert card.startswith("# Ovaries of Turin\n\nNot for sale.\n\n## Scores")


def test_float16_halves_the_file_and_keeps_the_masks(own_run):
    export_run(own_run, format="safetensors")
    full = (own_run / "export" / "model.safetensors").stat().st_size
    description = export_run(own_run, format="safetensors", precision="float16", overwrite=True)
    half = (own_run / "export" / "model.safetensors").stat().st_size
    assert half < 0.7 * full
    assert description["agreement"]["dice_between_masks"] >= 0.99
    assert 0 < description["agreement"]["difference"] < 0.01


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_smaller_and_says_what_it_costs(format, own_run, monkeypatch):
    if format == "openvino":
        pytest.importorskip("openvino", reason="needs the extra [openvino]")
    monkeypatch.setattr(export, "LARGEST_LOSS_OF_INT8", 1.0)  # of a network of 20 steps
    description = export_run(own_run, format=format, precision="int8")
    agreement = description["agreement"]
    assert description["precision"] == "int8"
    assert agreement["difference"] > 1e-4  # it is no copy of the network
    assert agreement["dice_between_masks"] > 0.5
    assert agreement["dice"] != agreement["dice_of_file"]
    network, kept = open_model(own_run / "export")
    assert kept["precision"] == "int8"
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert network(image).shape == (2, 1, 32, 32)


def test_int8_without_the_dataset_is_refused(own_run, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement_module, "find_dataset", _find_nothing)
    with pytest.raises(InputError, match="int8 is calibrated on validation images.*--data"):
        export_run(own_run, precision="int8")
    description = export_run(own_run, format="safetensors")
    assert description["agreement"]["images"].startswith("phantoms 0 to 7")


def _find_nothing(member):
    raise InputError("There is no dataset.")


@pytest.mark.parametrize(
    ("format", "precision"),
    [("onnx", "float16"), ("safetensors", "int8"), ("openvino", "float16")],
)
def test_precision_that_a_format_lacks_is_refused(own_run, format, precision):
    with pytest.raises(InputError, match=f"--format {format} has no {precision}. It has float32"):
        export_run(own_run, format=format, precision=precision)


def test_both_precisions_exclude_each_other(own_run, run_command, capsys):
    assert run_command("export", "--run", own_run, "--int8", "--float16") == 2
    assert "--int8 and --float16 exclude each other" in capsys.readouterr().err


def test_earlier_export_is_replaced_only_with_overwrite(own_run):
    export_run(own_run, format="safetensors")
    with pytest.raises(InputError, match="--overwrite"):
        export_run(own_run, format="safetensors")
    export_run(own_run, format="safetensors", overwrite=True)


def test_lone_checkpoint_needs_an_output(own_run, tmp_path):
    lone = tmp_path / "models" / "ovary" / "net.ckpt"
    lone.parent.mkdir(parents=True)
    shutil.copy(own_run / "checkpoints" / "last.ckpt", lone)
    with pytest.raises(InputError, match="net.ckpt is not a run folder.*Add --output FOLDER"):
        export_run(lone)
    assert [path.name for path in (tmp_path / "models").rglob("*")] == ["ovary", "net.ckpt"]
    export_run(lone, tmp_path / "exported", "safetensors")
    export_run(own_run / "checkpoints" / "last.ckpt", format="safetensors")
    assert (own_run / "export" / "model.json").is_file()


def test_unknown_format_lists_the_formats(own_run):
    with pytest.raises(InputError, match="Unknown format 'tflite'. Choose one of: onnx"):
        export_run(own_run, format="tflite")


@pytest.mark.parametrize("error", [5.0, math.nan])
def test_file_that_differs_is_not_kept(own_run, monkeypatch, error):
    class Wrong(torch.nn.Module):
        def forward(self, image):
            return torch.zeros(len(image), 1, *image.shape[-2:]) + error

    def open_wrong(path):
        return Wrong(), {}

    monkeypatch.setattr(export, "open_model", open_wrong)
    with pytest.raises(InputError, match=r"is \S+ off torch's probabilities.*expected 0.0001"):
        export_run(own_run, format="safetensors")
    assert not (own_run / "export").exists()


def test_ensemble_is_exported_member_by_member(ensemble):
    with pytest.raises(InputError, match="is an ensemble of 2. Export its members one by one"):
        export_run(ensemble)


def test_record_leaves_its_folders_behind(own_run):
    command = "ovseg train --config /home/anna/x.yaml --data.root=/mnt/hospital/scans --seed 1"
    record = {
        "command": command,
        "started": "2026-11-29T15:08:00+0000",
        "data": {"root": "/mnt/hospital/scans", "sha256": {"train": "0" * 64}},
        "versions": {"torch": "2.14.1"},
    }
    (own_run / "run.json").write_text(json.dumps(record))
    training = export_run(own_run, format="safetensors")["training"]
    assert training["command"] == "ovseg train --config x.yaml --data.root=scans --seed 1"
    content = (own_run / "export" / "README.md").read_text()
    assert "scans --seed 1" in content
    assert "hospital" not in content
    assert "anna" not in (own_run / "export" / "model.json").read_text()
