"""`ovseg benchmark` writes its files whole, and refuses before it measures."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml

from ovseg.benchmark import formats
from ovseg.benchmark.command import benchmark
from ovseg.core.errors import InputError

CONTENT = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {"base_filters": 2, "num_layers": 2, "dropout_rate": 0.0},
        "optimizer_args": {"lr": 0.1},
    },
    "data": {"image_size": 32, "batch_size": 1},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained_run(make_run, tmp_path_factory) -> Path:
    """A tiny run with its configuration."""
    run = make_run(tmp_path_factory.mktemp("run"))
    (run / "config.yaml").write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    return run


@pytest.fixture
def refuse(config, tmp_path):
    """A function that asserts that options are refused and that nothing is written."""

    def assert_refused(what: str, message: str, **options) -> None:
        output = tmp_path / "out"
        with pytest.raises(InputError, match=message):
            benchmark(what, output, config, [], device="cpu", threads=1, **options)
        assert not output.exists()

    return assert_refused


def test_inference_is_measured_and_not_overwritten(config, tmp_path, capsys, run_command):
    output = tmp_path / "out"
    where = ("--config", config, "--output", output, "--device", "cpu", "--threads", 2)
    how = ("--peers", "ovseg", "--repeats", 1, "--warmup", 1)
    assert run_command("benchmark", "infer", *where, *how) == 0
    assert "| ovseg " in capsys.readouterr().out
    content = json.loads((output / "benchmark.json").read_text())
    assert content["infer"]["rows"][0]["peer"] == "ovseg"
    assert (output / "infer.png").is_file()

    assert run_command("benchmark", "infer", *where, *how) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_layers_are_measured(config, tmp_path):
    text = benchmark("layers", tmp_path / "out", config, [], repeats=1, threads=1, device="cpu")
    assert "encoder.0.conv1" in text
    assert (tmp_path / "out" / "layers.png").is_file()


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("run", {}, "Unknown benchmark 'run'. Choose one of: data, infer, layers, train"),
        ("train", {"precision": "8"}, "Unknown precision '8'. Choose one of: 16, 32, bf16, tf32"),
        ("train", {"repeats": 0, "batch_size": 0}, "--repeats is 0, --batch_size is 0, expected"),
        ("train", {"peers": ["torch", "caffe"]}, "Unknown peer 'caffe'"),
        ("data", {}, r"small.yaml has no data.root.* Add --data FOLDER"),
    ],
)
def test_what_cannot_be_measured_is_an_error(refuse, what, options, message):
    refuse(what, message, **options)


def test_configuration_without_an_architecture_is_an_error(config, refuse):
    config.write_text(yaml.safe_dump({"model": {}, "data": {}}), encoding="utf-8")
    refuse("train", "Unknown arch None. Choose one of: attention_unet")


def test_scaling_that_a_peer_cannot_do_is_an_error_before_anything_is_measured(
    config, refuse, monkeypatch
):
    model = {"arch": "flexible_unet", "arch_args": {"num_layers": 9}}
    config.write_text(yaml.safe_dump({"model": model, "data": {"image_size": 512}}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    message = "--scaling cannot measure tensorflow at image size 128: .* multiple of 256"
    refuse("infer", message, peers=["tensorflow"], scaling=True)


def test_files_of_a_run_are_measured(trained_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    monkeypatch.setattr(formats, "FILES", {"ONNX": ("onnx", "float32")})
    options = {"run": trained_run, "repeats": 2, "threads": 1, "device": "cpu"}
    text = benchmark("infer", tmp_path / "out", Path("unused"), [], **options)
    assert (tmp_path / "out" / "formats.png").is_file()
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = {row["file"]: row for row in content["formats"]["rows"]}
    assert list(rows) == ["the run, torch", "ONNX", "ONNX by ovseg.runtime"]
    assert rows["ONNX"]["least Dice with the run"] == 1
    assert rows["ONNX"]["Dice"] == rows["the run, torch"]["Dice"]
    for name, row in rows.items():
        assert name in text
        assert 0 < row["least s"] <= row["median s"] <= row["most s"]
        assert row["peak MiB"] > 100


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("train", {}, "--run is for `benchmark infer`, not for train"),
        ("infer", {"peers": ["torch"]}, "--run has no --peers"),
    ],
)
def test_run_goes_with_infer_alone(refuse, tmp_path, what, options, message):
    refuse(what, message, run=tmp_path, **options)


def test_run_without_a_configuration_is_refused(refuse, tmp_path):
    refuse("infer", "is no run folder with a configuration", run=tmp_path)
