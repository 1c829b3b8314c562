"""The benchmark measures what it says, writes it whole, and refuses before it measures."""

import json
from concurrent.futures import Future
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
import yaml

from ovseg.benchmark import command as benchmark_command
from ovseg.benchmark import layers as benchmark_layers
from ovseg.benchmark import measure as benchmark
from ovseg.benchmark import peers as benchmark_peers
from ovseg.benchmark.command import default_peers
from ovseg.benchmark.layers import list_layers, measure_layers
from ovseg.benchmark.measure import measure_scaling
from ovseg.benchmark.peers import Workload, build_step, count_flops, make_batch
from ovseg.benchmark.report import to_markdown, write_benchmark
from ovseg.cli.main import main
from ovseg.core.errors import InputError

NETWORK = {"base_filters": 2, "num_layers": 2, "dropout_rate": 0.0}
MODEL = {"arch": "flexible_unet", "arch_args": NETWORK, "optimizer_args": {"lr": 0.1}}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump({"model": MODEL, "data": {"image_size": 32, "batch_size": 1}}),
        encoding="utf-8",
    )
    return path


def run(config, output, *arguments: str) -> int:
    where = ["--config", str(config), "--output", str(output), "--device", "cpu", "--threads", "1"]
    return main(["benchmark", *arguments[:1], *where, *arguments[1:]])


def work(mode: str = "infer", **changes) -> Workload:
    return Workload(
        **{"mode": mode, "model": MODEL, "image_size": 32, "batch_size": 1, "threads": 1, **changes}
    )


