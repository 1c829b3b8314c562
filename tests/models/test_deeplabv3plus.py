"""DeepLabV3+: what it promises beyond the contract of every architecture."""

import pytest
import torch

from ovseg.inference.engines import open_onnx
from ovseg.inference.onnx import export_onnx
from ovseg.models.deeplabv3plus import DeepLabV3Plus


def test_exported_file_takes_any_batch_size(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    network = DeepLabV3Plus().eval()
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    export_onnx(network, images, tmp_path / "network.onnx")
    engine = open_onnx(tmp_path / "network.onnx")
    for count in (1, 3):
        with torch.no_grad():
            expected = network(images[:count])
        assert torch.allclose(engine(images[:count]), expected, atol=1e-3)
