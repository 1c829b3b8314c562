"""What the baseline's four newer networks read of its configuration: arguments of ours."""

from typing import Any

from ovseg.baseline.ini import BaselineFile
from ovseg.core.errors import InputError
from ovseg.core.registry import choose, fill_defaults
from ovseg.models.backbones import BACKBONES, EFFICIENTNETS
from ovseg.models.layers import ACTIVATIONS
from ovseg.models.sharp_unet import SharpUNet
from ovseg.models.transunet import MLP_ACTIVATIONS, TransUNet

# Networks whose image_channels and num_classes can differ from 3 and 1.
ANY_CHANNELS = ("TensorflowTransUNet", "TensorflowU2Net", "TensorflowSharpUNet")
ALWAYS_RELU = "ignored: this network always has ReLU"
# Keys of TransUNet's backbones, and the baseline's defaults.
OF_BACKBONE = {"weights": "imagenet", "freeze_backbone": True, "freeze_batch_norm": True}
RANDOM_BACKBONE = "not downloaded: the weights come with --weights, else they are random"


def read_transunet(file: BaselineFile) -> dict[str, Any]:
    """Arguments of `TransUNet`.

    Raises:
        InputError: an unknown backbone, an activation, or another picture than a square.
    """
    if "activation" in file.sections["model"]:
        file.get("model", "activation", ALWAYS_RELU, "ReLU")
        is_malformed = "model.activation" in file.defaults
        if not is_malformed:
            raise InputError(
                f"{file.path}: [model] activation stops the baseline's TransUNet, whatever it is. "
                "Remove it."
            )
    defaults: dict[str, Any] = fill_defaults(TransUNet, None)
    arguments: dict[str, Any] = {}
    for key in ("stack_num_down", "stack_num_up", "embed_dim", "num_mlp", "num_heads"):
        arguments[key] = file.integer("model", key, f"model.arch_args.{key}", defaults[key])
    key = "num_transformer"
    arguments[key] = file.integer("model", key, f"model.arch_args.{key}", defaults[key])
    key = "filter_num"
    arguments[key] = file.integers("model", key, f"model.arch_args.{key}", defaults[key])
    for key in ("batch_norm", "pool"):
        arguments[key] = file.flag("model", key, f"model.arch_args.{key}", defaults[key])
    activation = file.get("model", "mlp_activation", "model.arch_args.mlp_activation", "GELU")
    choose("mlp_activation", activation, MLP_ACTIVATIONS)
    arguments["mlp_activation"] = activation
    return {
        **arguments,
        **_read_backbone(file),
        "image_size": _read_square(file),
        **_read_channels(file),
    }


def _read_backbone(file: BaselineFile) -> dict[str, Any]:
    """Arguments of TransUNet's backbone, none without one.

    Keras puts a division by ImageNet's deviations into an EfficientNet that starts from ImageNet's
    weights.
    """
    backbone = file.get("model", "backbone", "model.arch_args.backbone", None)
    if backbone is None:
        for key, default in OF_BACKBONE.items():
            if key in file.sections["model"]:
                file.get("model", key, "ignored: there is no backbone", default)
        return {}
    choose("backbone", backbone, BACKBONES)
    weights = file.get("model", "weights", RANDOM_BACKBONE, OF_BACKBONE["weights"])
    arguments: dict[str, Any] = {"backbone": backbone}
    if backbone in EFFICIENTNETS:
        arguments["imagenet_rescaling"] = weights == "imagenet"
    becomes = "model.arch_args.freeze_backbone; set it to false to train a random backbone"
    arguments["freeze_backbone"] = file.flag("model", "freeze_backbone", becomes, True)
    becomes = "model.arch_args.freeze_batch_norm"
    arguments["freeze_batch_norm"] = file.flag("model", "freeze_batch_norm", becomes, True)
    return arguments


def read_u2net(file: BaselineFile) -> dict[str, Any]:
    """Arguments of `U2Net`."""
    _check_activation(file)
    return {
        "base_filters": file.integer("model", "base_filters", "model.arch_args.base_filters"),
        "num_layers": file.integer("model", "num_layers", "model.arch_args.num_layers"),
        **_read_channels(file),
    }


def read_sharp_unet(file: BaselineFile) -> dict[str, Any]:
    """Arguments of `SharpUNet`."""
    _check_activation(file)
    filters = fill_defaults(SharpUNet, None)["filters"]
    where = "model.arch_args"
    return {
        "filters": file.integers("model", "filters", f"{where}.filters", filters),
        "max_filter": file.integer("model", "max_filter", f"{where}.max_filter", 512),
        "base_ksize": _read_sides(file, "base_ksize", (3, 3)),
        "dilation": _read_sides(file, "dilation", (1, 1)),
        **_read_channels(file),
    }


def read_efficientnet_b7_unet(file: BaselineFile) -> dict[str, Any]:
    """Arguments of `EfficientNetB7UNet`: all are defaults."""
    _check_activation(file)
    return {}


def _check_activation(file: BaselineFile) -> None:
    """Refuse a name that stops the baseline, whose base class reads it before the network does."""
    if "activation" not in file.sections["model"]:
        return
    name = file.get("model", "activation", ALWAYS_RELU, "relu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(
            f"{file.path}: [model] activation is {name!r}, expected the name of a function such as "
            "'relu': the baseline stops on others. This network has ReLU whatever it is: remove it."
        )


def _read_sides(file: BaselineFile, key: str, default: tuple[int, int]) -> int | list[int]:
    """One int or two, as Keras takes them."""
    becomes = f"model.arch_args.{key}"
    value = file.get("model", key, becomes, default)
    if type(value) is int:
        return value
    return file.integers("model", key, becomes, default)


def _read_square(file: BaselineFile) -> list[int]:
    """Height and width, which are equal: the baseline's position table has width * width rows."""
    becomes = "model.arch_args.image_size, data.image_size"
    height = file.integer("model", "image_height", becomes)
    width = file.integer("model", "image_width", becomes)
    if height != width:
        raise InputError(
            f"{file.path}: pictures are {height} x {width}, but the baseline's TransUNet can only "
            "be built for squares. Correct image_height and image_width."
        )
    return [height, width]


def _read_channels(file: BaselineFile) -> dict[str, int]:
    """The numbers of classes and of channels of the image, where they are not the defaults."""
    arguments = {}
    classes = file.integer("model", "num_classes", "model.arch_args.classes", 1)
    if classes != 1:
        arguments["classes"] = classes
    channels = file.integer("model", "image_channels", "model.arch_args.in_channels", 3)
    if channels != 3:
        arguments["in_channels"] = channels
    return arguments
