"""The baseline's Swin-UNet: attention inside windows, in a UNet of patches."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.checks import check_at_least, read_image_size
from ovseg.models.layers import (
    InputScale,
    KerasNamed,
    PortedModule,
    crop_to_image,
    init_glorot,
    pad_to_size,
)

# Added before the softmax to the attention between patches that are neighbours only by the shift.
MASKED = -100.0
NORM_EPSILON = 1e-5  # keras-unet-collection's, not Keras' default


class SwinBlock(KerasNamed):
    """Attention inside windows, then two dense layers with GELU.

    Each of the two follows a layer normalisation and is added to its input.

    Args:
        channels: of a patch.
        patches: rows and columns of patches, multiples of `window`.
        heads: of the attention; divides `channels`.
        window: side of a window in patches.
        shift: patches by which the windows are shifted down and right, below `window`; with 0 there
            is no mask.
        num_mlp: units of the first dense layer.

    Source: Z. Liu et al., Swin Transformer, ICCV 2021; keras-unet-collection's
        SwinTransformerBlock.
    """

    attn_pos_ind: Tensor
    attn_mask: Tensor | None

    def __init__(
        self,
        channels: int,
        patches: tuple[int, int],
        heads: int,
        window: int,
        shift: int,
        num_mlp: int,
    ):
        super().__init__()
        self.patches = patches
        self.heads = heads
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.attn_qkv = nn.Linear(channels, 3 * channels)
        self.attn_pos = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.attn_proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.mlp_0 = nn.Linear(channels, num_mlp)
        self.mlp_1 = nn.Linear(num_mlp, channels)
        # The baseline's files hold these two, so they are part of the state.
        self.register_buffer("attn_pos_ind", relative_positions(window))
        mask = shift_mask(patches, window, shift) if shift else None
        self.register_buffer("attn_mask", mask)

    def forward(self, features: Tensor) -> Tensor:
        """(N, rows, columns, C) -> the same shape."""
        shifted = torch.roll(self.norm1(features), (-self.shift, -self.shift), (1, 2))
        attended = self._attend(split_windows(shifted, self.window))
        grid = join_windows(attended, self.patches)
        features = features + torch.roll(grid, (self.shift, self.shift), (1, 2))
        dense = F.gelu(self.mlp_0(self.norm2(features)))
        return features + self.mlp_1(dense)

    def _attend(self, windows: Tensor) -> Tensor:
        """Attention of each patch to its window, (N, windows, length, C) -> the same shape."""
        _, count, length, channels = windows.shape
        per_head = channels // self.heads
        qkv = self.attn_qkv(windows).reshape(-1, count, length, 3, self.heads, per_head)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind()
        scores = (query * per_head**-0.5) @ key.transpose(-2, -1)
        scores = scores + self.attn_pos[self.attn_pos_ind].permute(2, 0, 1)
        if self.attn_mask is not None:
            scores = scores + self.attn_mask[:, None]
        attended = scores.softmax(-1) @ value
        return self.attn_proj(attended.transpose(2, 3).reshape(-1, count, length, channels))


def split_windows(features: Tensor, window: int) -> Tensor:
    """Cut a map into windows.

    Args:
        features: (N, rows, columns, C).
        window: side in patches, which divides rows and columns.

    Returns:
        (N, windows, window**2, C), windows and the patches of each in row-major order.
    """
    _, rows, columns, channels = features.shape
    down = rows // window
    across = columns // window
    grid = features.reshape(-1, down, window, across, window, channels)
    return grid.transpose(2, 3).reshape(-1, down * across, window * window, channels)


def join_windows(windows: Tensor, patches: tuple[int, int]) -> Tensor:
    """Undo `split_windows`, (N, windows, window**2, C) -> (N, rows, columns, C)."""
    rows, columns = patches
    _, _, length, channels = windows.shape
    side = math.isqrt(length)
    grid = windows.reshape(-1, rows // side, columns // side, side, side, channels)
    return grid.transpose(2, 3).reshape(-1, rows, columns, channels)


def relative_positions(window: int) -> Tensor:
    """Row of the position table for each pair of patches, int64 (window**2, window**2)."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten() + window - 1
    right = columns.flatten()[:, None] - columns.flatten() + window - 1
    return down * (2 * window - 1) + right


def shift_mask(patches: tuple[int, int], window: int, shift: int) -> Tensor:
    """What is added to the attention of shifted windows.

    Returns:
        0 between patches that are neighbours in the image, else `MASKED`, float32
        (windows, window**2, window**2).
    """
    row = _shift_regions(patches[0], window, shift)
    column = _shift_regions(patches[1], window, shift)
    regions = 3 * row[:, None] + column
    of_windows = split_windows(regions[None, :, :, None], window)[0, :, :, 0]
    different = of_windows[:, None] != of_windows[:, :, None]
    return different.float() * MASKED


