"""The tools that `ovseg benchmark` measures, and how each does a training step or an inference.

A new peer is one entry of `PEERS`. Steps are built in the process that times them.
"""

import importlib.util
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ovseg.baseline.keras_settings import keras_unet_arguments
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose, fill_defaults
from ovseg.inference.engines import arrange_for_inference, build_engine
from ovseg.inference.predictor import class_probs
from ovseg.models import build_model, find_architecture
from ovseg.models.layers import InputScale
from ovseg.training.losses import build_loss
from ovseg.training.optim import OPTIMIZERS, find_encoder, optimize_network
from ovseg.training.task import SegmentationTask, allow_tf32

MODES = ("train", "infer")
PRECISIONS = {"32": None, "tf32": None, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Workload:
    """What is measured; plain values, so that it can be sent to other processes.

    Attributes:
        mode: of `MODES`.
        model: section `model` of a training YAML.
        clip_value: each gradient element is cut to +-this, or None.
        image_size: side of the squares, pixels.
        batch_size: images a step.
        threads: CPU threads.
        device: a torch device.
        precision: a key of `PRECISIONS`: torch's peers run under autocast to bf16 or 16; tf32 is
            float32 whose products a GPU rounds to 10 bits, which 32 forbids.
        channels_last: whether torch's peers keep images and weights in that memory format.
        weights: Keras' initial weights for the peers of the same network; None lets each tool draw
            its own.
    """

    mode: str
    model: dict[str, Any]
    clip_value: float | None = None
    image_size: int = 512
    batch_size: int = 2
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    precision: str = "32"
    channels_last: bool = False
    weights: Path | None = None

    @property
    def classes(self) -> int:
        """Channels of the logits: 1, or the background and all categories."""
        return self.arch_args.get("classes", 1)

    @property
    def training(self) -> dict[str, Any]:
        """The arguments of the task: those of the configuration, and the others' defaults."""
        return fill_defaults(SegmentationTask, self.model)

    @property
    def arch_args(self) -> dict[str, Any]:
        """The arguments of the architecture, a new dict."""
        return dict(self.model.get("arch_args") or {})


# Does the work once. A training step returns its loss, an inference returns probabilities, float32
# (N, classes, H, W).
Step = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """A tool to measure.

    Attributes:
        build_step: a function from a workload to a step.
        modes: what it can do, of `MODES`.
        devices: types of torch devices that it runs on; empty for all.
        packages: the modules that it needs besides torch; a report has their versions.
        extra: ovseg's extra that installs the packages.
        default_on: where it is measured unless peers are named, of `cpu` and `gpu` (any other
            device).
        same_network: whether it computes the configuration's network, so that its arithmetic and
            probabilities can be compared.
        own_memory: whether its process handles memory as ovseg's commands do, with huge pages and
            `ovseg.core.memory.keep_freed_memory`; the others have the system's and torch's default.
        check: raises InputError where the work is not for this peer.
        save_weights: writes initial weights that all peers of the same network start from.
    """

    build_step: Callable[[Workload], Step]
    modes: tuple[str, ...] = MODES
    devices: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = ""
    default_on: tuple[str, ...] = ()
    same_network: bool = True
    own_memory: bool = False
    check: Callable[[Workload], None] | None = None
    save_weights: Callable[[Workload, Path], None] | None = None


def check_peer(name: str, work: Workload) -> None:
    """Refuse a peer that cannot do the work.

    Raises:
        InputError: unknown name, another mode or device, a missing package, or a network or size
            that is not for it.
    """
    peer: Peer = choose("peer", name, PEERS)
    if work.mode not in peer.modes:
        raise InputError(
            f"--peers {name} is for {first_five(peer.modes)}, not for {work.mode}. Leave it out."
        )
    device = torch.device(work.device).type
    if peer.devices and device not in peer.devices:
        raise InputError(
            f"--peers {name} runs on {first_five(peer.devices)}, not on {work.device}. "
            f"Leave it out or use --device {peer.devices[0]}."
        )
    missing = [package for package in peer.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"--peers {name} needs {first_five(missing)}: pip install 'ovseg[{peer.extra}]'."
        )
    if peer.check is not None:
        peer.check(work)


def default_peers(work: Workload) -> list[str]:
    """The peers that are measured unless some are named: those that can do the work here."""
    kind = "cpu" if work.device == "cpu" else "gpu"
    names = []
    for name, peer in PEERS.items():
        if kind not in peer.default_on:
            continue
        try:
            check_peer(name, work)
        except InputError:
            continue
        names.append(name)
    return names


def make_batch(work: Workload) -> tuple[Tensor, Tensor]:
    """Speckle around an ellipse and its mask: uint8 (N, 3, S, S) and (N, 1, S, S)."""
    size = work.image_size
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    ellipse = rows**2 + 2 * columns**2 < 0.05
    mask = ellipse[None, None].repeat(work.batch_size, 0)
    speckle = generator.gamma(4, 0.25, (work.batch_size, 3, size, size))
    image = np.where(mask, 40, 120) * speckle
    image = image.clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image), torch.from_numpy(mask.astype(np.uint8))


