"""DeepLabV3+ has the layers of the baseline's, and exports for any batch size."""

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.inference.engines import open_onnx
from ovseg.inference.onnx import export_onnx
from ovseg.models.deeplabv3plus import DeepLabV3Plus


def test_exported_file_takes_any_batch_size(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    network = DeepLabV3Plus().eval()
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    export_onnx(network, images, tmp_path / "network.onnx")
    engine = open_onnx(tmp_path / "network.onnx")[0]
    for count in (1, 3):
        with torch.no_grad():
            expected = network(images[:count])
        assert torch.allclose(engine(images[:count]), expected, atol=1e-3)


def test_there_are_as_many_numbers_as_keras_counts():
    with torch.device("meta"):
        network = DeepLabV3Plus()
    found = 0
    for _, module in network.keras_layers():
        found += sum(target.tensor.numel() for target in keras_targets(module))
    assert found == 11_852_353


def test_stride_is_in_the_first_convolution_of_a_stack():
    blocks = DeepLabV3Plus().encoder.blocks
    strided = [name for name, block in blocks.items() if block.squeeze[0].stride == (2, 2)]
    assert strided == ["conv3_block1", "conv4_block1"]
    assert list(blocks)[-1] == "conv4_block5"
    assert all(block.squeeze[3].stride == (1, 1) for block in blocks.values())


def test_every_normalisation_has_keras_constants():
    norms = [m for m in DeepLabV3Plus().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01), (1.001e-5, 0.01)}


def test_network_trains_on_one_image():
    network = DeepLabV3Plus().train()
    image = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    assert torch.isfinite(network(image)).all()
    assert torch.isfinite(network.pyramid.pool.norm.running_var).all()


def test_no_class_is_an_error():
    with pytest.raises(InputError, match="deeplabv3plus: classes is 0"):
        DeepLabV3Plus(classes=0)
