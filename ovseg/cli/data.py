"""The commands that make, check and look at datasets."""

from pathlib import Path

from ovseg.cli.output import conclude
from ovseg.core.errors import first_five


def prepare_data(
    *,
    source: Path | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    output: Path,
    layout: str = "auto",
    kind: str = "b-mode",
    mask_suffix: str | None = None,
    labels: str | None = None,
    categories: bool = False,
    invert_masks: bool = False,
    unmatched: str = "error",
    groups: str | None = None,
    size: int = 512,
    fit: str = "letterbox",
    split: str = "auto",
    split_file: Path | None = None,
    fractions: str = "0.8,0.1,0.1",
    folds: int = 0,
    allow_leakage: bool = False,
    seed: int = 42,
    overwrite: bool = False,
) -> int:
    """Make a dataset of squares, split without leakage, from a dataset of any usual layout.

    Args:
        source: folder of the dataset or of its annotation files, or one annotation file
        images: folder of images, with --masks in place of --source, or with --source where
            annotation files lie elsewhere
        masks: folder of their masks, with --images
        output: dataset folder to make
        layout: auto (by its content) or otu2d, cvat, ddti, coco, labelme, yolo, tn3k, busi, folders
        kind: of MMOTU's pictures: b-mode (OTU_2d) or ceus (OTU_3d, every colour is lesion)
        mask_suffix: what follows an image's name in those of its masks (default: found by rule)
        labels: the labels that are lesion, with commas between (default: all)
        categories: keep each label as a category
        invert_masks: the darker of a mask's two values is lesion
        unmatched: images without mask: error, skip (leave them out) or empty (no lesion)
        groups: which patient is on each image: a CSV with columns such as image and patient, or
            folders (one of each patient)
        size: side of the squares in pixels
        fit: letterbox, stretch or stretch_nearest
        split: auto (the dataset's own folders, else groups), groups (of near-duplicates) or
            official (its own folders, or train.txt and val.txt)
        split_file: a split to use instead: JSON {image: split}, or a CSV with columns such as image
            and split
        fractions: of images in train, valid and test, for a split by groups; test may be 0
        folds: also divide train and valid into this many folds
        allow_leakage: accept near-duplicates in two splits
        seed: seed of the split
        overwrite: replace an earlier dataset
    """
    from ovseg.data.prepare.dataset import prepare_dataset
    from ovseg.data.prepare.sources import Reading
    from ovseg.data.tree import SPLITS

    names = [label.strip() for label in (labels or "").split(",")]
    chosen = tuple(name for name in names if name)
    reading = Reading(
        images=images,
        masks=masks,
        mask_suffix=mask_suffix,
        labels=chosen,
        categories=categories,
        invert_masks=invert_masks,
        kind=kind,
    )
    manifest = prepare_dataset(
        source=source,
        output=output,
        size=size,
        fit=fit,
        split=split,
        split_file=split_file,
        folds=folds,
        allow_leakage=allow_leakage,
        seed=seed,
        overwrite=overwrite,
        layout=layout,
        reading=reading,
        unmatched=unmatched,
        groups=groups,
        fractions=fractions,
    )
    splits = [item["split"] for item in manifest["items"]]
    counts = ", ".join(f"{splits.count(name)} {name}" for name in SPLITS)
    found = {item["group"] for item in manifest["items"]}
    text = f"{len(splits)} pairs in {output}: {counts}, {len(found)} groups of near-duplicates"
    if manifest["leakage"]:
        text += f" with leakage: {len(manifest['leaking_pairs'])} pairs are in two splits"
    if manifest["left_out"]:
        kinds = []
        for reason, names in manifest["left_out"].items():
            kinds.append(f"{reason}: {len(names)} ({first_five(names)})")
        count = sum(len(names) for names in manifest["left_out"].values())
        text += f"\n{count} files were left out; {'; '.join(kinds)}"
    return conclude(text, manifest["failures"])


def audit_data(
    *,
    data: Path,
    output: Path | None = None,
    mask_threshold: int = 127,
    invert_masks: bool = False,
    overwrite: bool = False,
) -> int:
    """Find faults, copies and leakage in a dataset.

    The exit code is 1 if pairs are broken or near-duplicates lie in two splits.

    Args:
        data: dataset folder with train, valid and test
        output: folder to make (default: audit in the dataset folder)
        mask_threshold: grey values above it are lesion
        invert_masks: the lesion is drawn in black on white
        overwrite: replace an earlier audit
    """
    from ovseg.audit.report import print_audit, report_audit

    summary = report_audit(data, output, mask_threshold, overwrite, invert_masks)
    print_audit(summary)
    print(f"Written to {output or data / 'audit'}")
    return 0 if summary["passed"] else 1


def make_phantoms(
    *,
    output: Path,
    count: int = 400,
    size: int = 256,
    seed: int = 0,
    folds: int = 0,
    look: str = "b-mode",
    overwrite: bool = False,
) -> int:
    """Make a dataset of phantoms, which are synthetic ultrasound pairs.

    Args:
        output: dataset folder to make
        count: number of pairs
        size: height of the pictures in pixels
        seed: seed of the drawing
        folds: also divide train and valid into this many folds
        look: b-mode, ceus (contrast agent in amber on black) or panels (both side by side)
        overwrite: replace an earlier dataset
    """
    from ovseg.data.prepare.phantoms import write_phantoms

    write_phantoms(output, count, size=size, seed=seed, folds=folds, overwrite=overwrite, look=look)
    return conclude(f"{count} phantoms in {output}")


def measure_leakage(
    *,
    data: Path,
    output: Path,
    seeds: int = 3,
    image_size: int = 64,
    epochs: int = 15,
    device: str = "auto",
) -> int:
    """Measure what near-duplicates across a split add to the test score.

    Args:
        data: dataset that prepare_data wrote
        output: folder of results; a second call continues in it
        seeds: number of repetitions
        image_size: side of the squares in pixels
        epochs: epochs of each of the 3 trainings a seed
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
    """
    from ovseg.experiments import leakage

    summary = leakage.measure_leakage(data, output, seeds, image_size, epochs, device)
    leakage.print_leakage(summary)
    return conclude(f"Written to {output}")


def draw_augmentations(
    *,
    output: Path,
    augmentations: list[str] | None = None,
    data: Path | None = None,
) -> int:
    """Draw what augmentations do to a phantom, or to pairs of a dataset.

    Args:
        output: PNG to write
        augmentations: names of pipelines, or albumentations files (default: ultrasound_light
            ultrasound_strong)
        data: dataset folder (default: a phantom)
    """
    from ovseg.data.augment import sheet

    pipelines = augmentations or ["ultrasound_light", "ultrasound_strong"]
    sheet.draw_augmentations(output, pipelines, data)
    return conclude(f"Written to {output}")
