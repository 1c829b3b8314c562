"""The registry of architectures: a new one is one file, one line here and one YAML."""

from torch import nn

from ovseg.core.registry import check_arguments, choose
from ovseg.models.attention_unet import AttentionUNet
from ovseg.models.deeplabv3plus import DeepLabV3Plus
from ovseg.models.efficient_unet import EfficientUNet
from ovseg.models.multires_unet import MultiResUNet
from ovseg.models.smp import SmpNetwork
from ovseg.models.swin_unet import SwinUNet
from ovseg.models.unet import FlexibleUNet
from ovseg.models.unet3plus import UNet3Plus

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "flexible_unet": FlexibleUNet,
    "attention_unet": AttentionUNet,
    "multires_unet": MultiResUNet,
    "unet3plus": UNet3Plus,
    "swin_unet": SwinUNet,
    "efficient_unet": EfficientUNet,
    "deeplabv3plus": DeepLabV3Plus,
    "smp": SmpNetwork,
}


def build_model(arch: str, **arch_args: object) -> nn.Module:
    """A network by name: plain pixels (N, 3, H, W), 0..255 RGB, to logits (N, classes, H, W).

    Args:
        arch: a name of `list_models()`.
        arch_args: constructor arguments of that architecture.

    Raises:
        InputError: unknown architecture or argument, or a value that gives no network.
    """
    architecture = choose("arch", arch, ARCHITECTURES)
    check_arguments(f"arch {arch}", architecture, arch_args)
    return architecture(**arch_args)


def list_models() -> list[str]:
    """Names of all architectures."""
    return list(ARCHITECTURES)