def count_flops(work: Workload) -> int:
    """Floating-point operations of the work's direct algorithm, one multiply-add counted as two.

    The backward pass of a network with grouped convolutions is taken as twice the forward pass,
    because torch's counter counts their weight gradients as if the convolutions were dense.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_plain_network(replace(work, weights=None))  # none can be loaded there
        image = torch.zeros(work.batch_size, 3, work.image_size, work.image_size)
        logits = network(image)
        grouped = any(getattr(module, "groups", 1) > 1 for module in network.modules())
        if work.mode == "train" and not grouped:
            logits.sum().backward()
    flops = counter.get_total_flops()
    if work.mode == "train" and grouped:
        return 3 * flops
    return flops


def build_own_network(work: Workload, **changes: object) -> nn.Module:
    """The configuration's network, with Keras' weights where the work has them.

    Nothing is downloaded.

    Args:
        work: what is measured.
        changes: arguments of the architecture that replace the configuration's.
    """
    arguments = {**work.arch_args, **changes}
    if "encoder_weights" in arguments:
        arguments["encoder_weights"] = None  # they change no time
    network = build_model(work.model["arch"], **arguments)
    if work.weights is not None:
        load_keras_weights(network, work.weights)
    return network


def build_plain_network(work: Workload) -> nn.Module:
    """The configuration's network of torch's own convolutions, where it can choose."""
    architecture = find_architecture(work.model["arch"])
    if "convolution" in inspect.signature(architecture).parameters:
        return build_own_network(work, convolution="direct")
    return build_own_network(work)


def _build_smp_unet(work: Workload) -> nn.Module:
    return build_model("smp", architecture="unet", encoder_name="resnet34", encoder_weights=None)


def _build_monai_unet(work: Workload) -> nn.Module:
    from monai.networks.nets import UNet

    channels = [16 * 2**level for level in range(8)]
    network = UNet(
        spatial_dims=2, in_channels=3, out_channels=1, channels=channels, strides=[2] * 7
    )
    return nn.Sequential(InputScale(1 / 255), network)


def _check_monai(work: Workload) -> None:
    if work.image_size % 128 or work.image_size == 128:
        raise InputError(
            f"--image_size is {work.image_size}, but the peer monai, of 8 levels with instance "
            "normalisation, needs a multiple of 128 from 256 on."
        )


def build_training_optimizer(network: nn.Module, work: Workload) -> torch.optim.Optimizer:
    """The optimiser that the task would build; a network without encoder has one learning rate."""
    training = work.training
    encoder_lr_factor = 1.0
    separate_encoder = False
    if find_encoder(network) is not None:
        encoder_lr_factor = training["encoder_lr_factor"]
        separate_encoder = training["freeze_encoder_epochs"] > 0
    return optimize_network(
        network,
        training["optimizer"],
        training["optimizer_args"] or {},
        encoder_lr_factor,
        separate_encoder,
    )


def _build_torch_step(
    build_network: Callable[[Workload], nn.Module],
    work: Workload,
    engine: str | None = None,
    compile_mode: str | None = None,
) -> Step:
    """A step of a torch network.

    Args:
        build_network: a function from a workload to the network.
        work: what the step does.
        engine: for inference, a key of `ovseg.inference.engines.ENGINES`, in the memory format of
            ovseg's commands; None calls the network itself.
        compile_mode: for training, torch.compile's; None does not compile.
    """
    torch.set_num_threads(work.threads)
    allow_tf32(work.precision == "tf32")
    device = choose_device(work.device)
    torch.manual_seed(0)
    network = build_network(work).to(device)
    image, mask = make_batch(work)
    image = image.to(device)
    mask = mask.to(device)
    if work.channels_last:
        network = network.to(memory_format=torch.channels_last)
        image = image.to(memory_format=torch.channels_last)
    if work.mode == "train":
        return _build_training_step(network, image, mask, work, compile_mode)
    network.eval()
    forward: Callable[[Tensor], Tensor] = network
    if engine is not None:
        network = arrange_for_inference(network, device)
        with torch.inference_mode(), _autocast(work):
            forward = build_engine(engine, network, image)
    return _build_inference_step(forward, image, work)


def _build_training_step(
    network: nn.Module, image: Tensor, mask: Tensor, work: Workload, compile_mode: str | None
) -> Step:
    loss_function = build_loss(work.training["loss"], work.classes)
    optimizer = build_training_optimizer(network, work)
    scaler = torch.amp.GradScaler(image.device.type, enabled=work.precision == "16")
    forward: Callable[[Tensor], Tensor] = network
    if compile_mode is not None:
        forward = torch.compile(network, mode=compile_mode)

    def step() -> float:
        with _autocast(work):
            logits = forward(image)
        loss = loss_function(logits.float(), mask)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if work.clip_value:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_value_(network.parameters(), work.clip_value)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def _build_inference_step(
    forward: Callable[[Tensor], Tensor], image: Tensor, work: Workload
) -> Step:
    @torch.inference_mode()
    def step() -> np.ndarray:
        with _autocast(work):
            logits = forward(image)
            return class_probs(logits)

    return step


def _autocast(work: Workload) -> AbstractContextManager:
    dtype = PRECISIONS[work.precision]
    if dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(work.device).type, dtype)


def _keras_network(work: Workload) -> dict[str, Any]:
    return keras_unet_arguments(work.arch_args, work.image_size)


def _check_keras(work: Workload) -> None:
    if work.model["arch"] != "flexible_unet":
        raise InputError(
            f"--peers tensorflow is the flexible_unet, not {work.model['arch']}. Leave it out."
        )
    _keras_network(work)
    other = []
    if work.training["loss"] != "bce_dice_loss":
        other.append(f"loss {work.training['loss']}")
    if work.training["optimizer"] not in ("adam", "keras_adam"):
        other.append(f"optimizer {work.training['optimizer']}")
    if work.precision != "32":
        other.append(f"precision {work.precision}")
    if work.mode == "train" and other:
        raise InputError(
            f"--peers tensorflow trains with bce_dice_loss and Adam in float32, not with "
            f"{first_five(other)}. Leave it out."
        )


def _keras_optimizer(work: Workload) -> dict[str, Any]:
    """Learning rate, epsilon and clipping of Adam; by default the first two are Keras'."""
    arguments = fill_defaults(OPTIMIZERS["keras_adam"], work.training["optimizer_args"])
    return {"lr": arguments["lr"], "eps": arguments["eps"], "clip_value": work.clip_value}


