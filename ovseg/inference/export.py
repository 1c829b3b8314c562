"""A trained run as files for programs without torch.

The network goes into one file; `model.json` beside it says what has to be done around it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ovseg import __version__
from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_json
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.inference.engine_choice import TOLERANCE, is_close, largest_difference
from ovseg.inference.engines import Engine, open_onnx
from ovseg.inference.onnx import export_onnx
from ovseg.inference.postprocessing import to_dict
from ovseg.inference.predictor import Predictor

DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class ExportFormat:
    """An entry of `EXPORT_FORMATS`.

    Attributes:
        file_name: of the network in the export's folder.
        write: writes it from the network, pictures uint8 (N, 3, S, S), the path, and texts to keep
            in the file; raises InputError where a package is missing.
        open: opens the file as an engine on the CPU, to be compared with torch.
    """

    file_name: str
    write: Callable[[torch.nn.Module, torch.Tensor, Path, dict[str, str]], None]
    open: Callable[[Path], Engine]


EXPORT_FORMATS = {
    "onnx": ExportFormat("model.onnx", export_onnx, open_onnx),
}


def export_run(
    run: str | Path,
    output: Path | None = None,
    format: str = "onnx",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a run's network and `model.json`, and compare the network's probabilities with torch's.

    The network takes plain pixels, uint8 (N, 3, S, S), of pictures placed in a square as `fit`
    says, and gives logits. `model.json`, which the file's metadata repeat, says how these become
    the labels that `ovseg infer` writes: sizes, categories, and the run's post-processing (flips,
    threshold, clean-up), whose temperature is for reported probabilities alone.

    Args:
        run: run folder or checkpoint.
        output: folder to make; by default `export` in the run folder. A checkpoint outside of a run
            needs one.
        format: key of `EXPORT_FORMATS`.
        overwrite: replace an earlier export.

    Returns:
        The content of `model.json`.

    Raises:
        InputError: run, format or output can't be used, the run is an ensemble, a package is
            missing, or the file's probabilities are not torch's.
    """
    chosen: ExportFormat = choose("format", format, EXPORT_FORMATS)
    run = Path(run)
    paths = find_checkpoints(run)
    if output is None:
        output = RunFolder.of(run).export
    if len(paths) > 1:
        raise InputError(f"{run} is an ensemble of {len(paths)}. Export its members one by one.")
    predictor = Predictor.from_run(run, "cpu")
    network = predictor.members[0].network
    description = _describe(predictor, checkpoint_digest(*paths))

    size = predictor.members[0].image_size
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)

    with atomic_dir(output, overwrite, DESCRIPTION_FILE) as folder:
        path = folder / chosen.file_name
        chosen.write(network, image, path, {"ovseg": json.dumps(description)})
        description["difference"] = _compare_with_torch(chosen.open(path), network, image)
        write_json(folder / DESCRIPTION_FILE, description)
    return description


def _describe(predictor: Predictor, digest: str) -> dict[str, Any]:
    """What a program must know to make labels with the network."""
    member = predictor.members[0]
    activation = "softmax" if predictor.categories else "sigmoid"
    names = predictor.categories or ["lesion"]
    return {
        "made_by": f"ovseg {__version__}",
        "checkpoint_sha256": digest,
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": ["batch", 3, member.image_size, member.image_size],
            "range": "0..255, RGB",
        },
        "output": {"name": "logits", "activation": activation},
        "fit": member.fit,
        "categories": ["background", *names],
        "postprocessing": to_dict(predictor.postprocessing),
    }


@torch.inference_mode()
def _compare_with_torch(engine: Engine, network: torch.nn.Module, image: torch.Tensor) -> float:
    """The largest difference of a probability, for a batch of all images and a batch of one.

    Raises:
        InputError: it is above `TOLERANCE`, or NaN.
    """
    differences = []
    for batch in (image, image[:1]):
        difference = largest_difference(engine(batch), network(batch))
        if not is_close(difference):
            raise InputError(
                f"The exported network is {difference:.2g} off torch's probabilities, expected "
                f"{TOLERANCE}."
            )
        differences.append(difference)
    return max(differences)
