"""Predict a large picture in tiles that overlap, at its own resolution.

A tile is as large as the network's square, so that a pixel of the picture is a pixel of the
network's input. MONAI's `sliding_window_inference` blends in the same way, but is a large package
for this, works on tensors of one size, and keeps a map of weights as large as the picture.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ovseg.core.errors import InputError
from ovseg.data.boxes import Box, cut

# Of one picture: probabilities, float32 (classes, H, W), and their variance over views, (H, W).
ProbsAndVariance = tuple[np.ndarray, np.ndarray | None]
# Predicts RGB pictures, uint8 (H, W, 3), that go through a network together.
Predict = Callable[[Sequence[np.ndarray]], list[ProbsAndVariance]]

OVERLAPS = (0.0, 0.75)  # at 0.75 a pixel lies in 16 tiles; more only takes longer
# Standard deviation of the weights in a tile, as a share of its side: predictions at the edge of a
# tile know least of what is around. F. Isensee et al., nnU-Net, Nature Methods 18, 2021.
SIGMA = 1 / 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tile:
    """A part of a picture, and its share in the prediction of each of its pixels.

    Attributes:
        box: where it lies.
        share: float32 (height, width) of the box; the shares of all tiles of a pixel sum to 1.
    """

    box: Box
    share: np.ndarray


def check_overlap(overlap: float | None) -> None:
    """Raise InputError for an overlap outside of `OVERLAPS`; None stands for no tiles."""
    low, high = OVERLAPS
    if overlap is None:
        return
    is_number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
    if not is_number or not low <= overlap <= high:
        raise InputError(
            f"tiles is {overlap}, expected the share of a tile's side by which it overlaps the "
            f"next one, {low:g}..{high:g}, such as 0.25."
        )


def predict_in_tiles(
    predict: Predict,
    pictures: Sequence[np.ndarray],
    side: int,
    overlap: float,
    batch_size: int,
) -> list[ProbsAndVariance]:
    """Predict those of some pictures in tiles that do not fit into a tile, the others whole.

    Args:
        predict: predicts whole pictures.
        pictures: RGB, uint8 (H, W, 3); sizes may differ.
        side: of a tile, pixels.
        overlap: see `check_overlap`.
        batch_size: how many tiles go through the network together.

    Returns:
        In the order of the pictures.
    """
    fitting = [picture for picture in pictures if max(picture.shape[:2]) <= side]
    whole = iter(predict(fitting) if fitting else [])
    results = []
    for picture in pictures:
        if max(picture.shape[:2]) <= side:
            results.append(next(whole))
        else:
            results.append(_blend_tiles(predict, picture, side, overlap, batch_size))
    return results


def _blend_tiles(
    predict: Predict, picture: np.ndarray, side: int, overlap: float, batch_size: int
) -> ProbsAndVariance:
    """The predictions of all tiles of a picture, averaged by their shares."""
    height, width = picture.shape[:2]
    probs = None
    variance = None
    for tiles in in_batches(split_tiles(height, width, side, overlap), batch_size):
        found = predict([_in_square(picture, tile.box, side) for tile in tiles])
        for tile, (tile_probs, tile_variance) in zip(tiles, found, strict=True):
            inside = _centre(tile.box, side)
            if probs is None:
                probs = np.zeros((len(tile_probs), height, width), np.float32)
            for total, of_tile in zip(probs, tile_probs, strict=True):
                cut(total, tile.box)[:] += tile.share * cut(of_tile, inside)
            if tile_variance is None:
                continue
            if variance is None:
                variance = np.zeros((height, width), np.float32)
            cut(variance, tile.box)[:] += tile.share * cut(tile_variance, inside)
    assert probs is not None  # there is a tile at least
    return probs, variance


def _in_square(picture: np.ndarray, tile: Box, side: int) -> np.ndarray:
    """A tile of a picture in a square, black around it: else some networks would stretch it."""
    square = np.zeros((side, side, 3), np.uint8)
    cut(square, _centre(tile, side))[:] = cut(picture, tile)
    return square


def _centre(tile: Box, side: int) -> Box:
    """Where a tile that is smaller than the square lies in it: as a letterbox places it."""
    top = (side - tile.height) // 2
    left = (side - tile.width) // 2
    return Box(top, left, tile.height, tile.width)


def split_tiles(height: int, width: int, side: int, overlap: float) -> Iterator[Tile]:
    """The tiles of a (height, width) picture, row by row.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        side: of a tile, pixels; a tile is smaller where the picture is.
        overlap: the least share of the side by which neighbours overlap.
    """
    rows = tile_starts(height, side, overlap)
    columns = tile_starts(width, side, overlap)
    row_shares = tile_shares(rows, height, side)
    column_shares = tile_shares(columns, width, side)
    for top, row_share in zip(rows, row_shares, strict=True):
        for left, column_share in zip(columns, column_shares, strict=True):
            share = np.outer(row_share, column_share)
            yield Tile(Box(top, left, *share.shape), share)


def tile_starts(length: int, side: int, overlap: float) -> list[int]:
    """The first pixel of each tile along an axis; they are evenly spread from edge to edge."""
    last = max(0, length - side)
    step = max(1.0, side * (1 - overlap))
    count = math.ceil(last / step) + 1
    return [round(start) for start in np.linspace(0, last, count).tolist()]


def tile_shares(starts: Sequence[int], length: int, side: int) -> list[np.ndarray]:
    """The share of each tile in each of its pixels along an axis.

    Shares fall from the middle of a tile to its edges as a normal distribution does.

    Returns:
        float32, as long as the tile; the shares of all tiles of a pixel sum to 1.
    """
    side = min(side, length)
    distances = (np.arange(side) + 0.5) / side - 0.5
    weights = np.exp(-0.5 * (distances / SIGMA) ** 2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += weights
    shares = [weights / total[start : start + side] for start in starts]
    return [share.astype(np.float32) for share in shares]


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items each, the last one of what is left; none is taken ahead."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
