"""Connected components of a mask, with numpy alone."""

import numpy as np


def label_components(mask: np.ndarray, diagonal: bool) -> np.ndarray:
    """Number the connected components of a mask in the order of their first pixels.

    Equal to `scipy.ndimage.label`, which `ovseg.runtime` does without.

    Args:
        mask: bool (H, W).
        diagonal: whether pixels that touch at a corner are connected (8 neighbours, not 4).

    Returns:
        int64 (H, W): 0 outside of the mask, else 1, 2, ...
    """
    # A run is a stretch of the mask in one row. With empty columns around, the flat mask changes
    # at the beginning and after the end of each.
    padded = np.pad(mask, ((0, 0), (1, 1)))
    width = padded.shape[1]
    changes = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    begins = changes[::2]
    ends = changes[1::2]
    runs = len(begins)

    # The runs of the row below that touch each run: from `first` on, before `last`.
    reach = 1 if diagonal else 0
    first = np.searchsorted(ends, begins + width - reach, side="right")
    last = np.searchsorted(begins, ends + width + reach, side="left")
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(runs), touching)
    offsets = np.arange(len(upper)) - np.repeat(np.cumsum(touching) - touching, touching)
    lower = np.repeat(first, touching) + offsets

    # Each run points to an earlier run of its component, in the end to the first one.
    root = np.arange(runs)
    while True:
        smaller = np.minimum(root[upper], root[lower])
        updated = root.copy()
        np.minimum.at(updated, root[upper], smaller)
        np.minimum.at(updated, root[lower], smaller)
        updated = updated[updated]
        if np.array_equal(updated, root):
            break
        root = updated

    numbers = np.unique(root, return_inverse=True)[1] + 1
    steps = np.zeros(padded.size + 1, np.int64)
    steps[begins] = numbers
    steps[ends] = -numbers
    labels = np.cumsum(steps)[:-1].reshape(padded.shape)
    return labels[:, 1:-1]
