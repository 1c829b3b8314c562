"""One training step or one inference of every peer of `benchmark`, built in the process that times it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.inference.engines import build_engine
from ovseg.models import ARCHITECTURES, build_model
from ovseg.models.layers import ALGORITHMS, InputScale
from ovseg.training.losses import build_loss
from ovseg.training.optim import find_encoder, optimize_network
from ovseg.training.task import allow_tf32

# Peers and what they are; all but the last two compute the configuration's network; those are networks of their own.
PEERS = {
    "tensorflow": "Keras with TensorFlow, without dropout (extra [tensorflow])",
    "torch": "plain torch.nn layers and torch's default memory",
    "ovseg": "this package",
    "compile": "this package, compiled",
    "graphs": "this package, compiled, its kernels recorded and replayed as CUDA graphs (on a GPU only)",
    "onnxruntime": "ONNX Runtime, inference only (extra [onnx])",
    "openvino": "OpenVINO, inference only (extras [onnx,openvino])",
    "smp": "another network: segmentation-models-pytorch's U-Net with a ResNet-34",
    "monai": "another network: MONAI's UNet, 8 levels of 16 to 2,048 channels (extra [monai])",
}
ONLY_INFER = ("onnxruntime", "openvino")
PRECISIONS = {"32": None, "tf32": None, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass
class Workload:
    """What is measured; plain values, so that it goes to other processes.

    Attributes:
        mode: `train` or `infer`.
        model: section `model` of a training YAML.
        clip_value: each gradient element is cut to +-this, or None.
        image_size: side of the squares.
        batch_size: images a step.
        threads: CPU threads.
        device: a torch device.
        precision: a key of `PRECISIONS`: torch's peers run under autocast to bf16 or 16; tf32 is float32 whose products
            a GPU rounds to 10 bits, which 32 forbids.
        channels_last: whether torch's peers hold images and weights that way.
        weights: Keras' initial weights for the peers of the same network, or None for torch's own.
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


def build_step(peer: str, work: Workload) -> Callable[[], Any]:
    """A function that does the work once: a training step gives its loss, an inference probabilities (N, H, W)."""
    torch.set_num_threads(work.threads)
    allow_tf32(work.precision == "tf32")
    if peer == "tensorflow":
        return _keras_step(work)
    device = choose_device(work.device)
    network = build_network(peer, work).to(device)
    image, mask = (t.to(device) for t in make_batch(work))
    if work.channels_last:
        network, image = (x.to(memory_format=torch.channels_last) for x in (network, image))
    step = _training_step(peer, network, image, mask, work) if work.mode == "train" else None
    return step or _inference_step(peer, network.eval(), image, work)


def make_batch(work: Workload) -> tuple[Tensor, Tensor]:
    """Speckle around an ellipse and its mask: uint8 (N, 3, S, S) and (N, 1, S, S)."""
    size, draw = work.image_size, np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    lesion = (rows**2 + 2 * columns**2 < 0.05)[None, None].repeat(work.batch_size, 0)
    image = np.where(lesion, 40, 120) * draw.gamma(4, 0.25, (work.batch_size, 3, size, size))
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8)), torch.from_numpy(
        lesion.astype(np.uint8)
    )


def build_network(peer: str, work: Workload) -> nn.Module:
    """The torch network of a peer, with Keras' weights where the work has them; nothing is downloaded."""
    torch.manual_seed(0)
    if peer == "smp":
        return build_model(
            "smp", architecture="unet", encoder_name="resnet34", encoder_weights=None
        )
    if peer == "monai":
        return nn.Sequential(InputScale(1 / 255), _monai_unet())
    arguments = dict(work.model.get("arch_args") or {})
    if peer == "torch" and takes_convolution(work.model["arch"]):
        arguments["convolution"] = "direct"
    if "encoder_weights" in arguments:
        arguments["encoder_weights"] = None  # which change no time
    network = build_model(work.model["arch"], **arguments)
    if work.weights:
        load_keras_weights(network, work.weights)
    return network


