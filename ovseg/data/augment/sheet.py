"""What augmentations do to pictures, as one picture."""

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
    """Write a PNG with a row for each pipeline: a pair as it is, then augmented with the seeds 1, 2, ...

    Args:
        output: file to write.
        augmentations: names of pipelines or files (see `build_transform`).
        root: dataset whose first training pairs are shown, another in each row; by default phantoms.
        columns: pictures a row.
        side: of each picture, pixels.

    Raises:
        InputError: an unknown augmentation, or a dataset that can't be used.
    """
    data = OvarianTumorDataModule(str(root), cache=False).dataset("train") if root else None
    rows = []
    for number, name in enumerate(augmentations):
        transform = build_transform(name)
        image, mask = data.load(number % len(data)) if data else make_phantom(5, 512)
        tiles = [caption(shrink_to(outline(image, mask, TRUTH), side), Path(name).stem)]
        for seed in range(1, columns):
            view = augment(transform, image, mask, seed) if transform else (image, mask)
            tiles.append(caption(shrink_to(outline(*view, TRUTH), side), f"seed {seed}"))
        rows.append(np.concatenate(tiles, axis=1))
    write_image(output, np.concatenate(rows))
