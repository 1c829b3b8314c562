"""A training that is killed, or finds the disk full, loses nothing but the epoch it was in."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ovseg.core.checkpoints import epochs_done
from ovseg.core.runs import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

EPOCHS = 4
OTHER_FILE_SYSTEM = Path("/dev/shm")


@pytest.fixture(scope="module")
def settings(phantom_root) -> dict:
    """A training of four epochs with augmentation and a snapshot."""
    return {
        "model": {
            "arch": "flexible_unet",
            "arch_args": {"base_filters": 4, "base_kernel": 3, "num_layers": 3},
        },
        "data": {
            "root": str(phantom_root),
            "image_size": 32,
            "batch_size": 4,
            "augmentation": "standard",
        },
        "trainer": {"accelerator": "cpu", "max_epochs": EPOCHS},
        "snapshots": {"num_infer_images": 1},
        "evaluate_test": False,
    }


@pytest.fixture(scope="module", params=[0, 2], ids=["no_workers", "two_workers"])
def undisturbed(request, settings, call, tmp_path_factory) -> tuple[Path, float]:
    """A folder with tiny.yaml and an undisturbed run in `whole`, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings["data"]["num_workers"] = request.param
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    result = call(folder, "train", "--config", "tiny.yaml", "--runs_dir", "whole")
    assert result.code == 0, result.printed
    return folder, result.seconds


def weights(run: RunFolder, name: str) -> dict:
    return torch.load(run.checkpoint(name), weights_only=True)["state_dict"]


def check_checkpoints(parent: Path) -> None:
    """All checkpoints of all runs can be read."""
    for run in RunFolder.list_versions(parent):
        for path in run.checkpoints.glob("[!.]*.ckpt"):
            torch.load(path, weights_only=True)


@pytest.mark.parametrize("temporary", ["here", "elsewhere"])
def test_killed_and_resumed_training_equals_the_undisturbed_one(
    undisturbed, call, draw, trials, temporary, tmp_path
):
    folder, seconds = undisturbed
    if temporary == "elsewhere" and not OTHER_FILE_SYSTEM.is_dir():
        pytest.skip("needs another file system")
    scratch = tmp_path
    if temporary == "elsewhere":
        scratch = OTHER_FILE_SYSTEM / f"ovseg_{tmp_path.name}"
        scratch.mkdir(exist_ok=True)

    whole = RunFolder(folder / "whole" / "tiny" / "version_0")
    kills = 0
    for trial in range(trials):
        runs = folder / f"{temporary}_{trial}"
        last = None
        # A training that was killed after its last checkpoint has nothing left to do.
        while last is None or epochs_done(torch.load(last, weights_only=True)) < EPOCHS:
            resume = ["--ckpt_path", last] if last else []
            after = draw.uniform(0.1, 1.1) * seconds
            result = call(
                folder,
                *("train", "--config", "tiny.yaml", "--runs_dir", runs, *resume),
                kill_after=after,
                temporary=scratch,
            )
            check_checkpoints(runs / "tiny")
            for run in RunFolder.list_versions(runs / "tiny"):
                if run.checkpoint("last").is_file():
                    last = run.checkpoint("last")
            if result.code == 0:
                break
            assert result.code == -9, result.printed
            kills += 1
        finished = RunFolder.of_checkpoint(last)
        for name in ("last", "best"):
            expected = weights(whole, name)
            found = weights(finished, name)
            assert all(torch.equal(found[key], expected[key]) for key in expected), (trial, name)
        for kind in ("losses", "metrics"):
            path = finished.curves(kind, ".csv")
            curves = path.read_text() if path.is_file() else ""
            expected_curves = whole.curves(kind, ".csv").read_text()
            assert expected_curves.startswith(curves)
            assert curves == expected_curves or result.code == -9
        shutil.rmtree(runs)
    if temporary == "elsewhere":
        shutil.rmtree(scratch)
    print(f"\n{trials} trainings, {kills} kills, TMPDIR {temporary}: all equal.")


def test_full_disk_leaves_whole_checkpoints_and_one_line(undisturbed, call, draw, trials, digests):
    folder, _ = undisturbed
    size = (folder / "whole/tiny/version_0/checkpoints/last.ckpt").stat().st_size
    ended = 0
    for trial in range(trials):
        runs = folder / f"full_{trial}"
        # A batch of workers lies in shared memory, which counts as a file of 16 KiB here.
        limit = 20_000 + int(draw.uniform(0, 1.3) * size)
        result = call(
            folder, "train", "--config", "tiny.yaml", "--runs_dir", runs, file_limit=limit
        )
        assert "Traceback" not in result.printed, result.printed
        check_checkpoints(runs / "tiny")
        if result.code != 0:
            assert result.code == 2, result.printed
            assert len(result.errors) == 1, result.printed
            assert "File too large" in result.errors[0]
            ended += 1
        shutil.rmtree(runs, ignore_errors=True)
    print(f"\n{trials} trainings with limits of file size, {ended} ended by them in one line.")
