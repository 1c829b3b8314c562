"""The exported file gives the masks that `infer` writes, told by nothing but itself and its description."""

import json

import cv2
import numpy as np
import pytest
import torch

from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.core.files import write_json
from ovseg.data.geometry import place, restore
from ovseg.data.pairs import read_image
from ovseg.inference import export as run_export
from ovseg.inference.export import export_run
from ovseg.inference.postprocessing import Postprocessing, average_flips, to_dict


@pytest.fixture
def run(make_run, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    return make_run(tmp_path / "run")


def test_export_and_infer_give_the_same_masks(run, tmp_path, phantom_root):
    postprocessing = Postprocessing(flips=("horizontal",), threshold=0.4, keep_largest=True)
    digest = run_export.checkpoint_digest(run / "checkpoints" / "last.ckpt")
    write_json(
        run / "postprocessing.json",
        {"postprocessing": to_dict(postprocessing), "checkpoint_sha256": digest},
    )
    assert main(["export", "--run", str(run)]) == 0
    images = phantom_root / "test" / "images"
    assert (
        main(
            [
                "infer",
                "--run",
                str(run),
                "--images",
                str(images),
                "--output",
                str(tmp_path / "out"),
            ],
        )
        == 0
    )
    told = json.loads((run / "export" / "model.json").read_text())
    network, postprocessing = (
        run_export.open_onnx(run / "export" / "model.onnx"),
        Postprocessing(**told["postprocessing"]),
    )
    for path in images.iterdir():
        image = read_image(path)
        square = place(image, told["input"]["shape"][-1], told["fit"])
        logits = average_flips(
            network,
            torch.from_numpy(square).permute(2, 0, 1)[None].contiguous(),
            postprocessing.flips,
        )
        labels = postprocessing.labels(
            restore(logits.sigmoid()[0, 0].numpy(), *image.shape[:2], told["fit"])[None]
        )
        assert np.array_equal(
            labels * 255, cv2.imread(str(tmp_path / "out" / f"{path.stem}.png"), 0)
        )


def test_metadata_of_the_file_repeat_the_description(run):
    onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
    description = export_run(run)
    kept = {p.key: p.value for p in onnx.load(run / "export" / "model.onnx").metadata_props}
    assert description.pop("difference") <= 1e-4 and json.loads(kept["ovseg"]) == description


def test_an_earlier_export_is_replaced_only_if_asked(run):
    export_run(run)
    with pytest.raises(InputError, match="--overwrite"):
        export_run(run)
    export_run(run, overwrite=True)


def test_a_file_that_differs_is_not_kept(run, monkeypatch):
    monkeypatch.setattr(
        run_export, "open_onnx", lambda path: lambda image: torch.zeros(len(image), 1, 32, 32)
    )
    with pytest.raises(
        InputError, match="The ONNX file is .* off torch's probabilities, expected 0.0001"
    ):
        export_run(run)
    assert not (run / "export").exists()


def test_an_ensemble_is_exported_member_by_member(run, tmp_path):
    write_json(tmp_path / "ensemble.json", {"members": ["run", "run"]})
    with pytest.raises(InputError, match="is an ensemble of 2; export its members one by one"):
        export_run(tmp_path)
