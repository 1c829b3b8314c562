"""The record of a run, and the run that `--resume` finds with it."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ovseg import __version__
from ovseg.core.files import file_digest
from ovseg.core.runs import RunFolder
from ovseg.data.cache import pairs_digest
from ovseg.experiments.run_record import find_unfinished, read_git_state
from support import make_data, tiny_settings

SETTINGS = tiny_settings(max_epochs=2)
RUNS = Path("runs/tiny")
OF_A_DEAD_PROCESS = {"id": os.getpid(), "started": 0.0}


@pytest.fixture
def tiny(write_config, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml."""
    return write_config(SETTINGS, phantom_root)


def record_of(number: int) -> dict:
    return json.loads((RUNS / f"version_{number}" / "run.json").read_text())


def end_process(number: int, **changes) -> None:
    """Let the record of a run, which this living process wrote, be that of a dead one."""
    content = {**record_of(number), "process": OF_A_DEAD_PROCESS, **changes}
    (RUNS / f"version_{number}" / "run.json").write_text(json.dumps(content))


# The record


def test_record_tells_what_a_run_was_made_by_and_from(tiny, train, phantom_root):
    assert train("--trainer.max_epochs", 1) == 0
    record = record_of(0)
    assert record["command"] == "ovseg train --config tiny.yaml --trainer.max_epochs 1"
    assert record["folder"] == str(tiny)
    assert record["resumed_from"] is None
    assert record["weights"] is None
    assert record["versions"]["ovseg"] == __version__
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["host"]["name"] == os.uname().nodename
    assert record["process"]["started"] == psutil.Process().create_time()
    data = make_data(phantom_root)
    assert record["data"]["root"] == str(phantom_root.resolve())
    assert record["data"]["sha256"] == {
        split: pairs_digest(data.pairs(split)) for split in ("train", "valid", "test")
    }


def test_record_names_the_weights_and_the_resumed_checkpoint(tiny, train):
    assert train("--trainer.max_epochs", 1) == 0
    last = RunFolder(RUNS / "version_0").checkpoint("last")
    assert train("--model.weights", RUNS / "version_0", "--trainer.max_epochs", 1) == 0
    best = RunFolder(RUNS / "version_0").checkpoint("best")
    assert record_of(1)["weights"] == {"path": str(best.resolve()), "sha256": file_digest(best)}
    assert train("--ckpt_path", last) == 0
    assert record_of(2)["resumed_from"] == str(last.resolve())


def test_git_state_is_the_commit_and_whether_files_were_changed(tmp_path):
    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *author, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True
        ).stdout.decode()

    assert read_git_state(tmp_path) is None
    git("init")
    assert read_git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    (tmp_path / "untracked").touch()
    commit = git("rev-parse", "HEAD").strip()
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": True}


# --resume


def test_resume_starts_a_new_run_where_there_is_none(tiny, train, caplog):
    with caplog.at_level("INFO"):
        assert train("--resume") == 0
    assert f"There is no unfinished run in {RUNS}, so a new one starts." in caplog.text
    assert "resume:" not in (RUNS / "version_0" / "config.yaml").read_text()


def test_resume_continues_the_unfinished_run_and_then_nothing(tiny, train, caplog):
    assert train("--trainer.max_epochs", 1) == 0
    end_process(0)
    with caplog.at_level("INFO"):
        assert train("--resume") == 0
    last = RunFolder(RUNS / "version_0").checkpoint("last")
    assert f"Resuming {RUNS / 'version_0'} from {last}, 1 epochs are done." in caplog.text
    checkpoint = torch.load(RunFolder(RUNS / "version_1").checkpoint("last"), weights_only=True)
    assert checkpoint["epoch"] == 1
    end_process(1)
    # version_0 is unfinished still, but version_1 has continued it.
    assert train("--resume") == 0
    assert record_of(2)["resumed_from"] is None


def test_resume_and_a_checkpoint_exclude_each_other(tiny, train, capsys):
    assert train("--resume", "--ckpt_path", "a.ckpt") == 2
    assert "--resume looks for a checkpoint, but --ckpt_path is a.ckpt" in capsys.readouterr().err


def test_other_commands_refuse_resume(tiny, run_command, capsys):
    assert run_command("cross_validate", "--config", "tiny.yaml", "--resume") == 2
    assert "--resume is an option of `ovseg train` alone" in capsys.readouterr().err


@pytest.fixture
def config():
    """What is asked of a configuration."""
    return SimpleNamespace(
        trainer={"max_epochs": 2, "min_epochs": None, "max_steps": -1},
        early_stopping=SimpleNamespace(patience=10),
    )


def test_run_that_still_trains_is_left_alone(tiny, train, config):
    assert train("--trainer.max_epochs", 1) == 0
    assert find_unfinished(RUNS, config, is_first_process=True) is None
    end_process(0)
    last = RunFolder(RUNS / "version_0").checkpoint("last")
    assert find_unfinished(RUNS, config, is_first_process=True) == last


def test_other_processes_find_what_the_first_one_found(tiny, train, config):
    """The first has made the folder of the new run by then, which has no checkpoint yet."""
    assert train("--trainer.max_epochs", 1) == 0
    end_process(0)
    last = RunFolder(RUNS / "version_0").checkpoint("last")
    (RUNS / "version_1").mkdir()
    record = {**record_of(0), "resumed_from": str(last.resolve())}
    record["process"] = {"id": os.getpid(), "started": psutil.Process().create_time()}
    (RUNS / "version_1" / "run.json").write_text(json.dumps(record))
    assert find_unfinished(RUNS, config, is_first_process=False) == last
    assert find_unfinished(RUNS, config, is_first_process=True) is None


@pytest.mark.parametrize("content", ["", "[]", '{"host": 3}'])
def test_unreadable_record_does_not_matter(tiny, train, config, content):
    assert train("--trainer.max_epochs", 1) == 0
    (RUNS / "version_0" / "run.json").write_text(content)
    last = RunFolder(RUNS / "version_0").checkpoint("last")
    assert find_unfinished(RUNS, config, is_first_process=True) == last