def _save_keras_weights(work: Workload, path: Path) -> None:
    from ovseg.baseline.keras_unet import save_initial_weights

    save_initial_weights(_keras_network(work), path, 42, work.threads)


def _build_keras_step(work: Workload) -> Step:
    from ovseg.baseline.keras_unet import keras_inference, keras_training_step

    torch.set_num_threads(work.threads)
    image, mask = make_batch(work)
    pixels = image.permute(0, 2, 3, 1).numpy()
    if work.mode == "infer":
        predict = keras_inference(_keras_network(work), work.weights, work.threads, pixels)
        return lambda: predict().transpose(0, 3, 1, 2)
    reference = mask.permute(0, 2, 3, 1).numpy()
    return keras_training_step(
        _keras_network(work),
        work.weights,
        _keras_optimizer(work),
        work.threads,
        pixels,
        reference,
    )


PEERS = {
    # Keras with TensorFlow, without dropout.
    "tensorflow": Peer(
        _build_keras_step,
        devices=("cpu",),
        packages=("tensorflow", "keras"),
        extra="tensorflow",
        default_on=("cpu",),
        check=_check_keras,
        save_weights=_save_keras_weights,
    ),
    # Plain torch.nn layers and torch's default memory.
    "torch": Peer(
        partial(_build_torch_step, build_plain_network),
        default_on=("cpu", "gpu"),
    ),
    # This package.
    "ovseg": Peer(
        partial(_build_torch_step, build_own_network, engine="torch"),
        default_on=("cpu", "gpu"),
        own_memory=True,
    ),
    # This package, compiled.
    "compile": Peer(
        partial(_build_torch_step, build_own_network, engine="compile", compile_mode="default"),
        default_on=("gpu",),
        own_memory=True,
    ),
    # This package, compiled, its kernels recorded and replayed as CUDA graphs. In inference it is
    # the same as `compile`, whose engine does so on CUDA.
    "graphs": Peer(
        partial(
            _build_torch_step, build_own_network, engine="compile", compile_mode="reduce-overhead"
        ),
        devices=("cuda",),
        default_on=("gpu",),
        own_memory=True,
    ),
    "onnxruntime": Peer(
        partial(_build_torch_step, build_own_network, engine="onnxruntime"),
        modes=("infer",),
        devices=("cpu",),
        packages=("onnxruntime", "onnxscript"),
        extra="onnx",
        default_on=("cpu",),
    ),
    "openvino": Peer(
        partial(_build_torch_step, build_own_network, engine="openvino"),
        modes=("infer",),
        devices=("cpu",),
        packages=("openvino", "onnxscript"),
        extra="onnx,openvino",
        default_on=("cpu",),
    ),
    # Another network: segmentation-models-pytorch's U-Net with a ResNet-34.
    "smp": Peer(
        partial(_build_torch_step, _build_smp_unet),
        packages=("segmentation_models_pytorch",),
        same_network=False,
    ),
    # Another network: MONAI's UNet, 8 levels of 16 to 2,048 channels.
    "monai": Peer(
        partial(_build_torch_step, _build_monai_unet),
        packages=("monai",),
        extra="monai",
        same_network=False,
        check=_check_monai,
    ),
}


def build_step(name: str, work: Workload) -> Step:
    """A function that does the work once; see `Step`."""
    peer: Peer = choose("peer", name, PEERS)
    return peer.build_step(work)
