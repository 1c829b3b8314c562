"""Every architecture and encoder of segmentation-models-pytorch, with the encoder's normalisation inside."""

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params
from torch import Tensor, nn

from ovseg.errors import InputError, check_arguments, choose
from ovseg.models.layers import InputScale, pad_to_stride

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class SmpNetwork(nn.Module):
    """A segmentation-models-pytorch network that takes plain pixels of any size.

    Args:
        classes: output channels.
        architecture: `unet`, `unetplusplus`, `fpn`, `segformer`, ...: see `smp.MODEL_ARCHITECTURES_MAPPING`.
        encoder_name: an encoder of segmentation-models-pytorch, `tu-<name>` for any of timm's.
        encoder_weights: a weights name of that encoder (`imagenet`), which is downloaded, or null for none.
        decoder_args: further arguments of the architecture, by its own names (`decoder_channels`, ...).

    Raises:
        InputError: unknown architecture, encoder, weights or argument, or the weights cannot be downloaded.
    """

    def __init__(
        self,
        classes: int = 1,
        architecture: str = "unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        decoder_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        if classes < 1:
            raise InputError(f"smp: classes is {classes}, expected at least 1.")
        model_class = choose("smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
        decoder_args = dict(decoder_args or {})
        check_arguments(f"smp {architecture}", model_class, decoder_args)
        _check_encoder(encoder_name, encoder_weights)
        try:
            self.network = model_class(
                encoder_name=encoder_name,
                encoder_weights=encoder_weights,
                in_channels=3,
                classes=classes,
                **decoder_args,
            )
            normalization = get_preprocessing_params(encoder_name, encoder_weights) if encoder_weights else IMAGENET
        except OSError as error:  # the hub's errors are OSErrors
            raise InputError(
                f"Cannot download the weights {encoder_weights!r} of {encoder_name} ({type(error).__name__}). "
                "Check the connection, or set encoder_weights to null."
            ) from error
        except (KeyError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"smp {architecture} with encoder {encoder_name} cannot be built: {error}") from error
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
        return
    settings: Mapping[str, Any] = choose("encoder", name, encoders)["pretrained_settings"]
    if weights:
        choose(f"encoder_weights of {name}", weights, settings)
