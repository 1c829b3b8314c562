"""The steps of every peer, and which peers can do which work."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import nn

from ovseg.benchmark.peers import (
    PEERS,
    build_own_network,
    build_step,
    build_training_optimizer,
    check_peer,
    count_flops,
    default_peers,
    make_batch,
)
from ovseg.core.errors import InputError

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


def learning_rates(optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("peer", ["torch", "ovseg", "smp"])
def test_training_step_lowers_the_loss(peer, make_work):
    step = build_step(peer, make_work("train", image_size=64, batch_size=2, clip_value=0.5))
    losses = [step() for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_training_step_runs_in_less_than_float32(precision, make_work):
    step = build_step("ovseg", make_work("train", precision=precision))
    assert step() > 0
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


def test_optimizer_has_the_encoders_learning_rate(make_work):
    work = make_work("train", model=PRETRAINED)
    optimizer = build_training_optimizer(build_own_network(work), work)
    assert learning_rates(optimizer) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_network_without_encoder_has_one_learning_rate(make_work):
    network = nn.Conv2d(3, 1, 3, padding=1)
    optimizer = build_training_optimizer(network, make_work("train", model=PRETRAINED))
    assert learning_rates(optimizer) == pytest.approx([1e-3, 1e-3])


def test_graphs_are_compiled_to_be_replayed(monkeypatch, make_work):
    modes = []

    def note_mode(network, mode):
        modes.append(mode)
        return network

    monkeypatch.setattr(torch, "compile", note_mode)
    for peer in ("compile", "graphs"):
        assert build_step(peer, make_work("train"))() > 0
    assert modes == ["default", "reduce-overhead"]


def test_inference_gives_probabilities(make_work):
    probs = build_step("ovseg", make_work(batch_size=2))()
    assert probs.shape == (2, 1, 32, 32)
    assert 0 <= probs.min() <= probs.max() <= 1


def test_both_peers_of_the_same_network_have_the_same_loss(make_work):
    plain = build_step("torch", make_work("train"))()
    ours = build_step("ovseg", make_work("train"))()
    assert plain == pytest.approx(ours, rel=1e-5)


def test_keras_trains_the_network(make_work):
    pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
    step = build_step("tensorflow", make_work("train", clip_value=0.5))
    losses = [step() for _ in range(6)]
    assert losses[-1] < losses[0]


def test_keras_infers_with_the_same_weights_what_ovseg_infers(tmp_path, make_work):
    pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
    weights = tmp_path / "initial.weights.h5"
    work = make_work(weights=weights)
    PEERS["tensorflow"].save_weights(work, weights)
    theirs = build_step("tensorflow", work)()
    ours = build_step("ovseg", work)()
    assert abs(ours - theirs).max() < 1e-4


def test_keras_infers_without_given_weights(make_work):
    pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
    probs = build_step("tensorflow", make_work(weights=None))()
    assert probs.shape == (1, 1, 32, 32)


def test_monai_trains(make_work):
    pytest.importorskip("monai", reason="needs the extra [monai]")
    assert build_step("monai", make_work("train", image_size=256))() > 0


def test_flops_are_those_counted_by_hand(make_work):
    model = {"arch": "flexible_unet", "arch_args": {"base_filters": 2, "num_layers": 1}}
    pixels = 32 * 32
    first = 2 * pixels * 81 * 3 * 2
    second = 2 * pixels * 81 * 2 * 2
    head = 2 * pixels * 2
    forward = first + second + head
    assert count_flops(make_work(model=model)) == forward
    gradient_of_the_picture = first  # which is not computed
    assert count_flops(make_work("train", model=model)) == 3 * forward - gradient_of_the_picture


def test_grouped_convolutions_cost_three_forward_passes_to_train(make_work):
    model = {"arch": "smp", "arch_args": {"encoder_name": "tu-tf_efficientnet_lite0"}}
    forward = count_flops(make_work("infer", model=model, batch_size=2))
    training = count_flops(make_work("train", model=model, batch_size=2))
    assert training == 3 * forward > 0


def test_batch_is_plain_pixels_and_a_lesion(make_work):
    image, mask = make_batch(make_work(batch_size=3))
    assert image.shape == (3, 3, 32, 32)
    assert image.dtype == torch.uint8
    assert mask.shape == (3, 1, 32, 32)
    red = image[:, :1].float()
    assert red[mask == 1].mean() < red[mask == 0].mean()


@pytest.fixture
def only_openvino(monkeypatch):
    """Of the optional packages, OpenVINO and the exporter seem to be installed, the others not."""
    installed = ("openvino", "onnxscript")

    def find_spec(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None) if name in installed else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_default_peers_are_what_is_installed_and_can_do_the_work(only_openvino, make_work):
    assert default_peers(make_work("infer")) == ["torch", "ovseg", "openvino"]
    assert default_peers(make_work("train")) == ["torch", "ovseg"]
    on_gpu = make_work("train", device="cuda")
    assert default_peers(on_gpu) == ["torch", "ovseg", "compile", "graphs"]
    assert default_peers(make_work("infer", device="mps")) == ["torch", "ovseg", "compile"]


@pytest.mark.parametrize(
    ("peer", "mode", "changes", "message"),
    [
        ("caffe", "train", {}, "Unknown peer 'caffe'. Choose one of: compile, graphs, monai"),
        ("openvino", "train", {}, "--peers openvino is for infer, not for train"),
        ("graphs", "train", {}, "--peers graphs runs on cuda, not on cpu"),
        ("openvino", "infer", {"device": "cuda:1"}, "--peers openvino runs on cpu, not on cuda:1"),
    ],
)
def test_peer_that_cannot_do_the_work_is_an_error(peer, mode, changes, message, make_work):
    with pytest.raises(InputError, match=message):
        check_peer(peer, make_work(mode, **changes))


@pytest.mark.parametrize(
    ("peer", "changes", "message"),
    [
        ("tensorflow", {"image_size": 33}, "--image_size 33 must be a multiple of 2 for Keras"),
        ("tensorflow", {"model": {"arch": "smp"}}, "tensorflow is the flexible_unet, not smp"),
        ("monai", {"image_size": 64}, "the peer monai, .* needs a multiple of 128 from 256 on"),
    ],
)
def test_network_or_size_that_is_not_for_a_peer_is_an_error(
    monkeypatch, peer, changes, message, make_work
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(InputError, match=message):
        check_peer(peer, make_work(**changes))


def test_missing_package_says_what_to_install(monkeypatch, make_work):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(InputError, match=r"--peers monai needs monai: pip install 'ovseg.monai.'"):
        check_peer("monai", make_work(image_size=256))


def test_network_of_several_categories_is_trained_and_applied(make_work):
    work = make_work()
    arch_args = {**work.arch_args, "classes": 4}
    model = {**work.model, "loss": "ce_dice_loss", "arch_args": arch_args}
    assert build_step("ovseg", make_work("train", model=model))() > 0
    probs = build_step("ovseg", make_work(model=model))()
    assert probs.sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "precision", "message"),
    [
        ({"loss": "focal_loss"}, "32", "not with loss focal_loss"),
        ({"optimizer": "sgd"}, "32", "not with optimizer sgd"),
        ({}, "bf16", "not with precision bf16"),
    ],
)
def test_training_that_keras_would_do_otherwise_is_refused(
    settings, precision, message, make_work, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    model = {**make_work().model, **settings}
    work = make_work("train", model=model, precision=precision)
    with pytest.raises(InputError, match=message):
        check_peer("tensorflow", work)
