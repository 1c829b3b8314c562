"""The folder of a run: the one place that knows the names in it.

An evaluation's own files are named in `ovseg.evaluation.report`.
"""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ovseg.core.errors import InputError

BEST = "best"
LAST = "last"
INTERRUPTED = "interrupted"
CHECKPOINTS = (BEST, LAST, INTERRUPTED)  # in the order of preference
DESCRIPTION_FILE = "model.json"  # beside the file of a network that `ovseg export` wrote
EXPORTED = (".onnx", ".xml", ".safetensors")  # suffixes of such files


@dataclass(frozen=True)
class RunFolder:
    """`<runs_dir>/<config>/version_<n>/`, or a folder of that layout under another name.

    Attributes:
        path: the folder; it need not exist.
    """

    path: Path

    @classmethod
    def claim(cls, parent: Path) -> "RunFolder":
        """Make the next free `version_<n>` folder in `parent`.

        Two runs that start at once never share one.

        Raises:
            InputError: the folder can't be written.
        """
        numbers = [_version_number(run.path) for run in cls.list_versions(parent)]
        number = max(numbers, default=-1) + 1
        while True:
            run = cls(parent / f"version_{number}")
            try:
                run.path.mkdir(parents=True)
                return run
            except FileExistsError:
                if not parent.is_dir():
                    message = f"{parent} is not a folder. Choose another --runs_dir."
                    raise InputError(message) from None
                number += 1
            except OSError as error:
                raise InputError(
                    f"Cannot write {parent}: {error.strerror}. Choose another --runs_dir."
                ) from None

    @classmethod
    def list_versions(cls, parent: Path) -> list["RunFolder"]:
        """The folders `version_<n>` in `parent`, lowest number first."""
        paths = [path for path in parent.glob("version_*") if _version_number(path) >= 0]
        return [cls(path) for path in sorted(paths, key=_version_number)]

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunFolder":
        """The run that a checkpoint lies in, by its path: `<run>/checkpoints/<name>.ckpt`.

        Of a checkpoint that was copied elsewhere it is a folder that is no run.
        """
        return cls(path.parent.parent)

    @classmethod
    def of(cls, path: Path) -> "RunFolder":
        """The run of what a user names: its folder, or a checkpoint in it.

        Of a checkpoint that was copied elsewhere it is the file itself, which has no place for
        results.
        """
        in_run = path.parent.name == cls(path).checkpoints.name
        return cls.of_checkpoint(path) if path.is_file() and in_run else cls(path)

    @property
    def config_name(self) -> str:
        """The name of the configuration.

        It is the name of the folder that holds the versions, or of the folder itself where it is
        not called `version_<n>`.
        """
        folder = self.path.absolute()
        return folder.parent.name if _version_number(folder) >= 0 else folder.name

    @classmethod
    def first(cls, parent: Path) -> "RunFolder":
        """The folder that `claim` makes in an empty `parent`."""
        return cls(parent / "version_0")

    @property
    def config(self) -> Path:
        """The whole configuration, ready for `train --config`."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """The command line, versions, project, data and machine of the training."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """The place of a checkpoint of `CHECKPOINTS`."""
        return self.checkpoints / f"{name}.ckpt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether training has kept any checkpoint; one that is being written is none."""
        return any(not path.name.startswith(".") for path in self.checkpoints.glob("*.ckpt"))

    # The baseline's names, kept for its users: train_losses, train_metrics, epoch_change_infer and
    # break_training.

    def curves(self, kind: str, suffix: str) -> Path:
        """The curves of `kind` "losses" or "metrics", as ".csv" or ".png"."""
        return self.path / f"train_{kind}{suffix}"

    @property
    def snapshots(self) -> Path:
        """The folder of predictions after every epoch."""
        return self.path / "epoch_change_infer"

    @property
    def break_file(self) -> Path:
        """A file that a user makes to end training after the current epoch."""
        return self.path / "break_training"

    @property
    def postprocessing(self) -> Path:
        """The post-processing chosen on validation, see `ovseg.inference.postprocessing`."""
        return self.path / "postprocessing.json"

    @property
    def ensemble(self) -> Path:
        """The file that makes a folder an ensemble; see `ovseg.core.checkpoints`."""
        return self.path / "ensemble.json"

    @property
    def cross_validation(self) -> Path:
        """The settings of a cross-validation, see `ovseg.experiments.cross_validation`."""
        return self.path / "cross_validation.json"

    @property
    def baseline_config(self) -> Path:
        """The baseline's configuration that the run was made from."""
        return self.path / "train_eval_infer.config"

    @property
    def import_table(self) -> Path:
        """What became of each key of the baseline's configuration that the run was made from."""
        return self.path / "import.csv"

    @property
    def export(self) -> Path:
        """The folder of the exported network.

        Raises:
            InputError: this is a file (a checkpoint), so the folder of the result must be named.
        """
        self._refuse_file()
        return self.path / "export"

    def evaluation(self, split: str) -> Path:
        """The folder of a split's scores: `evaluation` for test, else `evaluation_<split>`.

        Raises:
            InputError: this is a file (a checkpoint), so the folder of the result must be named.
        """
        self._refuse_file()
        return self.path / ("evaluation" if split == "test" else f"evaluation_{split}")

    def _refuse_file(self) -> None:
        refuse_export(self.path)
        if self.path.is_file():
            raise InputError(
                f"{self.path} is not a run folder, so it has no place for the result. "
                "Add --output FOLDER."
            )

    def find_checkpoint(self) -> Path:
        """The checkpoint that the run stands for: `best`, else `last`, else `interrupted`.

        Raises:
            InputError: there is none.
        """
        for name in CHECKPOINTS:
            path = self.checkpoint(name)
            if path.is_file():
                return path
        problem = f"There is no folder {self.path}."
        if self.path.is_dir():
            names = ", ".join(f"{name}.ckpt" for name in CHECKPOINTS)
            problem = f"{self.path} has no checkpoint (checkpoints/ with one of {names})."
        raise InputError(f"{problem} Name a run folder such as runs/unet/version_0, or a .ckpt.")

    def remove_if_unused(self) -> None:
        """Remove the folder of a run that kept no checkpoint.

        The configuration's folder, and the folder of all runs, go with it where they are empty.
        """
        if self.has_checkpoint:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()


def refuse_export(path: Path) -> None:
    """Raise InputError where a path is what `ovseg export` wrote."""
    is_file = path.is_file()
    if not (path / DESCRIPTION_FILE).is_file() and not (is_file and path.suffix in EXPORTED):
        return
    run = path.parent.parent if is_file else path.parent
    advice = "Name the run that it was made of, such as runs/unet/version_0."
    if RunFolder(run).has_checkpoint:
        advice = f"Name the run that it was made of: {run}."
    raise InputError(
        f"{path} was written by ovseg export: it holds a network for infer and serve, without what "
        f"a training knows, such as its dataset. {advice}"
    )


def _version_number(path: Path) -> int:
    """The number n of a folder `version_<n>`; -1 for a folder of another name."""
    match = re.fullmatch(r"version_([0-9]+)", path.name)
    return int(match[1]) if match else -1
