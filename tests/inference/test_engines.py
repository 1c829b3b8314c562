"""Every engine gives torch's probabilities; one that does not is not used."""

import builtins

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.inference import engines
from ovseg.inference.engines import ENGINES, build_engine, calibrate, choose_engine
from ovseg.inference.onnx import export_onnx
from ovseg.models import build_model
from ovseg.training.task import allow_tf32


@pytest.fixture
def network():
    return build_model(
        "flexible_unet", base_filters=2, num_layers=3, base_kernel=5, dilation=2
    ).eval()


@pytest.fixture
def image():
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_engine_gives_the_logits_of_torch_for_any_batch(name, network, image):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    name == "torch" or pytest.importorskip(name, reason="needs the extra of this engine")
    with torch.inference_mode():
        engine = build_engine(name, network, image)
        for batch in (image, image[:1], image.repeat(2, 1, 1, 1)):
            assert torch.allclose(engine(batch), network(batch), atol=1e-4)


def test_exported_graph_has_plain_convolutions(network, image, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    export_onnx(network, image, tmp_path / "network.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node]
    assert (kinds.count("Conv"), kinds.count("ConvTranspose"), kinds.count("MatMul")) == (11, 2, 0)


@pytest.mark.parametrize("allowed", [False, True])
def test_export_works_in_a_process_that_set_tf32(allowed, network, image, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    allow_tf32(allowed)
    export_onnx(network, image, tmp_path / "network.onnx")
    assert (tmp_path / "network.onnx").stat().st_size > 0


def test_calibration_skips_what_differs_or_is_missing(network, image, monkeypatch):
    def missing(network, image):
        raise InputError("This engine needs a package.")

    table = {
        "torch": ENGINES["torch"],
        "wrong": lambda network, image: lambda image: network(image) + 0.1,
    }
    monkeypatch.setattr(engines, "ENGINES", {**table, "missing": missing})
    name, engine, rows = calibrate(network, image)
    assert name == "torch" and engine is network
    assert [row[0] for row in rows] == ["torch", "wrong", "missing"] and float(rows[0][1]) >= 0
    assert (
        rows[1][3] == "not used: it differs by more than 0.0001"
        and rows[2][3] == "This engine needs a package."
    )


def test_calibration_takes_the_fastest(network, image, monkeypatch):
    seconds = {"slow": 2.0, "fast": 1.0}
    table = {name: lambda network, image, name=name: _Named(name, network) for name in seconds}
    monkeypatch.setattr(engines, "ENGINES", table)
    monkeypatch.setattr(engines, "_seconds", lambda engine, image: seconds[engine.name])
    tables = []
    assert choose_engine("auto", network, image, tables.append).name == "fast"
    assert [row[3] for row in tables[0]] == ["", "chosen"]


class _Named:
    def __init__(self, name, network):
        self.name, self.network = name, network

    def __call__(self, image):
        return self.network(image)


def test_asked_engine_that_differs_is_an_error(network, image, monkeypatch):
    monkeypatch.setitem(
        engines.ENGINES, "wrong", lambda network, image: lambda image: network(image) + 0.1
    )
    with pytest.raises(InputError, match="--engine wrong is 0.0.* off torch's probabilities"):
        choose_engine("wrong", network, image, print)


def test_unknown_engine_is_an_error(network, image):
    with pytest.raises(
        InputError, match="Unknown engine 'steam'. Choose one of: compile, onnxruntime, "
    ):
        choose_engine("steam", network, image, print)


def test_cpu_engine_refuses_another_device(network, image):
    with pytest.raises(
        InputError, match="--engine openvino runs on the CPU, not on meta. Add --device cpu."
    ):
        choose_engine("openvino", network, image.to("meta"), print)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("onnxscript", "Exporting to ONNX needs"),
        ("onnxruntime", "needs ONNX Runtime"),
        ("openvino", "needs OpenVINO"),
    ],
)
def test_missing_package_is_one_sentence(package, message, network, image, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=message):
        if package == "onnxscript":
            export_onnx(network, image, "unused.onnx")
        else:
            build_engine(package, network, image)
