"""Every engine gives torch's probabilities; one that does not is not used."""

import builtins
import math

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.inference.engines import (
    ENGINES,
    EngineKind,
    build_engine,
    calibrate,
    choose_engine,
    is_close,
    largest_difference,
)
from ovseg.inference.onnx import export_onnx


class SlowEngine:
    """Torch, after a pause."""

    def __init__(self, network, image):
        self.network = network

    def __call__(self, image):
        total = torch.zeros(1)
        for _ in range(20):
            total += self.network(image).sum()
        return self.network(image)


def build_wrong(network, image):
    return lambda image: network(image) + 0.1


def build_missing(network, image):
    raise InputError("This engine needs a package.")


@pytest.fixture
def engines(monkeypatch):
    """Only torch, and what a test adds; compiling takes half a minute."""
    for name in list(ENGINES):
        if name != "torch":
            monkeypatch.delitem(ENGINES, name)

    def add(name, build, **options):
        monkeypatch.setitem(ENGINES, name, EngineKind(build, **options))

    return add


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_engine_gives_the_logits_of_torch_for_any_batch(name, size, network, image):
    if name != "torch":
        pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
        pytest.importorskip(name, reason="needs the extra of this engine")
    batch = image.repeat(2, 1, 1, 1)[:size]
    with torch.inference_mode():
        engine = build_engine(name, network, image)
        assert torch.allclose(engine(batch), network(batch), atol=1e-4)


def test_calibration_skips_what_differs_or_is_missing(network, image, engines):
    engines("wrong", build_wrong)
    engines("missing", build_missing)
    best, trials = calibrate(network, image)
    assert best.name == "torch"
    torch.testing.assert_close(best.engine(image), network(image))
    found = {trial.name: trial for trial in trials}
    assert list(found) == ["torch", "wrong", "missing"]
    assert 0 <= found["torch"].seconds < math.inf
    assert found["wrong"].problem == "not used: it differs by more than 0.0001"
    assert found["missing"].problem == "This engine needs a package."


def test_auto_takes_the_fastest_and_prints_what_it_tried(network, image, engines, capsys):
    engines("slow", SlowEngine)
    engine = choose_engine("auto", network, image)
    torch.testing.assert_close(engine(image), network(image))
    lines = capsys.readouterr().out.splitlines()
    chosen = [line for line in lines if "chosen" in line]
    assert len(chosen) == 1
    assert "torch" in chosen[0]
    assert any("slow" in line for line in lines)


def test_auto_without_a_usable_engine_is_an_error(network, image, engines):
    engines("torch", build_wrong)
    with pytest.raises(InputError, match="No engine can be used. torch: not used: it differs"):
        choose_engine("auto", network, image)


def test_engine_that_differs_is_an_error(network, image, engines):
    engines("wrong", build_wrong)
    with pytest.raises(InputError, match="--engine wrong is 0.0.* off torch's probabilities"):
        choose_engine("wrong", network, image)


def test_engine_that_gives_nan_is_an_error(network, image, engines):
    engines("nan", lambda network, image: lambda image: network(image) * math.nan)
    with pytest.raises(InputError, match="--engine nan is nan off torch's probabilities"):
        choose_engine("nan", network, image)


def test_unknown_engine_is_an_error(network, image):
    message = "Unknown engine 'steam'. Choose one of: compile, onnxruntime, "
    with pytest.raises(InputError, match=message):
        choose_engine("steam", network, image)


def test_cpu_engine_refuses_another_device(network, image):
    message = "--engine openvino runs on the CPU, not on meta. Add --device cpu."
    with pytest.raises(InputError, match=message):
        choose_engine("openvino", network, image.to("meta"))


def test_difference_is_of_probabilities():
    logits = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    assert largest_difference(logits, torch.zeros(1, 1, 1, 2)) == pytest.approx(0.3808, abs=1e-4)
    of_classes = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    assert largest_difference(of_classes, torch.zeros(1, 2, 1, 1)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("difference", "close"), [(0.0, True), (1e-4, True), (2e-4, False), (math.nan, False)]
)
def test_nan_is_not_close(difference, close):
    assert is_close(difference) is close


@pytest.mark.parametrize(
    ("package", "message"),
    [("onnxruntime", "needs ONNX Runtime"), ("openvino", "needs OpenVINO")],
)
def test_missing_package_of_an_engine_is_one_sentence(
    package, message, network, image, without_package
):
    without_package(package)
    with pytest.raises(InputError, match=message):
        build_engine(package, network, image)


def test_missing_exporter_is_one_sentence(network, image, tmp_path, without_package):
    without_package("onnxscript")
    with pytest.raises(InputError, match="Exporting to ONNX needs"):
        export_onnx(network, image, tmp_path / "unused.onnx")
    assert not (tmp_path / "unused.onnx").exists()


@pytest.fixture
def without_package(monkeypatch):
    """A function after which a package can't be imported."""
    real_import = builtins.__import__

    def remove(package):
        def without(name, *args, **kwargs):
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real_import(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)

    return remove
