"""A trained run as files for programs without torch: the network in ONNX, and beside it what is done around it."""

import json
from pathlib import Path
from typing import Any

import torch

from ovseg import __version__
from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_json
from ovseg.core.runs import RunFolder, run_of_checkpoint
from ovseg.inference.engines import TOLERANCE, largest_gap, open_onnx
from ovseg.inference.onnx import export_onnx
from ovseg.inference.postprocessing import to_dict
from ovseg.inference.predictor import Predictor

DESCRIPTION_FILE = "model.json"


def export_run(run: Path, output: Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write `model.onnx` and `model.json`, after comparing the file's probabilities with torch's.

    The file takes plain pixels, uint8 (N, 3, S, S), of pictures placed in a square as `fit` says, and gives logits.
    `model.json`, which the file's metadata repeat, says how they become labels as `infer` makes them: the run's
    post-processing (flips, threshold, clean-up), categories and sizes.

    Args:
        run: run folder or checkpoint.
        output: folder to make; by default `export` in the run folder.
        overwrite: replace an earlier export.

    Returns:
        What `model.json` holds.

    Raises:
        InputError: run or output can't be used, an ensemble, the extra [onnx] is missing, or the file's probabilities
            are not torch's.
    """
    paths = find_checkpoints(run)
    if len(paths) > 1:
        raise InputError(f"{run} is an ensemble of {len(paths)}; export its members one by one.")
    predictor = Predictor.from_run(run, "cpu")
    size = predictor.image_size
    description = {
        "made_by": f"ovseg {__version__}",
        "checkpoint_sha256": checkpoint_digest(*paths),
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": ["batch", 3, size, size],
            "range": "0..255, RGB",
        },
        "output": {
            "name": "logits",
            "activation": "softmax" if predictor.categories else "sigmoid",
        },
        "fit": predictor.fit,
        "categories": ["background", *predictor.categories]
        if predictor.categories
        else ["background", "lesion"],
        "postprocessing": to_dict(predictor.postprocessing),
    }
    image = torch.randint(
        0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    folder = RunFolder(Path(run)) if Path(run).is_dir() else run_of_checkpoint(run)
    output = output or folder.export
    with atomic_dir(output, overwrite, DESCRIPTION_FILE) as folder:
        export_onnx(
            predictor.network, image, folder / "model.onnx", {"ovseg": json.dumps(description)}
        )
        description["difference"] = _difference(predictor.network, image, folder / "model.onnx")
        write_json(folder / DESCRIPTION_FILE, description)
    return description


@torch.inference_mode()
def _difference(network: torch.nn.Module, image: torch.Tensor, path: Path) -> float:
    """The largest difference of a probability between the file and the network, for two batch sizes."""
    engine = open_onnx(path)
    difference = max(largest_gap(engine(batch), network(batch)) for batch in (image, image[:1]))
    if not difference <= TOLERANCE:  # not so where it is not a number
        raise InputError(
            f"The ONNX file is {difference:.2g} off torch's probabilities, expected {TOLERANCE}."
        )
    return difference
