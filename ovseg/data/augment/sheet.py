"""A picture of what augmentations do."""

from pathlib import Path

import numpy as np

from ovseg.core.drawing import TRUTH, caption, outline, shrink_to
from ovseg.core.files import write_image
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.phantoms import make_phantom


def draw_augmentations(
    output: Path,
    augmentations: list[str],
    root: Path | None = None,
    columns: int = 5,
    side: int = 160,
) -> None:
    """Write a PNG with a row for each pipeline: a pair as it is, then with seeds 1, 2, ...

    Args:
        output: file to write.
        augmentations: names of pipelines or files (see `build_transform`).
        root: dataset whose first training pairs are shown, another in each row; by default every
            row shows one phantom.
        columns: pictures a row.
        side: of each picture, pixels.

    Raises:
        InputError: an unknown augmentation, or a dataset that can't be used.
    """
    dataset = None
    if root is not None:
        dataset = OvarianTumorDataModule(str(root), cache=False).dataset("train")

    rows = []
    for number, name in enumerate(augmentations):
        transform = build_transform(name)
        if dataset is None:
            image, mask = make_phantom(5, 512)
        else:
            image, mask = dataset.load(number % len(dataset))

        tiles = [_draw_tile(image, mask, side, Path(name).stem)]
        for seed in range(1, columns):
            pair = (image, mask)
            if transform is not None:
                pair = augment(transform, image, mask, seed)
            tiles.append(_draw_tile(*pair, side, f"seed {seed}"))
        rows.append(np.concatenate(tiles, axis=1))
    write_image(output, np.concatenate(rows))


def _draw_tile(image: np.ndarray, mask: np.ndarray, side: int, text: str) -> np.ndarray:
    """An image with its mask's outline, (side + 18, side, 3), under a caption."""
    outlined = outline(image, mask, TRUTH)
    return caption(shrink_to(outlined, side), text)
