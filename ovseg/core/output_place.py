"""The place of an output folder: its lock, its temporary folder, and how the one becomes the other.

Beside `predictions` these are `.predictions.lock` and `.predictions.partial`. See
`ovseg.core.files.atomic_dir`, which commands use.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ovseg.core.errors import InputError, WriteError, system_reason

FILE_LIST = ".ovseg_files"  # in a whole folder: the files that the command wrote
WORK = ".ovseg_work"  # in a temporary folder: the digest of what is computed
CACHE = ".cache"  # the folder of a dataset's cache, which may be deleted at any time
INSIDE = ".ovseg"  # how names begin where the place is inside the output folder
LOST_FOUND = "lost+found"  # which every new file system of ext4 holds

AT_FDCWD = -100
RENAME_EXCHANGE = 2
# What systems answer that can't exchange two folders at once.
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


@dataclass(frozen=True)
class OutputPlace:
    """Where an output folder is made.

    Attributes:
        output: the folder to make, an absolute path.
        partial: the temporary folder, on the same file system.
        replaced: where the old folder stands for a moment on systems that can't exchange folders.
        lock_file: locked by the process that makes the folder; the system unlocks it if it dies.
        inside: whether these lie in `output`, because it is a mount point, which can't be renamed.
    """

    output: Path
    partial: Path
    replaced: Path
    lock_file: Path
    inside: bool

    @classmethod
    def of(cls, output: Path) -> "OutputPlace":
        inside = is_mount_point(output)
        begin = output.with_name(f".{output.name}")
        if inside:
            begin = output / INSIDE
        return cls(
            output=output,
            partial=begin.with_name(f"{begin.name}.partial"),
            replaced=begin.with_name(f"{begin.name}.replaced"),
            lock_file=begin.with_name(f"{begin.name}.lock"),
            inside=inside,
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from making the same folder.

        Raises:
            InputError: one does already, or nothing can be written there.
        """
        # Its import takes 30 ms, which commands that write no folder are spared.
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock_file, timeout=0)
        try:
            self.lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"Another process is writing {self.output}. Wait until it has ended, or choose "
                "another --output."
            ) from None
        except OSError as error:
            raise InputError(
                f"Cannot write {self.output}: {system_reason(error)}. Choose another --output."
            ) from None
        try:
            yield
        finally:
            # While it is locked: who waits for the file that was here tries again.
            with suppress(OSError):
                self.lock_file.unlink(missing_ok=True)
            lock.release()

    def recover(self) -> None:
        """Tidy what a process left that was killed while its whole folder took its place.

        Files that others put into the old folder are moved to the new one. What a process left
        that was killed earlier is kept for `start`.
        """
        if self.replaced.is_dir():
            if self.output.is_dir():
                self._retire(self.replaced)
            else:
                os.rename(self.replaced, self.output)
        if listed_files(self.partial) is None:
            return
        if self.inside:
            self._move_files()
        elif self.output.is_dir() and not is_empty(self.output):
            self._retire(self.partial)
        else:
            os.rename(self.partial, self.output)

    def start(self, work: str | None) -> None:
        """Make the temporary folder, or take the one that a process left with the same `work`.

        Raises:
            InputError: the folder can't be made.
        """
        note = self.partial / WORK
        try:
            if work is not None and note.is_file() and note.read_text() == work:
                # Among hidden files are those that were half written.
                for path in self.partial.rglob(".*"):
                    if path.is_file() and path != note:
                        path.unlink()
                return
            if self.partial.exists():
                shutil.rmtree(self.partial)
            self.partial.mkdir()
            if work is not None:
                note.write_text(work)
        except OSError as error:
            raise InputError(
                f"Cannot write {self.output}: {system_reason(error)}. Choose another --output."
            ) from None

    def finish(self) -> None:
        """Put the temporary folder in place of `output`.

        Raises:
            WriteError: the system refuses it; `output` is as it was.
        """
        try:
            (self.partial / WORK).unlink(missing_ok=True)
            names = [str(path) for path in present_files(self.partial)]
            content = json.dumps({"files": sorted(names)}, indent=1)
            (self.partial / FILE_LIST).write_text(content + "\n", encoding="utf-8")
            if self.inside:
                self._move_files()
            elif self.output.is_dir():
                self._exchange()
            else:
                os.rename(self.partial, self.output)
        except OSError as error:
            raise WriteError(f"Cannot write {self.output}: {system_reason(error)}.") from error

    def discard(self) -> None:
        """Delete the temporary folder, unless it is whole: then it may be the replaced one."""
        if listed_files(self.partial) is None:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _exchange(self) -> None:
        if exchange_folders(self.partial, self.output):
            self._retire(self.partial)
            return
        os.rename(self.output, self.replaced)
        os.rename(self.partial, self.output)
        self._retire(self.replaced)

    def _retire(self, folder: Path) -> None:
        """Delete a replaced folder, but move files that others put into it to `output`."""
        listed = listed_files(folder) or set()
        for path in present_files(folder):
            if path not in listed:
                keep_file(folder / path, self.output / path)
        shutil.rmtree(folder)

    def _move_files(self) -> None:
        """Move the files of the temporary folder into `output`, then delete old ones."""
        earlier = listed_files(self.output) or set()
        new = listed_files(self.partial) or set()
        for path in sorted(new):
            source = self.partial / path
            target = self.output / path
            if not source.exists():  # moved before the process was killed
                continue
            if target.exists() and path not in earlier:
                keep_file(target, target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        for path in set(present_files(self.output)) & (earlier - new):
            (self.output / path).unlink()
        os.replace(self.partial / FILE_LIST, self.output / FILE_LIST)
        shutil.rmtree(self.partial)


def keep_file(source: Path, target: Path) -> None:
    """Move a file to `target`, or where that is taken to the same name with `.kept`; say so."""
    while target.is_symlink() or target.exists():
        target = target.with_name(f"{target.name}.kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    print(f"{target}: not written by this command, so it was kept.", file=sys.stderr)


def exchange_folders(first: Path, second: Path) -> bool:
    """Let two folders of one file system change places at once.

    Returns:
        False where the system can't; nothing has changed then. Linux can, on most file systems.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    if renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def is_mount_point(folder: Path) -> bool:
    """Whether a folder is one that can't be renamed: a volume, or another folder bound there."""
    if not folder.is_dir():
        return False
    if os.path.ismount(folder):
        return True
    # A folder of the same file system that is bound there looks like any other.
    import psutil

    with suppress(OSError, RuntimeError):  # the table is not there in every sandbox
        for partition in psutil.disk_partitions(all=True):
            if partition.mountpoint == str(folder):
                return True
    return False


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what this module and the file system make."""
    for path in folder.iterdir():
        if path.name != LOST_FOUND and not path.name.startswith(f"{INSIDE}."):
            return False
    return True


def listed_files(folder: Path) -> set[Path] | None:
    """The files that a command wrote into a folder, relative to it; None without a list."""
    try:
        names = json.loads((folder / FILE_LIST).read_text(encoding="utf-8"))["files"]
        return {Path(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def present_files(folder: Path) -> Iterator[Path]:
    """The files in a folder, relative to it, without its cache and what this module makes."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        first = relative.parts[0]
        if first in (CACHE, LOST_FOUND, FILE_LIST) or first.startswith(f"{INSIDE}."):
            continue
        if path.is_symlink() or not path.is_dir():
            yield relative
