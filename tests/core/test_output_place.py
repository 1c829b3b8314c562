"""An output folder is the old one or the new one, whole, and nobody else's file is deleted."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ovseg.core import output_place
from ovseg.core.errors import InputError, WriteError
from ovseg.core.files import atomic_dir
from ovseg.core.output_place import FILE_LIST, exchange_folders, listed_files

exchange_or_rename = pytest.mark.parametrize("exchange", [True, False])


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def choose_system(request, monkeypatch):
    """Let a test with `exchange=False` run as on a system that can't exchange folders."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("exchange") is False:
        monkeypatch.setattr(output_place, "exchange_folders", lambda first, second: False)


def write(output: Path, names: list[str], text: str, **options) -> None:
    with atomic_dir(output, marker="marker", **options) as folder:
        for name in ["marker", *names]:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """The text of every file, without the list of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != FILE_LIST:
            found[str(path.relative_to(folder))] = path.read_text()
    return found


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_folder_lists_its_files(output):
    write(output, ["sub/a"], "new")
    assert listed_files(output) == {Path("marker"), Path("sub/a")}
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@exchange_or_rename
def test_overwrite_replaces_all_files(output, exchange):
    write(output, ["a", "b"], "old")
    write(output, ["b", "c"], "new", overwrite=True)
    assert contents(output) == {"marker": "new", "b": "new", "c": "new"}
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_file_of_others_is_not_overwritten(output):
    write(output, ["a"], "old")
    (output / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds 1 files that this command did not .*notes.txt"):
        write(output, ["a"], "new", overwrite=True)
    assert contents(output) == {"marker": "old", "a": "old", "notes.txt": "mine"}


@exchange_or_rename
def test_file_that_others_write_meanwhile_is_kept(output, exchange, capsys):
    write(output, ["a"], "old")
    with atomic_dir(output, overwrite=True, marker="marker") as folder:
        for name in ("marker", "clash"):
            (folder / name).write_text("new")
        (output / "sub").mkdir()
        for name in ("sub/notes.txt", "clash"):
            (output / name).write_text("mine")
    assert contents(output) == {
        "marker": "new",
        "clash": "new",
        "clash.kept": "mine",
        "sub/notes.txt": "mine",
    }
    assert "notes.txt: not written by this command, so it was kept" in capsys.readouterr().err


def test_folder_that_appears_meanwhile_is_kept(output):
    with atomic_dir(output) as folder:
        (folder / "a").write_text("new")
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    assert contents(output) == {"a": "new", "notes.txt": "mine"}


def test_cache_of_a_dataset_is_no_file_of_others(output):
    write(output, [], "old")
    (output / ".cache").mkdir()
    (output / ".cache" / "train.npy").write_text("cache")
    write(output, [], "new", overwrite=True)
    assert contents(output) == {"marker": "new"}


def test_folder_of_an_earlier_version_is_not_replaced(output):
    output.mkdir()
    (output / "marker").touch()
    with pytest.raises(InputError, match=f"has no {FILE_LIST}.*Remove the folder yourself"):
        write(output, [], "new", overwrite=True)


def test_two_processes_do_not_write_one_folder(output):
    code = """
        import sys
        from ovseg.core.files import atomic_dir
        with atomic_dir(sys.argv[1]):
            pass
    """
    with atomic_dir(output) as folder:
        (folder / "a").write_text("new")
        other = run_python(code, output)
    assert "InputError: Another process is writing" in other.stderr
    assert contents(output) == {"a": "new"}
    assert run_python(code, output.parent / "other").returncode == 0


KILLED = """
    import os, signal, sys
    from ovseg.core import output_place
    from ovseg.core.files import atomic_dir

    def kill(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    place = output_place.OutputPlace
    moment = sys.argv[2]
    if moment == "exchanged":
        place._retire = kill
    if moment == "between":
        output_place.exchange_folders = lambda first, second: False
        rename = os.rename
        os.rename = lambda first, second: (rename(first, second), kill())
    if moment == "listed":
        place._exchange = kill
    with atomic_dir(sys.argv[1], overwrite=True, marker="marker") as folder:
        (folder / "marker").write_text("new")
        if moment == "writing":
            kill()
"""


@pytest.mark.parametrize("moment", ["writing", "listed", "between", "exchanged"])
def test_kill_leaves_the_old_or_the_new_folder_and_the_next_run_tidies(output, moment):
    write(output, [], "old")
    killed = run_python(KILLED, output, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if moment != "between":  # on a system that can't exchange folders the next run puts it back
        assert contents(output)["marker"] in ("old", "new")
    with pytest.raises(InputError, match="already exists"):
        write(output, [], "newest")
    expected = "new" if moment == "exchanged" else "old"
    assert contents(output) == {"marker": expected}
    write(output, [], "newest", overwrite=True)
    assert contents(output) == {"marker": "newest"}
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_interrupted_work_is_continued_only_if_it_is_the_same(output):
    with pytest.raises(KeyboardInterrupt), atomic_dir(output, work="one") as folder:
        (folder / "a").write_text("done")
        (folder / ".b.123.tmp").write_text("half")
        raise KeyboardInterrupt
    assert not output.exists()
    with atomic_dir(output.with_name("other"), work="one") as folder:
        assert contents(folder) == {".ovseg_work": "one"}
    with pytest.raises(WriteError), atomic_dir(output, work="one") as folder:
        assert contents(folder) == {".ovseg_work": "one", "a": "done"}
        raise WriteError("full")
    with atomic_dir(output, work="two") as folder:
        assert not (folder / "a").exists()
    assert contents(output) == {}


def test_mistake_leaves_no_work(output):
    with pytest.raises(InputError), atomic_dir(output, work="one"):
        raise InputError("a mistake")
    assert list(output.parent.iterdir()) == []


@pytest.fixture
def volume(output, monkeypatch) -> Path:
    """An empty folder that the system refuses to rename, as it does a mount point."""
    output.mkdir()
    (output / "lost+found").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)
    rename = os.rename

    def refuse(source, target):
        if output in (Path(source), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    return output


def test_mount_point_is_written_inside(volume):
    write(volume, ["sub/a", "b"], "old")
    assert contents(volume) == {"marker": "old", "sub/a": "old", "b": "old"}
    write(volume, ["sub/c"], "new", overwrite=True)
    assert contents(volume) == {"marker": "new", "sub/c": "new"}
    assert [path.name for path in volume.parent.iterdir()] == ["out"]
    assert not [path for path in volume.iterdir() if path.name.startswith(".ovseg.")]


def test_kill_while_files_are_moved_into_a_mount_point_is_completed(volume, monkeypatch):
    write(volume, ["a", "b"], "old")
    replace = os.replace

    def die(source, target):
        if Path(target).name == "b":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write(volume, ["a", "b"], "new", overwrite=True)
    with pytest.raises(InputError, match="already exists"):
        write(volume, [], "newest")
    assert contents(volume) == {"marker": "new", "a": "new", "b": "new"}


def test_system_without_exchange_is_told_from_an_error(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError):
        exchange_folders(tmp_path / "one", tmp_path / "gone")
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: object())
    assert not exchange_folders(tmp_path / "one", tmp_path / "two")


def test_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write .*Choose another --output"):
        write(tmp_path / "file" / "out", [], "new")
