"""The ONNX file: what is in it and what is not."""

import pytest
import torch

from ovseg.inference.onnx import export_onnx
from ovseg.training.task import allow_tf32
from support import REPOSITORY

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")


def test_graph_has_plain_convolutions(network, image, tmp_path):
    path = tmp_path / "network.onnx"
    export_onnx(network, image, path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Conv") == 11
    assert kinds.count("ConvTranspose") == 2
    assert kinds.count("MatMul") == 0


@pytest.mark.parametrize("allowed", [False, True])
def test_export_works_in_a_process_that_set_tf32(allowed, network, image, tmp_path):
    allow_tf32(allowed)
    export_onnx(network, image, tmp_path / "network.onnx")
    assert (tmp_path / "network.onnx").stat().st_size > 0


def test_file_has_no_path_of_this_machine(network, image, tmp_path):
    export_onnx(network, image, tmp_path / "network.onnx", {"made_by": "a test"})
    content = (tmp_path / "network.onnx").read_bytes()
    assert b"made_by" in content
    for name in (REPOSITORY, torch.__file__.removesuffix("__init__.py"), "stack_trace"):
        assert str(name).encode() not in content