def _shift_regions(patches: int, window: int, shift: int) -> Tensor:
    """0, 1 or 2 along one axis: whole windows, the last window, and what the shift rolled in."""
    index = torch.arange(patches)
    return (index >= patches - window).long() + (index >= patches - shift)


class PatchEmbedding(KerasNamed):
    """Each patch's pixels through one dense layer, plus a learned vector for its position."""

    def __init__(self, patch_size: int, patches: tuple[int, int], channels: int):
        super().__init__()
        self.patch_size = patch_size
        self.patches = patches
        self.dense = nn.Linear(3 * patch_size**2, channels)
        self.embedding = nn.Embedding(patches[0] * patches[1], channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, rows, columns, C)."""
        rows, columns = self.patches
        side = self.patch_size
        pixels = image.reshape(-1, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        return self.dense(pixels.flatten(3)) + self.embedding.weight.view(rows, columns, -1)


class PatchMerging(KerasNamed):
    """Four neighbouring patches of `channels` to one of twice as many."""

    def __init__(self, channels: int, prefix: str):
        super().__init__()
        self.prefix = prefix
        self.linear_trans = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, rows, columns, C) -> (N, rows / 2, columns / 2, 2 C)."""
        top = features[:, 0::2]
        bottom = features[:, 1::2]
        corners = [top[:, :, 0::2], bottom[:, :, 0::2], top[:, :, 1::2], bottom[:, :, 1::2]]
        return self.linear_trans(torch.cat(corners, dim=-1))