def takes_convolution(arch: str) -> bool:
    """Whether an architecture can choose between own and torch's convolutions."""
    return "convolution" in ARCHITECTURES[arch].__init__.__annotations__ and len(ALGORITHMS) > 1


def count_flops(work: Workload) -> int:
    """Floating-point operations of the work's direct algorithm, one multiply-add counted as two.

    The backward pass of a network with grouped convolutions is taken as twice the forward pass: torch's counter takes
    their weight gradients for dense ones.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network("torch", Workload(**{**vars(work), "weights": None}))
        logits = network(torch.zeros(work.batch_size, 3, work.image_size, work.image_size))
        grouped = any(getattr(module, "groups", 1) > 1 for module in network.modules())
        if work.mode == "train" and not grouped:
            logits.sum().backward()
    return counter.get_total_flops() * (3 if work.mode == "train" and grouped else 1)


def _training_step(
    peer: str, network: nn.Module, image: Tensor, mask: Tensor, work: Workload
) -> Callable[[], float]:
    loss_function = build_loss(work.model.get("loss", "bce_dice_loss"))
    name, arguments = work.model.get("optimizer", "adam"), work.model.get("optimizer_args") or {}
    settings = (
        work.model if find_encoder(network) else {}
    )  # the network of another peer has no encoder to treat apart
    apart = settings.get("freeze_encoder_epochs", 0) > 0
    optimizer = optimize_network(
        network, name, arguments, settings.get("encoder_lr_factor", 1.0), apart
    )
    scaler = torch.amp.GradScaler(image.device.type, enabled=work.precision == "16")
    mode = "reduce-overhead" if peer == "graphs" else "default"
    forward = torch.compile(network, mode=mode) if peer in ("compile", "graphs") else network

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


def _inference_step(
    peer: str, network: nn.Module, image: Tensor, work: Workload
) -> Callable[[], np.ndarray]:
    if peer == "graphs":
        engine = torch.compile(network, mode="reduce-overhead")
    else:
        with torch.inference_mode():
            engine = build_engine(
                peer if peer in ("compile", *ONLY_INFER) else "torch", network, image
            )

    @torch.inference_mode()
    def step() -> np.ndarray:
        with _autocast(work):
            return engine(image).float().sigmoid()[:, 0].cpu().numpy()

    return step


def _autocast(work: Workload) -> Any:
    kind = PRECISIONS[work.precision]
    return torch.autocast(torch.device(work.device).type, kind) if kind else nullcontext()


def _keras_step(work: Workload) -> Callable[[], Any]:
    from ovseg.baseline.keras_unet import keras_inference, keras_training_step

    image, mask = (t.permute(0, 2, 3, 1).numpy() for t in make_batch(work))
    network = keras_network(work)
    if work.mode == "infer":
        predict = keras_inference(network, work.weights, work.threads, image)
        return lambda: predict()[..., 0]
    given = work.model.get("optimizer_args") or {}
    optimizer = {
        "lr": given.get("lr", 1e-3),
        "eps": given.get("eps", 1e-7),
        "clip_value": work.clip_value,
    }
    return keras_training_step(network, optimizer, work.threads, image, mask)


def keras_network(work: Workload) -> dict[str, Any]:
    """Arguments of `ovseg.baseline.keras_unet.build_keras_unet` for the work's network."""
    defaults = {
        "base_filters": 16,
        "base_kernel": 9,
        "num_layers": 8,
        "dilation": 3,
        "activation": "relu",
    }
    network = {
        **defaults,
        "normalization": False,
        "input_scale": 1 / 255,
        **(work.model.get("arch_args") or {}),
    }
    for name in ("dropout_rate", "convolution", "classes"):
        network.pop(name, None)
    return {**network, "image_size": work.image_size}


def _monai_unet() -> nn.Module:
    try:
        from monai.networks.nets import UNet
    except ImportError:
        raise InputError("The peer monai needs MONAI: pip install 'ovseg[monai]'.") from None
    channels = [16 * 2**level for level in range(8)]
    return UNet(spatial_dims=2, in_channels=3, out_channels=1, channels=channels, strides=[2] * 7)
