"""How a training writes its checkpoints: beside their place, and there only when they are whole."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from ovseg.core.errors import WriteError, system_reason
from ovseg.core.files import atomic_path


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its path, flushes it to the disk and renames it.

    The old file stays until then. Lightning's own plugin writes to the folder for temporary files
    and moves the file from there. Where that folder is on another file system the move is a copy,
    and a kill or a full disk leaves a truncated checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, in a folder of this machine.

        Raises:
            WriteError: the file can't be written; what was at `path` is still there.
        """
        try:
            with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        # torch raises a RuntimeError from some errors of the file.
        except (WriteError, RuntimeError) as error:
            reason = _find_reason(error)
            if reason is None:
                raise
            raise WriteError(
                f"Cannot write the checkpoint {path}: {reason}. An earlier one of that name is "
                "kept. Make room or choose another --runs_dir, then resume from the run's "
                "last.ckpt."
            ) from error


def _find_reason(error: BaseException | None) -> str | None:
    """The operating system's words for an error, or for the one that it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, WriteError):
            return system_reason(error)
        error = error.__cause__ or error.__context__
    return None
