"""The commands and options that mend what an audit found."""

import shlex
from pathlib import Path

from ovseg.data.tree import preparing_command

LEAKS = "copies across splits"
# Kind of problem -> what mends it; {prepare} is the command that makes a dataset of the same files.
REMEDIES = {
    "missing folder": "{prepare}",
    "image without mask": (
        "add the masks, or: {prepare} --unmatched skip (leaves the images out) or --unmatched "
        "empty (they show no lesion)"
    ),
    "mask without image": "add the images, or leave the masks out: {prepare} --unmatched skip",
    "no binary mask": (
        "for masks of two values, whichever they are: {prepare}; for masks of 0 and 1 as they are: "
        "--mask_threshold 0 here, --data.mask_threshold 0 in train"
    ),
    "manifest differs": "{prepare}",
    "white corners": (
        "if the lesion is drawn in black: {prepare} --invert_masks; or as they are: "
        "--invert_masks here, --data.invert_masks true in train"
    ),
    "soft edges": "another threshold: --mask_threshold here, --data.mask_threshold in train",
    "EXIF orientation": (
        "if the masks were drawn on the pictures as they are stored: exiftool -Orientation= FILE"
    ),
    LEAKS: "{prepare} --split groups",
}


def describe_remedy(kind: str, root: Path, prepared: bool) -> str:
    """What mends a kind of problem; empty where no command or option does.

    Args:
        kind: of `ovseg.audit.files.BROKEN` or `REMARKS`, or `LEAKS`.
        root: the dataset.
        prepared: whether `prepare_data` made it; it is then made again of the original pictures.
    """
    command = preparing_command(root)
    if prepared:
        output = shlex.quote(str(root))
        command = f"ovseg prepare_data --source ORIGINALS --output {output} --overwrite"
    return REMEDIES.get(kind, "").format(prepare=command)
