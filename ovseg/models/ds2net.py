"""DS2Net's network: two encoders, modules that select among their channels, two heads.

`ovseg.adaptation` trains it on images of two domains, such as B-mode with masks (the source) and
contrast-enhanced ultrasound without (the target).

Source: Q. Zhao et al., MMOTU, arXiv 2207.06799, 2022. Encoders and decoders are those of
segmentation-models-pytorch: its PSP head projects with 1 x 1 convolutions where the authors' has
3 x 3, and its ResNet has one 7 x 7 convolution at the start where theirs has three of 3 x 3.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.models.checks import check_at_least
from ovseg.models.layers import crop_to_image, pad_to_stride
from ovseg.models.smp import build_encoder, build_scale

Maps = list[Tensor]  # of an encoder: the image itself first, the deepest map last
DROPOUT = 0.1  # of both heads, as in the paper


@dataclass(frozen=True)
class Variant:
    """What the paper's two networks differ in, besides the encoder.

    Attributes:
        head_channels: width of a head.
        output_stride: the deepest maps are that much smaller than the image.
        least_hidden: least width inside of `DistinctSelection`.
        all_levels: whether channels are selected at every level, or at the deepest alone.
        universal_channels: that `UniversalSelection` adds at the deepest level; 0 for none.
    """

    head_channels: int
    output_stride: int
    least_hidden: int
    all_levels: bool
    universal_channels: int


VARIANTS = {
    "pspnet": Variant(512, 8, 32, all_levels=False, universal_channels=0),
    "segformer": Variant(256, 32, 8, all_levels=True, universal_channels=64),
}


class DS2Net(nn.Module):
    """Two encoders and two heads, one of each for the source and for the target domain.

    Both encoders see every image. At each level that a head reads, `DistinctSelection` weighs the
    channels of the two encoders against each other; in the `segformer` variant `UniversalSelection`
    adds channels at the deepest level. Each head predicts from the maps of its own encoder. The
    network's logits are the mean of both heads'.

    Args:
        classes: output channels.
        head: `pspnet` (the paper's P variant) or `segformer` (T).
        encoder_name: see `ovseg.models.smp.SmpNetwork`; the paper has resnet50 for P, mit_b5 for T.
        encoder_weights: see `ovseg.models.smp.SmpNetwork`; both encoders start with them.
        encoder_depth: number of times that the encoder halves the image, without dilation; 3..5.
            Below 5 the encoder's last layers stay unused, and a training of several processes
            needs `trainer.strategy: ddp_find_unused_parameters_true`.
        output_stride: 8, 16 or 32: layers beyond it are dilated instead; null for the paper's, 8
            for pspnet and 32 for segformer.

    Attributes:
        encoder: the source encoder and the target encoder.
        stride: the deepest maps are that much smaller than the image.
        map_channels: of the deepest maps.

    Raises:
        InputError: an unknown head or encoder, a number out of range, or an encoder that can't be
            dilated.
    """

    stride: int
    map_channels: int

    def __init__(
        self,
        classes: int = 1,
        head: str = "pspnet",
        encoder_name: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_depth: int = 5,
        output_stride: int | None = None,
    ):
        super().__init__()
        check_at_least("ds2net", 1, classes=classes)
        variant = choose("ds2net head", head, VARIANTS)
        if not 3 <= encoder_depth <= 5:
            raise InputError(f"ds2net: encoder_depth is {encoder_depth}, expected 3, 4 or 5.")
        stride = output_stride or variant.output_stride
        if stride not in (8, 16, 32):
            raise InputError(f"ds2net: output_stride is {stride}, expected 8, 16 or 32.")

        # Layers beyond the depth would be dilated in vain: timm's encoders compute them anyway.
        dilated = stride if 2**encoder_depth > stride else 32
        encoders: list[Any] = []
        for _ in range(2):
            encoder = build_encoder("ds2net", encoder_name, encoder_weights, encoder_depth, dilated)
            encoders.append(encoder)
        self.encoder = nn.ModuleList(encoders)
        self.scale = build_scale(encoder_name, encoder_weights)
        self.stride = encoders[0].output_stride
        channels = list(encoders[0].out_channels)
        self.map_channels = channels[-1]

        self.distinct = nn.ModuleDict()  # level -> module
        for level in range(1, len(channels)):
            is_deepest = level == len(channels) - 1
            # Some encoders have an empty map in place of the first level.
            if channels[level] and (variant.all_levels or is_deepest):
                module = DistinctSelection(channels[level], variant.least_hidden)
                self.distinct[str(level)] = module
        self.universal = None
        if variant.universal_channels:
            self.universal = UniversalSelection(channels[-1], variant.universal_channels)
            channels[-1] += variant.universal_channels
        self.heads = nn.ModuleList([Head(head, channels, classes) for _ in range(2)])

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits: the mean of both heads'.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        source, target = self.decode(*self.encode(image), image)
        return (source + target) / 2

    def encode(self, image: Tensor) -> tuple[Maps, Maps]:
        """The maps of the source encoder and of the target encoder.

        Args:
            image: as in `forward`.

        Returns:
            Two lists; the last of each is (N, `map_channels`, H / `stride`, W / `stride`), rounded
            up.
        """
        pixels = pad_to_stride(self.scale(image), self.stride)
        source_encoder, target_encoder = self.encoder
        return source_encoder(pixels), target_encoder(pixels)

    def decode(self, source: Maps, target: Maps, image: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the source head and of the target head, (N, classes, H, W) each.

        Args:
            source: of the source encoder.
            target: of the target encoder.
            image: whose maps they are, (N, 3, H, W).
        """
        source_maps = list(source)
        target_maps = list(target)
        for name, module in self.distinct.items():
            level = int(name)
            selected = module(source[level], target[level])
            source_maps[level], target_maps[level] = selected
        if self.universal is not None:
            shared = self.universal(source[-1], target[-1])
            source_maps[-1] = torch.cat([source_maps[-1], shared[0]], dim=1)
            target_maps[-1] = torch.cat([target_maps[-1], shared[1]], dim=1)
        source_head, target_head = self.heads
        source_logits = crop_to_image(source_head(source_maps), image)
        target_logits = crop_to_image(target_head(target_maps), image)
        return source_logits, target_logits


class DistinctSelection(nn.Module):
    """The paper's domain-distinct selected module: weighs two maps against each other by channel.

    The sum of both maps is averaged over positions and squeezed; from it each map gets a weight a
    channel, and the two weights of a channel add up to 1.

    Args:
        channels: of each map.
        least_hidden: least width of the squeezed vector, which has an eighth of the channels.
    """

    def __init__(self, channels: int, least_hidden: int):
        super().__init__()
        hidden = max(channels // 8, least_hidden)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.ModuleList([nn.Linear(hidden, channels) for _ in range(2)])

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps, (N, C, H, W) each, times their weights."""
        squeezed = self.squeeze((source + target).mean(dim=(2, 3)))
        scores = torch.stack([excite(squeezed) for excite in self.excite])
        source_weight, target_weight = scores.softmax(dim=0)[..., None, None]
        return source * source_weight, target * target_weight


class UniversalSelection(nn.Module):
    """The paper's domain-universal selected module: what both maps agree on.

    The affinities of each map's channels with those of a key, which is computed from the mean of
    both maps, are turned into weights that are large where affinity is small. Their mean over both
    maps mixes the channels of each.

    Args:
        channels: of each map.
        out_channels: of each result.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.key = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.project = nn.ModuleList()
        for _ in range(2):
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1)
            self.project.append(nn.Sequential(convolution, nn.ReLU()))

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """From both maps, (N, C, H, W) each, to (N, out_channels, H, W) each."""
        key = self.key((source + target) / 2).flatten(2).transpose(1, 2)
        weights = (channel_weights(source, key) + channel_weights(target, key)) / 2
        source_project, target_project = self.project
        mixed_source = (weights @ source.flatten(2)).view_as(source)
        mixed_target = (weights @ target.flatten(2)).view_as(target)
        return source_project(mixed_source), target_project(mixed_target)


def channel_weights(maps: Tensor, key: Tensor) -> Tensor:
    """Weights of channels by how little they agree with those of a key.

    Args:
        maps: (N, C, H, W).
        key: (N, H * W, C).

    Returns:
        Softmax of (largest affinity of the row - affinity), (N, C, C); rows add up to 1.
    """
    affinity = maps.flatten(2) @ key
    largest = affinity.amax(dim=-1, keepdim=True)
    return (largest - affinity).softmax(dim=-1)


class Head(nn.Module):
    """A head of PSPNet or SegFormer.

    Args:
        kind: a name of `VARIANTS`.
        channels: of the maps of an encoder, the image's first.
        classes: output channels.
    """

    def __init__(self, kind: str, channels: list[int], classes: int):
        super().__init__()
        width = VARIANTS[kind].head_channels
        self.decoder: nn.Module
        self.dropout: nn.Module
        if kind == "pspnet":
            self.decoder = PSPDecoder(channels, out_channels=width, dropout=DROPOUT)
            self.dropout = nn.Identity()  # the decoder has its own
        else:
            depth = len(channels) - 1
            self.decoder = SegformerDecoder(channels, depth, segmentation_channels=width)
            self.dropout = nn.Dropout2d(DROPOUT)
        initialize_decoder(self.decoder)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        """Logits of the size of the image, which is `maps[0]`."""
        logits = self.classify(self.dropout(self.decoder(maps)))
        size = maps[0].shape[-2:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
