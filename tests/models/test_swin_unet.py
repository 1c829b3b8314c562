"""Swin-UNet: the baseline's numbers, its settings, and any image up to its size."""

import pytest
import torch

from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.errors import InputError
from ovseg.models.swin_unet import (
    MASKED,
    PatchExpanding,
    PatchMerging,
    SwinUNet,
    join_windows,
    relative_positions,
    shift_mask,
    split_windows,
)

SMALL = {
    "filter_num_begin": 8,
    "depth": 3,
    "num_heads": [2, 4, 4],
    "window_size": [4, 2, 2],
    "num_mlp": 32,
}
SETTINGS = [
    {**SMALL, "image_size": 64},
    {**SMALL, "image_size": (64, 96), "classes": 3},
    {**SMALL, "image_size": 64, "shift_window": False, "stack_num_down": 1, "stack_num_up": 3},
    {
        "image_size": 48,
        "filter_num_begin": 6,
        "depth": 1,
        "patch_size": (3, 3),
        "num_heads": [2],
        "window_size": [4],
    },
    {
        "image_size": 64,
        "filter_num_begin": 16,
        "num_mlp": 24,
    },  # windows as large as the lowest level
]


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_a_file_of_other_settings_is_an_error(shared_file):
    with pytest.raises(InputError, match="layer patch_embedding holds"):
        load_keras_weights(
            SwinUNet(**SMALL, image_size=64), shared_file("keras_fixtures/swin/best_model.h5")
        )
    with pytest.raises(
        InputError, match="swin_transformer_block: 10 in the file, 14 in the network"
    ):
        network = SwinUNet(**SMALL, image_size=128, stack_num_up=4)
        load_keras_weights(network, shared_file("keras_fixtures/swin/best_model.h5"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_logits_have_the_size_of_the_image_and_every_parameter_a_gradient(settings):
    network = SwinUNet(**settings)
    height, width = network.image_size
    for size in [(height, width), (height - 31, width - 7), (33, width)]:
        logits = network(pixels(2, 3, *size))
        assert (
            logits.shape == (2, settings.get("classes", 1), *size) and torch.isfinite(logits).all()
        )
    logits.square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_a_smaller_image_is_one_with_black_below_and_to_the_right():
    network, image = SwinUNet(**SMALL, image_size=64).eval(), pixels(1, 3, 64, 64)
    image[..., 33:, :], image[..., 50:] = 0, 0
    assert torch.equal(network(image[..., :33, :50]), network(image)[..., :33, :50])


def test_a_larger_image_is_an_error():
    with pytest.raises(
        InputError,
        match="the image is 64 x 65, expected at most 64 x 64. Set image_size to hold it.",
    ):
        SwinUNet(**SMALL, image_size=64)(pixels(1, 3, 64, 65))


def test_an_export_takes_batches_of_any_size():
    settings = {
        "filter_num_begin": 8,
        "depth": 2,
        "stack_num_up": 1,
        "num_heads": [2, 2],
        "window_size": [2, 2],
    }
    network, batch = SwinUNet(**settings, image_size=64).eval(), {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(network, (pixels(2, 3, 64, 64),), dynamic_shapes=(batch,))
    image = pixels(3, 3, 64, 64)
    assert torch.allclose(program.module()(image), network(image), atol=1e-6)


def test_weights_start_as_in_keras():
    network = SwinUNet(**SMALL, image_size=128)
    block = network.encoder[2][1]
    limit = (6 / (32 + 96)) ** 0.5  # Glorot: fan in 32, fan out 96
    assert block.attn_qkv.weight.abs().max().item() == pytest.approx(limit, rel=0.02)
    assert not block.attn_qkv.bias.any() and not block.attn_pos.any() and block.norm1.eps == 1e-5
    assert network.embedding.embedding.weight.abs().max().item() == pytest.approx(0.05, rel=0.01)


def test_heads_and_windows_of_the_decoder_are_those_one_level_below():
    network = SwinUNet(
        filter_num_begin=16, depth=3, num_heads=[2, 4, 8], window_size=[8, 4, 2], image_size=64
    )
    blocks = [stack[1] for stack in (*network.encoder, *network.decoder)]
    assert [b.patches[0] for b in blocks] == [16, 8, 4, 8, 16]
    assert [b.heads for b in blocks] == [2, 4, 8, 8, 4]
    assert [(b.window, b.shift) for b in blocks] == [(8, 4), (4, 2), (2, 1), (2, 1), (4, 2)]


def test_only_the_second_block_of_a_level_shifts_and_only_if_asked():
    shifts = [
        [b.shift for b in SwinUNet(**SMALL, image_size=64, shift_window=s).encoder[0]]
        for s in (True, False)
    ]
    assert shifts == [[0, 2], [0, 0]]


def test_windows_go_row_by_row_and_back():
    features = torch.arange(16.0).view(1, 4, 4, 1)
    windows = split_windows(features, 2)
    assert windows[0, :, :, 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert torch.equal(join_windows(windows, (4, 4)), features)


def test_the_mask_parts_what_only_the_shift_made_neighbours():
    mask = shift_mask((4, 4), 2, 1)
    assert mask.shape == (4, 4, 4) and not mask[0].any()
    far = mask[1] == MASKED  # top right: its second column came round from the left edge
    assert far.tolist() == [[False, True] * 2, [True, False] * 2] * 2
    assert (mask[3] == MASKED).tolist() == (~torch.eye(4, dtype=torch.bool)).tolist()


def test_relative_positions_of_a_window_of_two():
    assert relative_positions(2).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]


def test_merging_stacks_corners_column_by_column_and_expanding_unstacks_row_by_row():
    merge, expand = PatchMerging(1, ""), PatchExpanding(2, 2, "")
    merge.linear_trans.weight.data = torch.eye(4)
    assert merge(torch.tensor([[1.0, 2], [3, 4]]).view(1, 2, 2, 1)).flatten().tolist() == [
        1,
        3,
        2,
        4,
    ]
    expand.linear_trans1.weight.data = torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 2]]).view(
        4, 2, 1, 1
    )
    assert expand(torch.tensor([1.0, 10]).view(1, 1, 1, 2)).flatten().tolist() == [1, 10, 2, 20]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "classes is 0, expected at least 1"),
        ({"depth": 0}, "depth is 0"),
        ({"stack_num_up": 0}, "stack_num_up is 0"),
        ({"num_heads": [4, 8]}, r"num_heads is \[4, 8\], expected 4 numbers \(depth\)"),
        ({"num_heads": 4}, r"num_heads is 4, expected 4 numbers \(depth\)"),
        (
            {"window_size": [4, 2, 0, 2]},
            r"window_size is \[4, 2, 0, 2\], expected 4 numbers \(depth\), at least 1",
        ),
        ({"patch_size": (4, 2)}, r"patch_size is \(4, 2\), expected one number, or it twice"),
        (
            {"image_size": (512, 512, 3)},
            r"image_size is \(512, 512, 3\), expected one number or \(height, width\)",
        ),
        ({"filter_num_begin": 6}, "filter_num_begin is 6, expected a multiple of patch_size 4"),
        ({"num_heads": [3, 4, 4, 4]}, r"num_heads\[0\] is 3, expected a divisor of 128 channels"),
        (
            {"num_heads": [4, 256, 4, 4]},
            r"num_heads\[1\] is 256, expected a divisor of 128 channels",
        ),
        (
            {"image_size": 500},
            r"image_size is \(500, 500\), window_size\[0\] asks for multiples of 16",
        ),
        ({"image_size": (512, 544)}, r"window_size\[3\] asks for multiples of 64"),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        SwinUNet(**settings)
