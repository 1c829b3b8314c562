"""A command that is killed, or finds the disk full, leaves the old output or the new one, whole."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.output_place import FILE_LIST, listed_files, present_files
from ovseg.data.prepare.phantoms import make_phantom, write_phantoms

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Command line -> the options by which the second output differs from the first.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "infer": (["infer", "--run", "run", "--images", "images", "--device", "cpu"], ["--overlays"]),
    "evaluate": (["evaluate", "--run", "run", "--device", "cpu"], ["--split", "valid"]),
    "export": (["export", "--run", "run"], []),
    "make_phantoms": (["make_phantoms", "--count", "40", "--size", "96"], ["--seed", "1"]),
    "prepare_data": (["prepare_data", "--source", "download", "--size", "64"], ["--seed", "1"]),
    "audit_data": (["audit_data", "--data", "data"], ["--mask_threshold", "100"]),
    "compare": (
        ["compare", "--runs", "theirs", "ours", "--masks", "masks"],
        ["--mask_threshold", "100"],
    ),
}
# Files in which times or the folder's own name make a difference.
VARYING = (
    *(FILE_LIST, "model.onnx", "audit.html", "summary.json", "audit.json"),
    "per_image.csv",  # with the seconds of each image
)
LOG_BYTES = 600  # more than a command prints until it fails


@pytest.fixture(scope="module")
def place(make_run, tmp_path_factory) -> Path:
    """A folder with a run, a dataset, a download and pictures."""
    folder = tmp_path_factory.mktemp("place")
    write_phantoms(folder / "data", 20, size=64, seed=3)
    make_run(folder / "run", folder / "data")
    for name in ("images", "theirs", "ours", "masks", "download/images", "download/annotations"):
        (folder / name).mkdir(parents=True)
    for number in range(24):
        image, mask = make_phantom(number, 96)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        color = [(64, 0, 0), (0, 64, 0)][number % 2]
        # Phantoms look so much alike that they would be one group.
        blots = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "download/images" / f"{number}.JPG"), cv2.resize(blots, (96, 96)))
        annotation = Image.fromarray(mask[..., None] * np.uint8(color))
        annotation.save(folder / "download" / "annotations" / f"{number}.PNG")
        for name in ("theirs", "ours", "masks"):
            shifted = np.roll(mask, len(name), axis=0) * np.uint8(255)
            cv2.imwrite(str(folder / name / f"{number}.png"), shifted)
    return folder


@pytest.fixture(scope="module")
def make(place, call) -> Callable:
    """A function that runs a command of `COMMANDS` and makes `output`."""

    def run(name: str, output: Path, second: bool, *options: str, **faults):
        arguments, difference = COMMANDS[name]
        more = difference if second else []
        return call(place, *arguments, *more, "--output", output, *options, **faults)

    return run


@pytest.fixture(params=list(COMMANDS))
def outputs(request, make, tmp_path) -> tuple[str, Path, Path, float]:
    """A command, its first and second output, and the seconds that it takes."""
    if request.param == "export":
        pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    first = tmp_path / "first"
    second = tmp_path / "second"
    for path in (first, second):
        result = make(request.param, path, path == second)
        assert result.code == 0, result.printed
    return request.param, first, second, result.seconds


def comparable(found: dict[str, str]) -> dict[str, str]:
    """Digests of files; of the varying ones only that they are there."""
    return {path: "" if Path(path).name in VARYING else digest for path, digest in found.items()}


def check_whole(output: Path, first: Path, second: Path, digests) -> None:
    """The output is the first or the second, with all files and no other."""
    assert listed_files(output) == set(present_files(output))
    found = comparable(digests(output))
    different = []
    for whole in (first, second):
        expected = comparable(digests(whole))
        different.append(sorted(dict(found.items() ^ expected.items())))
    assert [] in different


def test_kill_leaves_the_old_or_the_new_output(outputs, make, draw, trials, digests, tmp_path):
    name, first, second, seconds = outputs
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "letter.txt").write_text("mine")
    output = parent / "out"
    killed = 0
    for _ in range(trials):
        shutil.rmtree(output, ignore_errors=True)
        has_old = draw.random() < 0.7
        if has_old:
            shutil.copytree(first, output)
        share = draw.choice([draw.uniform(0, 1), draw.uniform(0.85, 1.05)])
        result = make(name, output, True, "--overwrite", kill_after=share * seconds)
        killed += result.code == -9
        if has_old or output.exists():
            check_whole(output, first, second, digests)
        if has_old and output.exists():
            (output / "notes.txt").write_text("mine")
            refused = make(name, output, True, "--overwrite")
            assert refused.code == 2, refused.printed
            (output / "notes.txt").unlink()
        again = make(name, output, True, "--overwrite")
        assert again.code == 0, again.printed
        check_whole(output, second, second, digests)
        assert sorted(path.name for path in parent.iterdir()) == ["letter.txt", "out"]
    print(f"\n{name}: {trials} trials, {killed} killed: old or new, whole, and a rerun works.")


def test_full_disk_keeps_the_old_output(outputs, make, draw, trials, digests, tmp_path):
    name, first, second, _ = outputs
    output = tmp_path / "parent" / "out"
    output.parent.mkdir()
    sizes = [path.stat().st_size for path in second.rglob("*") if path.is_file()]
    ended = 0
    for _ in range(trials):
        shutil.rmtree(output.parent)
        shutil.copytree(first, output)
        # What the command prints goes to a file too, which must hold the error.
        limit = max(LOG_BYTES, int(draw.uniform(0.01, 1.0) * max(sizes)))
        result = make(name, output, True, "--overwrite", file_limit=limit)
        assert "Traceback" not in result.printed, result.printed
        if result.code == 0:
            check_whole(output, second, second, digests)
            continue
        ended += 1
        assert result.code == 2, result.printed
        assert len(result.errors) == 1, result.printed
        check_whole(output, first, first, digests)
        assert make(name, output, True, "--overwrite").code == 0
    print(f"\n{name}: {trials} limits of file size, {ended} ended by them: old output whole.")


@pytest.fixture
def small_volume(tmp_path) -> Path:
    """A mounted file system of 200 KiB, which only root can make."""
    folder = tmp_path / "volume"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_volume_takes_an_output_and_a_full_one_is_one_line(make, small_volume, digests, tmp_path):
    result = make("infer", small_volume, False)
    assert result.code == 0, result.printed
    assert make("infer", tmp_path / "out", False).code == 0
    check_whole(small_volume, tmp_path / "out", tmp_path / "out", digests)
    full = make("infer", small_volume, True, "--overwrite", "--probabilities")
    assert full.code == 2
    assert "No space left on device" in full.errors[0]
    assert len(full.errors) == 1
    assert "Traceback" not in full.printed
