"""The exported file gives the masks that `infer` writes, by itself and its description alone."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.data.geometry import place, restore
from ovseg.data.pictures import read_image
from ovseg.inference.engines import open_onnx
from ovseg.inference.export import EXPORT_FORMATS, ExportFormat, export_run
from ovseg.inference.postprocessing import Postprocessing, average_flips

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")


@pytest.fixture
def own_run(run, tmp_path) -> Path:
    """A copy of `run`, to write into."""
    return shutil.copytree(run, tmp_path / "run")


def test_export_and_infer_give_the_same_masks(
    own_run, tmp_path, phantom_root, run_command, write_postprocessing, read_png
):
    chosen = Postprocessing(flips=("horizontal",), threshold=0.4, keep_largest=True)
    write_postprocessing(own_run, chosen)
    images = phantom_root / "test" / "images"
    output = tmp_path / "masks"
    assert run_command("export", "--run", own_run, "--format", "onnx") == 0
    assert run_command("infer", "--run", own_run, "--images", images, "--output", output) == 0

    description = json.loads((own_run / "export" / "model.json").read_text())
    engine = open_onnx(own_run / "export" / "model.onnx")
    side = description["input"]["shape"][-1]
    fit = description["fit"]
    postprocessing = Postprocessing(**description["postprocessing"])
    for path in images.iterdir():
        image = read_image(path)
        square = torch.from_numpy(place(image, side, fit)).permute(2, 0, 1)
        logits = average_flips(engine, square[None].contiguous(), postprocessing.flips)
        probs = restore(logits.sigmoid()[0, 0].numpy(), *image.shape[:2], fit)
        labels = postprocessing.labels(probs[None])
        assert np.array_equal(labels * 255, read_png(output / f"{path.stem}.png"))


def test_metadata_of_the_file_repeat_the_description(own_run):
    description = export_run(own_run)
    model = onnx.load(own_run / "export" / "model.onnx")
    kept = {entry.key: entry.value for entry in model.metadata_props}
    assert description.pop("difference") <= 1e-4
    assert json.loads(kept["ovseg"]) == description


def test_earlier_export_is_replaced_only_with_overwrite(own_run):
    export_run(own_run)
    with pytest.raises(InputError, match="--overwrite"):
        export_run(own_run)
    export_run(own_run, overwrite=True)


def test_lone_checkpoint_needs_an_output(own_run, tmp_path):
    lone = tmp_path / "models" / "ovary" / "net.ckpt"
    lone.parent.mkdir(parents=True)
    shutil.copy(own_run / "checkpoints" / "last.ckpt", lone)
    with pytest.raises(InputError, match="net.ckpt is not a run folder.*Add --output FOLDER"):
        export_run(lone)
    assert [path.name for path in (tmp_path / "models").rglob("*")] == ["ovary", "net.ckpt"]
    export_run(lone, tmp_path / "exported")
    export_run(own_run / "checkpoints" / "last.ckpt")
    assert (own_run / "export" / "model.json").is_file()


def test_unknown_format_lists_the_formats(own_run):
    with pytest.raises(InputError, match="Unknown format 'tflite'. Choose one of: onnx"):
        export_run(own_run, format="tflite")


@pytest.mark.parametrize(
    ("error_of_batch", "error_of_one"), [(5.0, 0.0), (0.0, 5.0), (0.0, math.nan)]
)
def test_file_that_differs_in_either_comparison_is_not_kept(
    own_run, monkeypatch, error_of_batch, error_of_one
):
    written = []

    def write(network, image, path, metadata):
        path.write_bytes(b"")
        written.append(network)

    def run_wrong(image):
        error = error_of_one if len(image) == 1 else error_of_batch
        return written[0](image) + error

    wrong = ExportFormat("model.wrong", write, lambda path: run_wrong)
    monkeypatch.setitem(EXPORT_FORMATS, "wrong", wrong)
    with pytest.raises(InputError, match=r"is \S+ off torch's probabilities, expected 0.0001"):
        export_run(own_run, format="wrong")
    assert not (own_run / "export").exists()


def test_ensemble_is_exported_member_by_member(ensemble):
    with pytest.raises(InputError, match="is an ensemble of 2. Export its members one by one"):
        export_run(ensemble)
