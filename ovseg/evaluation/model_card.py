"""What was trained and evaluated, as the model card of a page tells it: name -> text."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_CONFIG_BYTES
from ovseg.core.processes import processor_name
from ovseg.core.runs import RunFolder
from ovseg.core.schema import read_json, read_text
from ovseg.core.yaml_files import parse_yaml
from ovseg.data.manifest import read_manifest
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.labels import Postprocessing


class Host(Struct):
    """The machine of a training."""

    system: str
    processor: str
    gpus: list[str]


class Commit(Struct):
    """The state of the project that a training was started in."""

    commit: str
    dirty: bool


class Record(Struct):
    """Of `run.json`, what the page tells; `ovseg.experiments.run_record` writes it."""

    command: str
    started: str
    resumed_from: str | None
    versions: dict[str, str]
    host: Host
    git: Commit | None


def describe_evaluation(evaluation: Evaluation, summary: dict[str, Any]) -> dict[str, str]:
    """What was evaluated, and how."""
    intervals = "images, taken as independent"
    if summary["intervals"] == "groups":
        intervals = "groups of near-duplicates"
    tolerance = f"{summary['nsd_tolerance']:g} pixels of the original picture"
    spacing = "unknown, so distances are in pixels"
    if summary["spacing"] is not None:
        known = summary["scores"]["hd95_mm"]["images"]
        tolerance = f"{tolerance}; {summary['nsd_tolerance_mm']:g} mm"
        spacing = f"{summary['spacing']}, known of {known} of {summary['images']} images"
    return {
        "checkpoint": f"{summary['checkpoint']}, epoch {summary['epoch']}",
        "SHA-256 of the checkpoint": summary["checkpoint_sha256"],
        "files": "; ".join(summary["members"]),
        "image size": f"{summary['image_size']} x {summary['image_size']} pixels",
        "post-processing": str(Postprocessing(**summary["postprocessing"])),
        "tolerance of NSD": tolerance,
        "millimetres per pixel": spacing,
        "intervals resample": intervals,
        "device": f"{evaluation.device}, {processor_name()}, {torch.get_num_threads()} threads",
        "versions": _list_versions(summary["versions"]),
    }


def describe_data(root: Path, summary: dict[str, Any]) -> dict[str, str]:
    """The dataset of an evaluation and its split.

    Args:
        root: the dataset's folder.
        summary: of the evaluation.
    """
    evaluated = f"{summary['images']} images of {summary['split']}"
    if summary["trained_on"]:
        evaluated += ", which the network was trained on"
    if summary["dataset_changed"]:
        evaluated += ", which the network may have been trained on: the dataset was made anew since"
    facts = {
        "dataset": summary["data"],
        "evaluated": evaluated,
        "leakage": "near-duplicates are in two splits" if summary["leakage"] else "none known",
    }
    manifest = read_manifest(root)
    if "made_by" in manifest:
        facts["made by"] = manifest["made_by"]
    if "split" in manifest:
        facts["divided by"] = f"{manifest['split']}, seed {manifest.get('seed', 'unknown')}"
    if manifest.get("items"):
        counts = Counter(item["split"] for item in manifest["items"])
        parts = [f"{split} {count}" for split, count in counts.items()]
        facts["images of each split"] = ", ".join(parts)
    return facts


def describe_training(run: RunFolder, config: str) -> dict[str, str]:
    """How a run was trained, as far as its folder tells: empty for a lone checkpoint.

    Args:
        run: the folder.
        config: its configuration, see `read_configuration`.
    """
    facts = {}
    try:
        record = read_json(run.record, Record, "ovseg train", "")
    except InputError:
        record = {}
    if record:
        host = record["host"]
        hardware = [host["processor"], *host["gpus"], host["system"]]
        facts["command"] = record["command"]
        if record["resumed_from"]:
            facts["resumed from"] = record["resumed_from"]
        facts["started"] = record["started"]
        facts["hardware"] = "; ".join(hardware)
        facts["versions"] = _list_versions(record["versions"])
        if record["git"]:
            changes = ", with changes" if record["git"]["dirty"] else ""
            facts["commit of the project"] = f"{record['git']['commit']}{changes}"
    seeds = _find_seeds(config)
    if seeds:
        facts["seeds"] = ", ".join(f"{name} {seed}" for name, seed in seeds.items())
    return facts


def read_configuration(run: RunFolder) -> str:
    """The configuration of a run; empty where there is none, as for a lone checkpoint."""
    try:
        return read_text(run.config, MAX_CONFIG_BYTES)
    except InputError:
        return ""


def _find_seeds(config: str) -> dict[str, Any]:
    """The seeds of a configuration, by their keys; empty where it tells none."""
    try:
        settings = parse_yaml(config, "config.yaml")
    except InputError:
        return {}
    if not isinstance(settings, dict):
        return {}
    seeds = {}
    if "seed_everything" in settings:
        seeds["seed_everything"] = settings["seed_everything"]
    data = settings.get("data")
    if isinstance(data, dict) and "seed" in data:
        seeds["data.seed"] = data["seed"]
    return seeds


def _list_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
