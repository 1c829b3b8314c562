"""A command line and a configuration for the tests of training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def train(run_command) -> Callable[..., int]:
    """A function that runs `ovseg train --config tiny.yaml ...` and returns the exit code."""

    def run(*arguments: object) -> int:
        return run_command("train", "--config", "tiny.yaml", *arguments)

    return run


@pytest.fixture
def tiny(tmp_path, phantom_root, monkeypatch) -> Path:
    """A folder to work in, with tiny.yaml, which trains two epochs."""
    arch_args = {"base_filters": 2, "base_kernel": 3, "num_layers": 3}
    settings = {
        "model": {"arch": "flexible_unet", "arch_args": arch_args},
        "trainer": {"accelerator": "cpu", "max_epochs": 2},
    }
    settings["data"] = {
        "root": str(phantom_root),
        "image_size": 32,
        "batch_size": 4,
        "num_workers": 0,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path
