"""The folder of a run: claimed when training is about to start, given back where it came to nothing."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ovseg.core.errors import InputError


def claim_version(folder: Path) -> str:
    """Make the next free `version_<n>` folder; two runs that start at once never share one.

    Raises:
        InputError: the folder can't be written.
    """
    numbers = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    number = max(numbers, default=-1) + 1
    while True:
        try:
            (folder / f"version_{number}").mkdir(parents=True)
            return f"version_{number}"
        except FileExistsError:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder. Choose another --runs_dir.") from None
            number += 1
        except OSError as error:
            raise InputError(
                f"Cannot write {folder}: {error.strerror}. Choose another --runs_dir."
            ) from None


def release_run(folder: Path | None) -> None:
    """Remove the claimed folder of a run that kept no checkpoint, and its parents that nothing else is in.

    Args:
        folder: the run's; None where this process claimed none.
    """
    if folder is None or any(folder.glob("checkpoints/*.ckpt")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        os.removedirs(folder.parent)
