"""A network as an ONNX file: plain pixels in, logits or probabilities out."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ovseg.core.errors import InputError

OPSET = 20  # the newest that OpenVINO 2026 and ONNX Runtime 1.20 both read


def export_onnx(
    network: torch.nn.Module,
    image: Tensor,
    path: Path,
    metadata: dict[str, str] | None = None,
    output: str = "logits",
    free_size: bool = False,
) -> None:
    """Write one file; the caller compares it with torch.

    Args:
        network: in evaluation mode, on the CPU.
        image: plain pixels, uint8 (N, 3, H, W); the file takes batches of any size.
        path: the file to write; its input is `image`.
        metadata: kept in the file's properties.
        output: name of what the network gives.
        free_size: the file takes pictures of any height and width, not only H and W.

    Raises:
        InputError: the extra [onnx] is missing.
        RuntimeError: with `free_size`, where the network's graph depends on the size.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise InputError("Exporting to ONNX needs the extra: pip install 'ovseg[onnx]'.") from None

    axes = {0: torch.export.Dim("batch")}
    if free_size:
        axes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    # The exporter would take the size of a batch of one for a constant.
    batch_of_two = image[:1].expand(2, -1, -1, -1).contiguous()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        program = torch.onnx.export(
            network,
            (batch_of_two,),
            input_names=["image"],
            output_names=[output],
            dynamic_shapes={"image": axes},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # as with dynamo=True
    # torch notes a stack trace with paths of this machine at each node.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)
