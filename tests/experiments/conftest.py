"""What the tests of trainings share: a configuration in a new folder, and quick trainings."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure


@pytest.fixture
def write_config(tmp_path, monkeypatch) -> Callable[[dict[str, Any], Path], Path]:
    """A function that writes `tiny.yaml` for a dataset into a new folder, and works there."""

    def write(settings: dict[str, Any], root: Path) -> Path:
        settings = {**settings, "data": {**settings["data"], "root": str(root)}}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return write


@pytest.fixture
def empty_figures(monkeypatch) -> None:
    """Figures are empty files: drawing takes most of the time of a tiny training."""
    monkeypatch.setattr(Figure, "savefig", _save_nothing)


@pytest.fixture(scope="session")
def train(run_command) -> Callable[..., int]:
    """A function that runs `ovseg train --config tiny.yaml ...` and returns its exit code."""

    def run(*arguments: object) -> int:
        return run_command("train", "--config", "tiny.yaml", *arguments)

    return run


def _save_nothing(figure: Figure, where: Path | io.StringIO, **options: object) -> None:
    """A file without a drawing, quickly."""
    if isinstance(where, io.StringIO):
        where.write("<svg></svg>")
    else:
        Path(where).touch()
