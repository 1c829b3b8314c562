"""Every engine gives torch's probabilities; one that does not is not used."""

import builtins
import json
import math
import re

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.core.files import content_digest
from ovseg.inference import engine_choice
from ovseg.inference.engine_choice import (
    choose_engine,
    is_close,
    largest_difference,
    memory_path,
    try_engines,
)
from ovseg.inference.engines import ENGINES, EngineKind, build_engine
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
def engines(monkeypatch, tmp_path):
    """Only torch, and what a test adds; compiling takes half a minute. Nothing is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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


def test_trials_leave_out_what_differs_or_is_missing(network, image, engines):
    engines("wrong", build_wrong)
    engines("missing", build_missing)
    trials = {trial.name: trial for trial in try_engines(network, image)}
    assert list(trials) == ["torch", "wrong", "missing"]
    torch.testing.assert_close(trials["torch"].engine(image), network(image))
    assert 0 < trials["torch"].seconds < math.inf
    assert trials["wrong"].engine is None
    assert re.match("it is 0.0.* off torch's probabilities", trials["wrong"].problem)
    assert trials["missing"].problem == "This engine needs a package."


def test_auto_takes_the_fastest_and_prints_what_it_tried(network, image, engines, capsys):
    engines("slow", SlowEngine)
    engine = choose_engine("auto", network, image)
    torch.testing.assert_close(engine(image), network(image))
    lines = capsys.readouterr().out.splitlines()
    chosen = [line for line in lines if "chosen" in line]
    assert len(chosen) == 1
    assert "torch" in chosen[0]
    assert any("slow" in line for line in lines)


def test_auto_remembers_the_fastest(network, image, engines, capsys):
    engines("slow", SlowEngine)
    choose_engine("auto", network, image)
    capsys.readouterr()
    choose_engine("auto", network, image)
    assert "not tried: torch was the fastest before" in capsys.readouterr().out
    choose_engine("auto", network, image[:1])  # another size of batch
    assert "not tried" not in capsys.readouterr().out


def test_remembered_engine_is_still_compared_with_torch(network, image, engines):
    engines("fast", lambda network, image: network)
    memory_path().parent.mkdir(parents=True)
    situation = engine_choice.describe_situation(network, image)
    memory_path().write_text(json.dumps({content_digest(situation): "fast"}))
    engines("fast", build_wrong)
    engine = choose_engine("auto", network, image)
    torch.testing.assert_close(engine(image), network(image))


def test_auto_does_not_build_what_cannot_pay_back(network, image, engines, capsys):
    engines("slow to build", build_missing, build_seconds=1e6)
    choose_engine("auto", network, image, pictures=6)
    assert "too few pictures" in capsys.readouterr().out
    # What was not tried is not known to be slower.
    assert not memory_path().exists()
    choose_engine("auto", network, image)
    assert "This engine needs a package." in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "steam"}', "\0"])
def test_broken_memory_is_no_memory(content, network, image, engines):
    memory_path().parent.mkdir(parents=True)
    memory_path().write_text(content)
    choose_engine("auto", network, image)
    remembered = json.loads(memory_path().read_text())
    assert list(remembered.values()) == ["torch"]


def test_memory_that_cannot_be_written_is_no_error(network, image, engines, tmp_path):
    (tmp_path / "cache").write_text("a file")
    choose_engine("auto", network, image)


def test_auto_without_a_usable_engine_is_an_error(network, image, engines):
    engines("torch", build_wrong)
    with pytest.raises(InputError, match="No engine can be used. torch: it is 0.0.* off torch's"):
        choose_engine("auto", network, image)


def test_engine_that_differs_is_an_error(network, image, engines):
    engines("wrong", build_wrong)
    with pytest.raises(InputError, match="--engine wrong can't be used: it is 0.0.* off torch's"):
        choose_engine("wrong", network, image)


def test_engine_that_gives_nan_is_an_error(network, image, engines):
    engines("nan", lambda network, image: lambda image: network(image) * math.nan)
    with pytest.raises(InputError, match="--engine nan can't be used: it is nan off torch's"):
        choose_engine("nan", network, image)


def test_engine_that_fails_to_build_is_one_sentence(network, image, engines):
    def build(network, image):
        raise RuntimeError("No working C++ compiler found.\nAnd much more.")

    engines("compile", build)
    with pytest.raises(InputError, match="--engine compile can't be used: No working C.. compiler"):
        choose_engine("compile", network, image)


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
