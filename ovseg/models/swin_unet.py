"""The baseline's Swin-UNet: attention inside windows that every second block shifts, in a UNet of patches."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.layers import InputScale

MASKED = (
    -100.0
)  # added to the attention between patches that only the shift made neighbours, before the softmax
NORM_EPSILON = 1e-5  # keras-unet-collection's, not Keras' default


class KerasNamed(nn.Module):
    """A module whose attributes bear the names of the baseline's weights, which a prefix may precede."""

    prefix = ""

    def keras_parts(self) -> dict[str, nn.Module | Tensor]:
        """See `ovseg.baseline.keras_weights`."""
        own = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        return {
            self.prefix + name: part for name, part in (own | dict(self.named_children())).items()
        }


class SwinBlock(KerasNamed):
    """Attention inside windows, then two dense layers with GELU, each behind a layer norm and beside a skip.

    Args:
        channels: of a patch.
        patches: rows and columns of patches, multiples of `window`.
        heads: of the attention; divides `channels`.
        window: side of a window in patches.
        shift: patches by which the windows move down and right, below `window`; 0 has no mask.
        num_mlp: units of the first dense layer.

    Source: Z. Liu et al., Swin Transformer, ICCV 2021; keras-unet-collection's SwinTransformerBlock.
    """

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
        self.patches, self.heads, self.window, self.shift = patches, heads, window, shift
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.attn_qkv = nn.Linear(channels, 3 * channels)
        self.attn_pos = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.attn_proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.mlp_0 = nn.Linear(channels, num_mlp)
        self.mlp_1 = nn.Linear(num_mlp, channels)
        # The baseline's files keep these two, so they are part of the state.
        self.register_buffer("attn_pos_ind", relative_positions(window))
        self.register_buffer("attn_mask", shift_mask(patches, window, shift) if shift else None)

    def forward(self, features: Tensor) -> Tensor:
        """(N, rows, columns, C) -> the same shape."""
        shifted = torch.roll(self.norm1(features), (-self.shift, -self.shift), (1, 2))
        attended = join_windows(self._attend(split_windows(shifted, self.window)), self.patches)
        features = features + torch.roll(attended, (self.shift, self.shift), (1, 2))
        return features + self.mlp_1(F.gelu(self.mlp_0(self.norm2(features))))

    def _attend(self, windows: Tensor) -> Tensor:
        """Every patch to all of its window, (N, windows, patches of one, C) -> the same shape."""
        _, count, length, channels = windows.shape
        qkv = self.attn_qkv(windows).reshape(
            -1, count, length, 3, self.heads, channels // self.heads
        )
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind()
        scores = (query * (channels // self.heads) ** -0.5) @ key.transpose(-2, -1)
        scores = scores + self.attn_pos[self.attn_pos_ind].permute(2, 0, 1)
        if self.attn_mask is not None:
            scores = scores + self.attn_mask[:, None]
        return self.attn_proj(
            (scores.softmax(-1) @ value).transpose(2, 3).reshape(-1, count, length, channels)
        )


def split_windows(features: Tensor, window: int) -> Tensor:
    """(N, rows, columns, C) -> (N, windows, patches of one, C), both row by row."""
    _, rows, columns, channels = features.shape
    grid = features.reshape(-1, rows // window, window, columns // window, window, channels)
    return grid.transpose(2, 3).reshape(
        -1, (rows // window) * (columns // window), window * window, channels
    )


def join_windows(windows: Tensor, patches: tuple[int, int]) -> Tensor:
    """Undo `split_windows`, (N, windows, patches of one, C) -> (N, rows, columns, C)."""
    rows, columns = patches
    side, channels = math.isqrt(windows.shape[2]), windows.shape[3]
    grid = windows.reshape(-1, rows // side, columns // side, side, side, channels)
    return grid.transpose(2, 3).reshape(-1, rows, columns, channels)


def relative_positions(window: int) -> Tensor:
    """Row of the position table for each pair of patches of a window, int64 (window**2, window**2)."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten() + window - 1
    right = columns.flatten()[:, None] - columns.flatten() + window - 1
    return down * (2 * window - 1) + right


def shift_mask(patches: tuple[int, int], window: int, shift: int) -> Tensor:
    """0 between patches that are neighbours in the image, else `MASKED`, (windows, window**2, window**2)."""
    row, column = (
        (torch.arange(n) >= n - window).long() + (torch.arange(n) >= n - shift) for n in patches
    )
    regions = split_windows((3 * row[:, None] + column)[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, None] != regions[:, :, None]).float() * MASKED


class PatchEmbedding(KerasNamed):
    """Pixels of every square patch through one dense layer, plus a learnt vector for its place."""

    def __init__(self, patch_size: int, patches: tuple[int, int], channels: int):
        super().__init__()
        self.patch_size, self.patches = patch_size, patches
        self.dense = nn.Linear(3 * patch_size**2, channels)
        self.embedding = nn.Embedding(patches[0] * patches[1], channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, rows, columns, C)."""
        (rows, columns), side = self.patches, self.patch_size
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
        top, bottom = features[:, 0::2], features[:, 1::2]
        corners = [top[:, :, 0::2], bottom[:, :, 0::2], top[:, :, 1::2], bottom[:, :, 1::2]]
        return self.linear_trans(torch.cat(corners, dim=-1))


class PatchExpanding(KerasNamed):
    """Every patch of `channels` to `rate` x `rate` of them with `channels / rate`."""

    def __init__(self, channels: int, rate: int, prefix: str):
        super().__init__()
        self.rate, self.prefix = rate, prefix
        self.linear_trans1 = nn.Conv2d(channels, rate * channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, rows, columns, C) -> (N, rate * rows, rate * columns, C / rate)."""
        (_, rows, columns, channels), rate = features.shape, self.rate
        parts = self.linear_trans1(features.permute(0, 3, 1, 2))
        parts = parts.reshape(-1, rate, rate, channels // rate, rows, columns)
        return parts.permute(0, 4, 1, 5, 2, 3).reshape(
            -1, rate * rows, rate * columns, channels // rate
        )


class SwinUNet(nn.Module):
    """Swin-UNet of the TensorFlow baseline (TensorflowSwinUNet).

    Level i (0 at the top) has `filter_num_begin * 2**i` channels and patches of `patch_size * 2**i` pixels. The encoder
    takes heads and windows from place i of the lists, the decoder, as in the baseline, from place i + 1. Every patch
    has a learnt place: images below `image_size` are padded with black below and to the right, larger ones refused.

    Args:
        classes: output channels.
        filter_num_begin: channels of the top level, a multiple of `patch_size` and of its heads.
        depth: levels, the lowest included.
        stack_num_down: blocks of a level of the encoder.
        stack_num_up: blocks of a level of the decoder.
        patch_size: pixels along a patch's side; the baseline writes it twice, (4, 4).
        num_heads: attention heads, one number a level.
        window_size: patches along a window's side, one number a level; divides the patches there.
        num_mlp: units of the dense layer inside every block.
        shift_window: every second block of a level moves its windows by half their side.
        image_size: side of a square or (height, width), multiples of `patch_size * 2**i * window_size[i]` for all i.
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
        _check_counts(
            classes=classes, filter_num_begin=filter_num_begin, depth=depth, num_mlp=num_mlp
        )
        _check_counts(stack_num_down=stack_num_down, stack_num_up=stack_num_up)
        _check_lists(depth, num_heads=num_heads, window_size=window_size)
        self.image_size, patch = _pair("image_size", image_size), _pair("patch_size", patch_size)[0]
        _check_levels(filter_num_begin, patch, self.image_size, num_heads, window_size)
        channels = [filter_num_begin * 2**i for i in range(depth)]
        grids = [tuple(side // (patch * 2**i) for side in self.image_size) for i in range(depth)]

        def stack(level: int, place: int, blocks: int) -> nn.Sequential:
            shifts = [
                window_size[place] // 2 if shift_window and i % 2 else 0 for i in range(blocks)
            ]
            settings = (channels[level], grids[level], num_heads[place], window_size[place])
            return nn.Sequential(*(SwinBlock(*settings, shift, num_mlp) for shift in shifts))

        self.scale = InputScale(input_scale)
        self.embedding = PatchEmbedding(patch, grids[0], channels[0])
        self.encoder = nn.ModuleList(stack(i, i, stack_num_down) for i in range(depth))
        self.decoder = nn.ModuleList(
            stack(i, i + 1, stack_num_up) for i in reversed(range(depth - 1))
        )
        self._add_joints(channels, patch)
        self.head = nn.Conv2d(channels[0] // patch, classes, 1, bias=False)
        _init_as_keras(self)

    def _add_joints(self, channels: list[int], patch: int) -> None:
        """The layers between levels; those of the decoder from the bottom up."""
        below = channels[:0:-1]
        self.merge = nn.ModuleList(
            PatchMerging(c, f"down{i}_") for i, c in enumerate(channels[:-1])
        )
        self.expand = nn.ModuleList(
            PatchExpanding(c, 2, f"swin_unet_swin_up{i}_") for i, c in enumerate(below)
        )
        self.fuse = nn.ModuleList(nn.Linear(c, c // 2, bias=False) for c in below)
        self.expand_pixels = PatchExpanding(channels[0], patch, "patch_expand_")

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, up to `image_size` -> logits (N, classes, H, W).

        Raises:
            InputError: the image is larger than `image_size`.
        """
        features, skips = self.encoder[0](self.embedding(self._pad(self.scale(image)))), []
        for merge, blocks in zip(self.merge, self.encoder[1:], strict=True):
            skips.append(features)
            features = blocks(merge(features))
        for expand, fuse, blocks, skip in zip(
            self.expand, self.fuse, self.decoder, reversed(skips), strict=True
        ):
            features = blocks(fuse(torch.cat([expand(features), skip], dim=-1)))
        logits = self.head(self.expand_pixels(features).permute(0, 3, 1, 2))
        return logits[..., : image.shape[-2], : image.shape[-1]]

    def _pad(self, image: Tensor) -> Tensor:
        below, right = self.image_size[0] - image.shape[-2], self.image_size[1] - image.shape[-1]
        if below < 0 or right < 0:
            size, limit = (
                f"{image.shape[-2]} x {image.shape[-1]}",
                "{} x {}".format(*self.image_size),
            )
            raise InputError(
                f"swin_unet: the image is {size}, expected at most {limit}. Set image_size to hold it."
            )
        return F.pad(image, (0, right, 0, below))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        yield "patch_embedding", self.embedding
        for stack in (*self.encoder, *self.decoder):
            yield from (("swin_transformer_block", block) for block in stack)
        yield from (("patch_merging", merge) for merge in self.merge)
        yield from (("patch_expanding", expand) for expand in (*self.expand, self.expand_pixels))
        yield from (("swin_unet_concat_linear_proj", fuse) for fuse in self.fuse)
        yield "conv2d", self.head


def _init_as_keras(network: nn.Module) -> None:
    """Keras' defaults: Glorot-uniform kernels, zero biases, places uniform in +-0.05."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.05, 0.05)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"swin_unet: {name} is {value}, expected at least 1.")


def _check_lists(depth: int, **lists: Sequence[int]) -> None:
    for name, values in lists.items():
        if isinstance(values, int) or len(values) != depth or min(values) < 1:
            raise InputError(
                f"swin_unet: {name} is {values}, expected {depth} numbers (depth), at least 1."
            )


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a number or a pair."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1 or (name == "patch_size" and pair[0] != pair[1]):
        expected = (
            "one number, or it twice" if name == "patch_size" else "one number or (height, width)"
        )
        raise InputError(f"swin_unet: {name} is {value}, expected {expected}, at least 1.")
    return pair


def _check_levels(
    filters: int, patch: int, sides: tuple[int, int], heads: Sequence[int], windows: Sequence[int]
):
    if filters % patch:
        raise InputError(
            f"swin_unet: filter_num_begin is {filters}, expected a multiple of patch_size {patch}."
        )
    for level, (head, window) in enumerate(zip(heads, windows, strict=True)):
        channels = filters * 2 ** max(level - 1, 0)  # the decoder's, one level up
        if channels % head:
            raise InputError(
                f"swin_unet: num_heads[{level}] is {head}, expected a divisor of {channels} channels."
            )
        unit = patch * 2**level * window
        if any(side % unit for side in sides):
            raise InputError(
                f"swin_unet: image_size is {sides}, window_size[{level}] asks for multiples of {unit}."
            )
