"""A network of 8-bit integers: smaller, and faster where the CPU has instructions for them."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError


def quantise_onnx(path: Path, output: Path, squares: Sequence[np.ndarray]) -> None:
    """Write an ONNX file whose convolutions compute with 8-bit integers.

    Each channel of the weights has its own scale; the ranges of the activations are those of some
    pictures. Layers that make the last map are left in float32, because the outline depends on
    them most.

    Args:
        path: of `ovseg.inference.onnx.export_onnx`.
        output: the file to write; metadata are kept.
        squares: pictures in the network's square, uint8 (S, S, 3), on which ranges are measured.

    Raises:
        InputError: the extra [onnx] is missing.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise InputError("int8 needs the extra: pip install 'ovseg[onnx]'.") from None

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(squares)

        def get_next(self) -> dict[str, np.ndarray] | None:
            square = next(self.batches, None)
            if square is None:
                return None
            return {"image": np.ascontiguousarray(square.transpose(2, 0, 1)[None])}

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = Path(folder) / "fused.onnx"
        quant_pre_process(path, fused, skip_symbolic_shape=True)
        quantization.quantize_static(
            fused,
            output,
            Pictures(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
