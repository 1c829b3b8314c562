"""Damaged files of every kind: each command ends in one line, soon and in little memory.

By default a few of each kind. `OVSEG_FAULT_TRIALS=2000 python -m pytest -m slow tests/faults` runs
as many in all and prints what became of them.
"""

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

TRIALS = int(os.environ.get("OVSEG_FAULT_TRIALS", "200"))
SECONDS = 30  # a trial; most take less than one
BYTES = 2 * 2**30

INFER = ["infer", "--images", "one", "--output", "out", "--overwrite", "--device", "cpu"]
DICOM = ["infer", "--images", "cine.dcm", *INFER[3:], "--format", "dicomseg"]
EVALUATE = ["evaluate", "--output", "scores", "--overwrite", "--device", "cpu", "--data", "data"]
TRAIN = ["train", "--trainer.fast_dev_run", "true", "--trainer.limit_val_batches", "1"]
RESUME = ["train", "--config", "tiny.yaml", "--trainer.max_epochs", "2", "--runs_dir", "again"]
IMPORT = ["import_baseline", "--config", "experiment.config", "--output", "imported", "--overwrite"]
BEST = "run/checkpoints/best.ckpt"
PREPARE = ["prepare_data", "--output", "prepared", "--overwrite", "--size", "16"]
SPLIT = ["--source", "folders", "--allow_leakage"]
OFFICIAL = ["--source", "otu2d", "--split", "official", "--allow_leakage"]

# What is damaged, and the command that reads it.
TARGETS: dict[str, tuple[str, list[str]]] = {
    "checkpoint, infer": (BEST, [*INFER, "--run", BEST]),
    "checkpoint, evaluate": (BEST, [*EVALUATE, "--run", BEST]),
    "checkpoint, resume": (BEST, [*RESUME, "--ckpt_path", BEST]),
    "manifest": ("data/manifest.json", [*EVALUATE, "--run", BEST]),
    "manifest, fold": ("data/manifest.json", [*TRAIN, "--config", "tiny.yaml", "--data.fold", "0"]),
    "post-processing": ("run/postprocessing.json", [*INFER, "--run", "run"]),
    "ensemble": ("ensemble/ensemble.json", [*INFER, "--run", "ensemble"]),
    "configuration": ("tiny.yaml", [*TRAIN, "--config", "tiny.yaml"]),
    "baseline's configuration": ("experiment.config", IMPORT),
    "HDF5": ("weights.h5", [*IMPORT, "--weights", "weights.h5"]),
    "Keras archive": ("weights.keras", [*IMPORT, "--weights", "weights.keras"]),
    "groups": ("patients.csv", [*PREPARE, "--source", "folders", "--groups", "patients.csv"]),
    "split, CSV": ("split.csv", [*PREPARE, *SPLIT, "--split_file", "split.csv"]),
    "split, JSON": ("split.json", [*PREPARE, *SPLIT, "--split_file", "split.json"]),
    "list of a split": ("otu2d/train.txt", [*PREPARE, *OFFICIAL]),
    "names of classes": ("yolo/classes.txt", [*PREPARE, "--source", "yolo"]),
    "outlines, YOLO": ("yolo/labels/3.txt", [*PREPARE, "--source", "yolo"]),
    "outlines, COCO": ("coco/coco.json", [*PREPARE, "--source", "coco"]),
    "outlines, CVAT": ("cvat/annotations.xml", [*PREPARE, "--source", "cvat"]),
    "DICOM": ("cine.dcm", [*DICOM, "--run", BEST]),
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 3, 10**6, 10**12, 10**30, 0.5, -1e300, float("nan"), float("inf")),
    *("", "x", "x" * 5000, "../..", "\0", "\x1b[2J", "a.b"),
    *([], {}, [[[[]]]], {"class_path": "a.B"}, ["horizontal"] * 30),
]