def test_peers_take_turns_and_agree(config, tmp_path, capsys):
    options = ("--peers", "torch", "ovseg", "--repeats", "2", "--warmup", "1")
    assert run(config, tmp_path / "out", "infer", *options) == 0
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = content["infer"]["rows"]
    assert [row["peer"] for row in rows] == ["torch", "ovseg"] and rows[0]["speed"] == 1
    assert rows[1]["difference"] < 1e-4 and all(
        0 < r["least s"] <= r["median s"] <= r["most s"] for r in rows
    )
    assert rows[0]["images/s"] == pytest.approx(1 / rows[0]["median s"])
    assert 0 < rows[0]["share of peak"] < 1 and rows[0]["peak MiB"] > 100
    assert content["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "| peer | median s |" in (tmp_path / "out" / "benchmark.md").read_text()
    assert (tmp_path / "out" / "infer.png").stat().st_size > 5000
    assert "| ovseg |" in capsys.readouterr().out
    assert run(config, tmp_path / "out", "infer", *options) == 2  # not overwritten unasked


@pytest.mark.parametrize("peer", ["torch", "ovseg", "smp"])
def test_training_step_lowers_the_loss(peer):
    step = build_step(peer, work("train", image_size=64, batch_size=2, clip_value=0.5))
    losses = [step() for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_training_step_runs_in_less_than_float32(precision):
    assert build_step("ovseg", work("train", precision=precision))() > 0
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == (precision == "tf32")


PRETRAINED = {
    "arch": "smp",
    "arch_args": {
        "encoder_name": "resnet18",
        "encoder_weights": "imagenet",
        "decoder_args": {},
        "head_stride": 4,
    },
    "optimizer": "adamw",
    "encoder_lr_factor": 0.1,
}


@pytest.mark.parametrize(
    ("peer", "rates"), [("ovseg", [1e-3, 1e-3, 1e-4, 1e-4]), ("monai", [1e-3, 1e-3])]
)
def test_training_step_takes_the_tasks_optimizer_and_downloads_nothing(monkeypatch, peer, rates):
    made, build = [], benchmark_peers.optimize_network
    monkeypatch.setattr(
        benchmark_peers, "optimize_network", lambda *a: made.append(build(*a)) or made[0]
    )
    monkeypatch.setattr(benchmark_peers, "_monai_unet", lambda: torch.nn.Conv2d(3, 1, 3, padding=1))
    build_step(peer, work("train", image_size=64, model=PRETRAINED))
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx(rates)


def test_graphs_replay_only_on_a_gpu(monkeypatch):
    kinds = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: kinds.append(mode) or network)
    assert build_step("graphs", work("train"))() > 0 and build_step("graphs", work())().shape == (
        1,
        32,
        32,
    )
    assert kinds == ["reduce-overhead"] * 2


def test_inference_gives_probabilities():
    probs = build_step("ovseg", work(batch_size=2))()
    assert probs.shape == (2, 32, 32) and 0 <= probs.min() <= probs.max() <= 1


def test_both_peers_of_the_same_network_have_the_same_loss():
    losses = [build_step(peer, work("train"))() for peer in ("torch", "ovseg")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_keras_peer_trains_and_infers_the_same_network(tmp_path):
    pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
    step = build_step("tensorflow", work("train", clip_value=0.5))
    losses = [step() for _ in range(6)]
    assert losses[-1] < losses[0]
    weights = tmp_path / "initial.weights.h5"
    benchmark._draw_weights(work(weights=weights))
    ours, theirs = (build_step(peer, work(weights=weights))() for peer in ("ovseg", "tensorflow"))
    assert abs(ours - theirs).max() < 1e-4


def test_flops_are_those_counted_by_hand():
    one = {**MODEL, "arch_args": {"base_filters": 2, "num_layers": 1}}
    forward = 2 * 32 * 32 * (81 * 3 * 2 + 81 * 2 * 2 + 2 * 1)
    assert count_flops(work(model=one)) == forward
    no_gradient_of_the_picture = 2 * 32 * 32 * 81 * 3 * 2
    assert count_flops(work("train", model=one)) == 3 * forward - no_gradient_of_the_picture


def test_batch_is_plain_pixels_and_a_lesion():
    image, mask = make_batch(work(batch_size=3))
    assert (image.shape, image.dtype, mask.shape) == ((3, 3, 32, 32), torch.uint8, (3, 1, 32, 32))
    assert image.float()[:, :1][mask == 1].mean() < image.float()[:, :1][mask == 0].mean()


def test_layers_are_measured_in_order_and_once_a_kind(monkeypatch):
    calls = []
    measure = benchmark_layers._measure_layer
    monkeypatch.setattr(
        benchmark_layers, "_measure_layer", lambda *a: calls.append(a[0]) or measure(*a)
    )
    table = measure_layers(work("train"), repeats=1, ways=("torch", "torch channels_last", "ovseg"))
    assert list(table.index) == [name for name, _, _ in list_layers(work())]
    assert (
        table.index[0] == "encoder.0.conv1"
        and table["what"].iloc[0] == "conv 3->2, 9x9 dilation 3, 32x32"
    )
    assert len(calls) == table["what"].nunique() == 7 and len(table) == 8
    measured = table.filter(like=" ms").drop(index="head")
    assert (measured > 0).all(axis=None) and table.loc[
        "head"
    ].isna().sum() == 2  # the head is torch's own layer


def test_layers_command_writes_its_figure(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        benchmark_command, "run_alone", lambda function, *arguments: function(*arguments)
    )
    assert run(config, tmp_path / "out", "layers", "--repeats", "1") == 0
    assert (tmp_path / "out" / "layers.png").is_file()


def test_scaling_covers_every_variable(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "SIZES", (32,))
    monkeypatch.setattr(benchmark, "BATCHES", (1,))
    monkeypatch.setattr(benchmark, "_process", lambda peer: nullcontext(_Here()))
    table = measure_scaling(work(), ["ovseg"], repeats=1)
    assert list(table["variable"]) == ["image size", "batch size", "layers", "threads"]
    assert table["ns a pixel"].iloc[0] == pytest.approx(table["seconds"].iloc[0] / 32**2 * 1e9)
    write_benchmark(tmp_path / "out", {"scaling": table}, benchmark.describe_machine(work()), False)
    assert (tmp_path / "out" / "scaling.png").is_file()


class _Here:
    """A pool that calls in this process: new ones take seconds to start."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def test_loading_rows_become_a_figure(tmp_path):
    row = {"size": 64, "pipeline": "none", "loader": "cache", "workers": 0, "batch_size": 8}
    table = pd.DataFrame([{**row, "images_per_second": 50.0, "lowest": 45.0, "highest": 51.0}])
    write_benchmark(tmp_path / "out", {"data": table}, benchmark.describe_machine(work()), False)
    assert (tmp_path / "out" / "data.png").is_file()


def test_markdown_leaves_out_what_was_not_measured():
    table = pd.DataFrame(
        {"peer": ["a"], "x": [float("nan")], "y": [0.12345], "z": [12345.6]}
    ).set_index("peer")
    assert to_markdown(table).splitlines()[-1] == "| a |  | 0.123 | 12346 |"


def test_grouped_convolutions_cost_three_forward_passes_to_train():
    model = {"arch": "smp", "arch_args": {"encoder_name": "tu-tf_efficientnet_lite0"}}
    forward, training = (
        count_flops(Workload(mode, model, image_size=32)) for mode in ("infer", "train")
    )
    assert training == 3 * forward > 0


def test_default_peers_are_what_is_installed(monkeypatch):
    monkeypatch.setattr(
        benchmark_command.importlib.util, "find_spec", lambda name: name == "openvino" or None
    )
    assert default_peers(work()) == ["torch", "ovseg", "openvino"]
    assert default_peers(work("train", device="cuda")) == ["torch", "ovseg", "compile", "graphs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "Unknown benchmark 'run'. Choose one of: data, infer, layers, train"),
        (("train", "--precision", "8"), "Unknown precision '8'. Choose one of: 16, 32, bf16, tf32"),
        (("train", "--repeats", "0"), "--repeats is 0, expected at least 1"),
        (
            ("train", "--peers", "caffe"),
            "Unknown peer 'caffe'. Choose one of: compile, graphs, monai",
        ),
        (("train", "--peers", "openvino"), "--peers openvino only infers"),
        (("train", "--peers", "graphs"), "--peers graphs needs a CUDA device, not cpu"),
        (
            ("infer", "--peers", "tensorflow", "--image-size", "33"),
            "--image-size 33 must be a multiple of 2",
        ),
    ],
)
def test_what_cannot_be_measured_is_an_error(config, tmp_path, capsys, arguments, message):
    assert run(config, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_peers_of_another_network_or_device_are_errors():
    with pytest.raises(InputError, match="--peers tensorflow is the flexible_unet, not smp"):
        benchmark.measure_peers(work(model={"arch": "smp"}), ["tensorflow"])
    with pytest.raises(InputError, match="--peers openvino runs on the CPU, not on cuda"):
        benchmark.measure_peers(work(device="cuda"), ["openvino"])


def test_missing_monai_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(InputError, match="The peer monai needs MONAI: pip install 'ovseg.monai.'"):
        build_step("monai", work())
