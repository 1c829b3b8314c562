"""`ovseg infer --devices`: processes that share the pictures of one output folder."""

import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg.core.errors import InputError, WriteError
from ovseg.core.files import write_image
from ovseg.inference import folder as folder_module
from ovseg.inference.folder import infer_folder

pytestmark = pytest.mark.skipif(
    (os.cpu_count() or 1) < 2, reason="a core for each of two processes is needed"
)


@pytest.fixture
def read_files() -> Callable[[Path], dict[str, bytes]]:
    """A function that reads all files of a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
        return found

    return read


def test_two_processes_continue_and_write_what_one_writes(
    run, images, tmp_path, run_command, capsys, monkeypatch, read_files
):
    folder = shutil.copytree(images, tmp_path / "in")
    for name in ("e.png", "f.png"):
        (folder / name).touch()
    command = ["infer", "--run", run, "--images", folder, "--device", "cpu", "--batch_size", "1"]
    command += ["--overlays", "--probabilities", "--tiles", "0.25"]
    assert run_command(*command, "--output", tmp_path / "one") == 1
    lines_of_one = capsys.readouterr().err

    written = []

    def fill_disk_at_the_fourth(path, image):
        written.append(path)
        if len(written) > 3:  # of the three files of each picture
            raise WriteError(f"Cannot write {path}: No space left on device.")
        write_image(path, image)

    monkeypatch.setattr(folder_module, "write_image", fill_disk_at_the_fourth)
    output = tmp_path / "two"
    assert run_command(*command, "--output", output) == 2
    monkeypatch.undo()
    capsys.readouterr()

    assert run_command(*command, "--output", output, "--devices", "2") == 1
    printed = capsys.readouterr()
    assert "Continuing: 1 of 6 masks were written before." in printed.out
    assert "4 masks (0 and 255) written" in printed.out
    assert printed.err == lines_of_one
    assert read_files(output) == read_files(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "one", "two"]


def test_killed_process_is_one_line_and_the_masks_so_far_are_kept(
    run, images, tmp_path, run_command, capsys
):
    killed = []

    def kill_a_process():
        while not killed:
            for process in multiprocessing.active_children():
                process.kill()
                killed.append(process)
                break
            time.sleep(0.01)

    killer = threading.Thread(target=kill_a_process)
    killer.start()
    command = ["infer", "--run", run, "--images", images, "--batch_size", "1", "--device", "cpu"]
    assert run_command(*command, "--output", tmp_path / "out", "--devices", "2") == 2
    killer.join()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.match(r"error: Process [12] of 2 \(cpu\) was killed, as a system does", lines[0])
    assert lines[0].endswith(" The same command continues with the masks that are written.")
    assert (tmp_path / ".out.partial").is_dir()
    assert not (tmp_path / "out").exists()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "--devices is 0, expected at least 1"),
        ({"devices": 10_000}, "--devices is 10000, but this machine has .* cores. Give a smaller"),
        ({"device": "cpu:0"}, "--device cpu:0 is one device, but --devices asks for 2"),
        ({"device": "quantum"}, "Device 'quantum' cannot be used"),
        ({"engine": "auto"}, "--engine auto times engines while nothing else computes"),
    ],
)
def test_devices_that_cannot_be_are_an_error_before_work_starts(
    run, images, tmp_path, options, message
):
    settings = {"devices": 2, "device": "cpu", **options}
    with pytest.raises(InputError, match=message):
        infer_folder(run, images, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []
