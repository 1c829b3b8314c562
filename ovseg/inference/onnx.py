"""A network as an ONNX file: plain pixels in, logits out, for any batch size."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ovseg.core.errors import InputError

OPSET = 20  # the newest that OpenVINO 2026 and ONNX Runtime 1.20 both read


def export_onnx(
    network: torch.nn.Module, image: Tensor, path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write one file; the caller compares it with torch.

    Args:
        network: in evaluation mode, on the CPU.
        image: plain pixels, uint8 (N, 3, H, W); height and width become the file's, the batch size stays free.
        path: the file, input `image`, output `logits`.
        metadata: kept in the file's properties.

    Raises:
        InputError: the extra [onnx] is missing.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise InputError("Exporting to ONNX needs the extra: pip install 'ovseg[onnx]'.") from None
    pair = (
        image[:1].expand(2, -1, -1, -1).contiguous()
    )  # a batch of one would be taken for a constant
    shapes, options = (
        {"image": {0: torch.export.Dim("batch")}},
        {"opset_version": OPSET, "external_data": False},
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        program = torch.onnx.export(
            network, (pair,), input_names=["image"], output_names=["logits"], dynamic_shapes=shapes,
            dynamo=True, verbose=False, **options,
        )  # fmt: skip
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)