class PatchExpanding(KerasNamed):
    """Each patch of `channels` to `rate` x `rate` patches of `channels / rate`."""

    def __init__(self, channels: int, rate: int, prefix: str):
        super().__init__()
        self.rate = rate
        self.prefix = prefix
        self.linear_trans1 = nn.Conv2d(channels, rate * channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, rows, columns, C) -> (N, rate * rows, rate * columns, C / rate)."""
        _, rows, columns, channels = features.shape
        rate = self.rate
        parts = self.linear_trans1(features.permute(0, 3, 1, 2))
        parts = parts.reshape(-1, rate, rate, channels // rate, rows, columns)
        parts = parts.permute(0, 4, 1, 5, 2, 3)
        return parts.reshape(-1, rate * rows, rate * columns, channels // rate)


class SwinUNet(PortedModule):
    """Swin-UNet of the TensorFlow baseline (TensorflowSwinUNet).

    Level i (0 at the top) has `filter_num_begin * 2**i` channels and patches of `patch_size * 2**i`
    pixels. The encoder takes heads and windows from index i of the lists; the decoder, as in the
    baseline, from index i + 1. Every patch has a learned position: images smaller than `image_size`
    are padded with black below and to the right, larger ones are refused.

    Args:
        classes: output channels.
        filter_num_begin: channels of the top level, a multiple of `patch_size` and of its heads.
        depth: levels, the lowest included.
        stack_num_down: blocks of a level of the encoder.
        stack_num_up: blocks of a level of the decoder.
        patch_size: side of a patch in pixels; the baseline writes it twice, (4, 4).
        num_heads: attention heads, one number a level.
        window_size: side of a window in patches, one number a level; divides the patches there.
        num_mlp: units of the dense layer inside every block.
        shift_window: every second block of a level shifts its windows by half their side.
        image_size: side of a square or (height, width), multiples of
            `patch_size * 2**i * window_size[i]` for all i.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does, 1/255 feeds 0..1.

    Raises:
        InputError: a value that gives no network.

    Source: H. Cao et al., Swin-Unet, ECCV workshops 2022; keras-unet-collection's swin_unet_2d.
    """

    def __init__(
        self,
        classes: int = 1,
        filter_num_begin: int = 128,
        depth: int = 4,
        stack_num_down: int = 2,
        stack_num_up: int = 2,
        patch_size: int | Sequence[int] = 4,
        num_heads: Sequence[int] = (4, 8, 8, 8),
        window_size: Sequence[int] = (4, 2, 2, 2),
        num_mlp: int = 512,
        shift_window: bool = True,
        image_size: int | Sequence[int] = 512,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least(
            "swin_unet",
            1,
            classes=classes,
            filter_num_begin=filter_num_begin,
            depth=depth,
            num_mlp=num_mlp,
            stack_num_down=stack_num_down,
            stack_num_up=stack_num_up,
        )
        _check_lists(depth, num_heads=num_heads, window_size=window_size)
        patch = _read_patch_size(patch_size)
        self.image_size = read_image_size("swin_unet", image_size)
        _check_levels(filter_num_begin, patch, self.image_size, num_heads, window_size)

        channels = [filter_num_begin * 2**level for level in range(depth)]
        grids = []  # rows and columns of patches of each level
        for level in range(depth):
            side = patch * 2**level
            grids.append((self.image_size[0] // side, self.image_size[1] // side))

        def build_stack(level: int, index: int, blocks: int) -> nn.Sequential:
            """The blocks of a level, with heads and windows from an index of the lists."""
            window = window_size[index]
            stack = nn.Sequential()
            for number in range(blocks):
                shifted = shift_window and number % 2 == 1
                block = SwinBlock(
                    channels[level],
                    grids[level],
                    num_heads[index],
                    window,
                    shift=window // 2 if shifted else 0,
                    num_mlp=num_mlp,
                )
                stack.append(block)
            return stack

        self.scale = InputScale(input_scale)
        self.embedding = PatchEmbedding(patch, grids[0], channels[0])
        self.encoder = nn.ModuleList()
        for level in range(depth):
            self.encoder.append(build_stack(level, level, stack_num_down))
        # From here on the lists of the decoder start at the bottom.
        self.decoder = nn.ModuleList()
        for level in reversed(range(depth - 1)):
            self.decoder.append(build_stack(level, level + 1, stack_num_up))
        self.merge = nn.ModuleList()
        for level in range(depth - 1):
            self.merge.append(PatchMerging(channels[level], f"down{level}_"))
        self.expand = nn.ModuleList()
        for step, level in enumerate(reversed(range(1, depth))):
            prefix = f"swin_unet_swin_up{step}_"
            self.expand.append(PatchExpanding(channels[level], 2, prefix))
        self.fuse = nn.ModuleList()
        for level in reversed(range(1, depth)):
            self.fuse.append(nn.Linear(channels[level], channels[level] // 2, bias=False))
        self.expand_pixels = PatchExpanding(channels[0], patch, "patch_expand_")
        self.head = nn.Conv2d(channels[0] // patch, classes, 1, bias=False)
        _init_as_keras(self)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, up to `image_size`.

        Returns:
            (N, classes, H, W).

        Raises:
            InputError: the image is larger than `image_size`.
        """
        pixels = pad_to_size("swin_unet", self.scale(image), self.image_size)
        features = self.encoder[0](self.embedding(pixels))
        skips = []
        for merge, blocks in zip(self.merge, self.encoder[1:], strict=True):
            skips.append(features)
            features = blocks(merge(features))
        skips.reverse()
        for step, blocks in enumerate(self.decoder):
            expanded = self.expand[step](features)
            fused = self.fuse[step](torch.cat([expanded, skips[step]], dim=-1))
            features = blocks(fused)
        expanded = self.expand_pixels(features).permute(0, 3, 1, 2)
        return crop_to_image(self.head(expanded), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "patch_embedding", self.embedding
        for stack in (*self.encoder, *self.decoder):
            for block in stack:
                yield "swin_transformer_block", block
        for merge in self.merge:
            yield "patch_merging", merge
        for expand in (*self.expand, self.expand_pixels):
            yield "patch_expanding", expand
        for fuse in self.fuse:
            yield "swin_unet_concat_linear_proj", fuse
        yield "conv2d", self.head


def _init_as_keras(network: nn.Module) -> None:
    """Keras' defaults; positions are uniform in -0.05..0.05."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.05, 0.05)
        elif not list(module.children()):
            init_glorot(module)


def _check_lists(depth: int, **lists: Sequence[int]) -> None:
    for name, values in lists.items():
        if isinstance(values, int) or len(values) != depth or min(values) < 1:
            raise InputError(
                f"swin_unet: {name} is {values}, expected {depth} numbers (depth), at least 1."
            )


def _read_patch_size(value: int | Sequence[int]) -> int:
    """The side of one number, or of a pair of equal ones."""
    sides = {value} if isinstance(value, int) else set(value)
    is_pair = isinstance(value, int) or len(value) == 2
    if not is_pair or len(sides) != 1 or min(sides) < 1:
        raise InputError(
            f"swin_unet: patch_size is {value}, expected one number, or it twice, at least 1."
        )
    return sides.pop()


def _check_levels(
    filters: int, patch: int, sides: tuple[int, int], heads: Sequence[int], windows: Sequence[int]
) -> None:
    """Refuse heads and windows that do not divide the channels and patches of their levels."""
    if filters % patch:
        raise InputError(
            f"swin_unet: filter_num_begin is {filters}, expected a multiple of patch_size {patch}."
        )
    for level, (head, window) in enumerate(zip(heads, windows, strict=True)):
        # The decoder uses the same numbers one level up, where there are half as many channels.
        channels = filters * 2 ** max(level - 1, 0)
        if channels % head:
            raise InputError(
                f"swin_unet: num_heads[{level}] is {head}, expected a divisor of {channels} "
                "channels."
            )
        unit = patch * 2**level * window
        if any(side % unit for side in sides):
            raise InputError(
                f"swin_unet: image_size is {sides}, window_size[{level}] asks for multiples of "
                f"{unit}."
            )
