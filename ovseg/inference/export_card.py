"""A card that says what an exported model is and how good it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovseg.core.files import atomic_path, file_digest

CARD_FILE = "README.md"
# Scores of an evaluation, and what they are.
SCORES = {
    "dice_original": "Dice per image",
    "iou_original": "IoU per image",
    "sensitivity_original": "sensitivity",
    "precision_original": "precision",
    "hd95": "HD95, pixels",
    "nsd": "NSD",
}
NO_NOTES = """\
# A model of ovseg

It is for research, no medical device, and its output is not for diagnosis or treatment. Scores
hold for the data that they were measured on."""
NO_SCORES = "Not evaluated: `ovseg evaluate --run RUN` before `ovseg export` adds the scores."


def write_card(path: Path, model: Path, description: dict[str, Any], notes: str = "") -> None:
    """Write the card of a model as Markdown.

    Args:
        path: the file to write.
        model: the network's file.
        description: the content of `model.json`, see `ovseg.inference.export.export_run`.
        notes: what only people know, such as data, licence, intended use and limits: Markdown that
            begins with a title; empty for a sentence on research.
    """
    parts = [
        notes.strip() or NO_NOTES,
        "## Scores on new images",
        _describe_scores(description["scores"]),
        "## The file",
        _describe_file(model, description),
        "## How it was made",
        _describe_training(description["training"]),
    ]
    with atomic_path(path) as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _describe_scores(found: dict[str, Any] | None) -> str:
    if found is None:
        return NO_SCORES
    rows = []
    for name, label in SCORES.items():
        score = found["scores"].get(name)
        if score is None or score["mean"] is None:
            continue
        interval = ""
        if score["ci95"] is not None:
            interval = f"{score['ci95'][0]:.3f} .. {score['ci95'][1]:.3f}"
        rows.append((label, f"{score['mean']:.3f}", interval, f"{score['median']:.3f}"))
    pooled = found["scores"].get("iou_pooled_original")
    if pooled is not None:
        rows.append(("pooled IoU", f"{pooled:.3f}", "", ""))

    of = f"{found['of']}; at their original sizes. Intervals resample "
    of += {"groups": "groups of near-duplicates.", "images": "images."}[found["intervals"]]
    if found["leakage"]:
        of += " **Near-duplicates of these images were in training.**"
    kinds = []
    for row in found["failures"]:
        kinds.append((row["kind"], str(row["images"]), f"{row['share']:.0%}", row["means"]))
    return "\n\n".join(
        [
            of,
            _table(("", "mean", "95 % interval", "median"), rows),
            "How it fails:",
            _table(("kind", "images", "share", "what it means"), kinds),
        ]
    )


def _describe_file(model: Path, description: dict[str, Any]) -> str:
    agreement = description["agreement"]
    network = description["network"]
    size = description["image_size"]
    megabytes = model.stat().st_size / 1e6
    fit = description["fit"]
    difference = (
        f"at most {agreement['difference']:.1e} in a probability, Dice between two masks at least "
        f"{agreement['dice_between_masks']:.4f} ({agreement['images']})"
    )
    rows = [
        ("file", f"`{model.name}`, {megabytes:.1f} MB, {description['precision']}"),
        ("SHA-256", f"`{file_digest(model)}`"),
        ("SHA-256 of the checkpoint", f"`{description['checkpoint_sha256']}`"),
        ("network", f"`{network['arch']}`, `{network['arch_args']}`"),
        ("input", f"RGB, uint8, 0..255; pictures are placed in {size} x {size} by `{fit}`"),
        ("output", f"probabilities of {', '.join(description['categories'])}"),
        ("post-processing", f"`{description['postprocessing']}`"),
        ("difference from the checkpoint", difference),
        ("made by", description["made_by"]),
    ]
    return _table(("", ""), rows)


def _describe_training(training: dict[str, Any]) -> str:
    if not training:
        return "The run has no record of its training."
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    rows = [
        ("command", f"`{training['command']}`"),
        ("started", training["started"]),
        ("versions", versions),
    ]
    for split, digest in training["data_sha256"].items():
        rows.append((f"SHA-256 of {split}", f"`{digest}`"))
    return _table(("", ""), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
