"""What a run was made by and from: its command line, versions, project, data and machine."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from ovseg import __version__
from ovseg.core.checkpoints import epochs_done, find_checkpoint, read_checkpoint
from ovseg.core.configs import shorten_configs
from ovseg.core.errors import InputError
from ovseg.core.files import file_digest, write_json
from ovseg.core.processes import processor_name
from ovseg.core.runs import LAST, RunFolder
from ovseg.core.versions import installed_versions
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import SPLITS, has_images
from ovseg.training.callbacks.run_folder import run_of
from ovseg.training.resume import is_finished

# Packages that a training's numbers depend on, by their names on PyPI.
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "numpy",
    "opencv-python-headless",
    "pillow",
)
GIT_SECONDS = 5.0  # on a slow network drive the state of a project is not worth more


class RunRecord(Callback):
    """Writes the record of a training when it starts.

    Args:
        command: `train` or `adapt`.
        arguments: of it.
        config: the whole configuration.
    """

    def __init__(self, command: str, arguments: list[str], config: Any):
        self.command = command
        self.arguments = arguments
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = run_of(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            data: OvarianTumorDataModule = trainer.datamodule  # type: ignore[attr-defined]
            write_record(run, self.command, self.arguments, self.config, data)


def write_record(
    run: RunFolder,
    command: str,
    arguments: list[str],
    config: Any,
    data: OvarianTumorDataModule,
) -> None:
    """Write the record of a training, see `RunRecord`, into its folder."""
    digests = {split: data.digest(split) for split in SPLITS if has_images(data.root, split)}
    process = psutil.Process()
    record = {
        "command": shlex.join(["ovseg", command, *shorten_configs(arguments)]),
        "folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_from": _absolute(config.ckpt_path),
        "weights": _describe_weights(config.model.weights),
        "data": {"root": str(data.root.resolve()), "sha256": digests},
        "git": read_git_state(Path.cwd()),
        "versions": {
            "python": platform.python_version(),
            "ovseg": __version__,
            **installed_versions(PACKAGES),
        },
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "processor": processor_name(),
            "gpus": [
                torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
            ],
        },
        "process": {"id": process.pid, "started": process.create_time()},
    }
    write_json(run.record, record)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _describe_weights(weights: str | None) -> dict[str, str] | None:
    if weights is None:
        return None
    path = find_checkpoint(Path(weights))
    return {"path": str(path.resolve()), "sha256": file_digest(path)}


def read_git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a project is at, and whether tracked files were changed since.

    Returns:
        `commit` and `dirty`; None for a folder that is in no repository with a commit, or without
        git.
    """
    if shutil.which("git") is None:
        return None
    try:
        commit = _ask_git(folder, "rev-parse", "HEAD")
        changes = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": changes != ""}


def _ask_git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
    )
    return result.stdout.strip()


def find_unfinished(parent: Path, config: Any, is_first_process: bool) -> Path | None:
    """The last checkpoint of the newest unfinished run of a configuration.

    A run that was resumed is left to the run that continues it, and one that still trains on this
    machine to its process.

    Args:
        parent: folder of the runs.
        config: the whole configuration.
        is_first_process: false in the other processes of a training. They look for the same
            checkpoint, while the first may have made the folder of the new run already.

    Returns:
        None where there is none.
    """
    continued = set()
    for run in reversed(RunFolder.list_versions(parent)):
        record = _read_record(run)
        path = run.checkpoint(LAST)
        trains = is_first_process and _still_trains(record)
        if not path.is_file() and not trains:
            continue
        resumed_from = record.get("resumed_from")
        if isinstance(resumed_from, str):
            continued.add(RunFolder.of_checkpoint(Path(resumed_from)).path)
        if trains or run.path.resolve() in continued:
            continue
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            rank_zero_info(f"{error} An older one is looked for.")
            continue
        if not is_finished(checkpoint, config.trainer, config.early_stopping.patience):
            epochs = epochs_done(checkpoint)
            rank_zero_info(f"Resuming {run.path} from {path}, {epochs} epochs are done.")
            return path
    rank_zero_info(f"There is no unfinished run in {parent}, so a new one starts.")
    return None


def _read_record(run: RunFolder) -> dict[str, Any]:
    """The record of a run; empty for a run of an older ovseg, or an unreadable one."""
    try:
        record = json.loads(run.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _still_trains(record: dict[str, Any]) -> bool:
    """Whether the process that wrote a record on this machine still runs."""
    try:
        if record["host"]["name"] != platform.node():
            return False
        process = psutil.Process(record["process"]["id"])
        # Another process may have got the number since.
        return abs(process.create_time() - record["process"]["started"]) < 1
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False