def flip_bits(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 3, 20])):
        position = chance.randrange(len(changed))
        changed[position] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def repeat(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    end = chance.randrange(start, len(content)) + 1
    return content[:end] + content[start:]


def clear(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = chance.choice([1, 8, 64])
    return content[:start] + bytes(length) + content[start + length :]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in plain values, with each of its keys."""
    if isinstance(content, dict):
        keys: list[Any] = list(content)
    elif isinstance(content, list):
        keys = list(range(len(content)))
    else:
        return
    for key in keys:
        yield content, key
        yield from _places(content[key])


def change_value(content: Any, chance: random.Random) -> None:
    """Replace, remove or rename one value, at any depth."""
    container, key = chance.choice(list(_places(content)))
    action = chance.choice(["replace", "replace", "replace", "remove", "rename"])
    if action == "replace":
        container[key] = chance.choice(VALUES)
    elif action == "rename" and isinstance(container, dict):
        container[chance.choice(["x", "_x", "class_path", 3])] = container.pop(key)
    else:
        del container[key]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def change_values(path: Path, chance: random.Random) -> bool:
    """Change a value of a structured file; False for a file of another kind."""
    if path.suffix == ".ckpt":
        content = torch.load(path, weights_only=True)
        # Not each tensor of the optimiser: settings are what a command looks at.
        sections = [*content, "hyper_parameters", "datamodule_hyper_parameters", "loops"] * 2
        section = chance.choice(sections)
        part = {section: content[section]}
        change_value(part, chance)
        content.pop(section)
        torch.save(content | part, path)
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
        change_value(content, chance)
        path.write_text(json.dumps(content))
    elif path.suffix == ".yaml":
        content = yaml.safe_load(path.read_text())
        # Not a whole section: the default network, which is larger, would be right then.
        model = content["model"]
        sections = [content["data"], content["trainer"], *model.values()]
        change_value(chance.choice([each for each in sections if isinstance(each, dict)]), chance)
        path.write_text(yaml.safe_dump(content))
    elif path.suffix in (".csv", ".txt"):
        separator = "," if path.suffix == ".csv" else " "
        cells = [line.split(separator) for line in path.read_text().splitlines()]
        change_value(cells, chance)
        lines = [separator.join(map(str, as_list(row))) for row in cells]
        path.write_text("\n".join(lines))
    elif path.suffix == ".config":
        lines = path.read_text().splitlines()
        number = chance.randrange(len(lines))
        key = lines[number].partition("=")[0]
        lines[number] = f"{key} = {chance.choice(VALUES)!r}"
        path.write_text("\n".join(lines))
    else:
        return False
    return True


BYTEWISE: list[Callable[[bytes, random.Random], bytes]] = [flip_bits, truncate, repeat, clear]


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file in one way, whose name is returned."""
    if chance.random() < 0.6 and change_values(path, chance):
        return "value"
    way = chance.choice(BYTEWISE)
    path.write_bytes(way(path.read_bytes(), chance))
    return way.__name__


def reset_peak_memory() -> int:
    """Start counting the peak anew, where the system can; the bytes in memory now."""
    with suppress(OSError):  # not on Linux
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """The most bytes in memory since `reset_peak_memory`; where that is not known, those now."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return psutil.Process().memory_info().rss
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def run_trial(work: Path, run_command: Callable[..., int], kind: str, seed: int) -> str:
    """Damage a file, run its command and put the file back; how it ended."""
    chance = random.Random(f"{kind} {seed}")
    name, command = TARGETS[kind]
    path = work / name
    kept = path.read_bytes()
    way = damage(path, chance)
    before = reset_peak_memory()
    started = time.monotonic()
    try:
        code = run_command(*command)
    except SystemExit as error:
        pytest.fail(f"{kind} {seed} ({way}) ends with SystemExit {error.code}")
    except Exception as error:
        pytest.fail(f"{kind} {seed} ({way}) ends in {type(error).__name__}: {error}")
    finally:
        path.write_bytes(kept)
        for made in ("out", "scores", "again", "imported", "prepared", "runs", "lightning_logs"):
            shutil.rmtree(work / made, ignore_errors=True)
    seconds = time.monotonic() - started
    assert code in (0, 1, 2), f"{kind} {seed} ({way}) exits with {code}"
    assert seconds < SECONDS, f"{kind} {seed} ({way}) took {seconds:.0f} s"
    used = peak_memory() - before
    assert used < BYTES, f"{kind} {seed} ({way}): {used:,} bytes in memory"
    return f"exit {code}"


PREPARED = [kind for kind, (_, command) in TARGETS.items() if command[0] == "prepare_data"]


@pytest.mark.parametrize("kind", PREPARED)
def test_whole_file_is_accepted(work, run_command, kind):
    assert run_command(*TARGETS[kind][1]) == 0


@pytest.mark.filterwarnings("ignore")  # of the libraries that read the damaged file
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_file_ends_in_one_line(work, run_command, capsys, kind, seed):
    if run_trial(work, run_command, kind, seed) == "exit 2":
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in last


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.filterwarnings("ignore")
def test_many_damaged_files_end_in_one_line(work, run_command, capsys):
    failures = []
    ends: Counter[str] = Counter()
    for trial in range(TRIALS):
        kind = list(TARGETS)[trial % len(TARGETS)]
        try:
            ends[run_trial(work, run_command, kind, 1000 + trial)] += 1
        except (AssertionError, pytest.fail.Exception) as error:
            failures.append(str(error))
        capsys.readouterr()
    peak = peak_memory() / 2**30
    with capsys.disabled():
        print(f"\n{TRIALS} damaged files: {dict(ends)}, at most {peak:.2f} GB")
    assert not failures, "\n".join(failures)
