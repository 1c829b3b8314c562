"""Which code a file may name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovseg.core.errors import InputError
from ovseg.core.trust import FLAG, import_own, is_allowed, is_trusted, trusting
from support import REPOSITORY

OWN_CODE = """
from pathlib import Path

Path("canary").touch()


def square(value):
    return value**2
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch) -> Path:
    """The current folder with a module `own_code`, which writes the file `canary`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    return tmp_path


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("pytorch_lightning.callbacks.Timer", True),
        ("torch.nn.Conv2d", True),
        ("ovseg.training.callbacks.BreakTraining", True),
        ("segmentation_models_pytorch.Unet", True),
        ("torchmetrics.Metric", True),
        ("torch.load", False),
        ("torch.hub.load", False),
        ("torch.nnx.Conv2d", False),
        ("os.system", False),
        ("own_code.square", False),
        ("pytorch_lightning.callbacks.LambdaCallback", False),
        ("pytorch_lightning.callbacks.lambda_function.LambdaCallback", False),
    ],
)
def test_only_classes_of_the_libraries_are_allowed(path, allowed):
    assert is_allowed(path) == allowed


def test_code_of_ones_own_is_imported_only_when_it_is_trusted(own_code):
    with pytest.raises(InputError, match="own_code.square is code .* add --trust_config"):
        import_own("model.arch", "own_code.square")
    assert not (own_code / "canary").exists()

    with trusting(True):
        square = import_own("model.arch", "own_code.square")
    assert square(3) == 9
    assert not is_trusted()


@pytest.mark.parametrize("path", ["own_code.cube", "gone.square", "own_code..square"])
def test_code_that_is_not_there_is_an_error(own_code, path):
    with trusting(True), pytest.raises(InputError, match=f"{path} can't be imported"):
        import_own("model.arch", path)


def test_the_option_goes_with_every_command_in_both_spellings(run_command, capsys):
    for spelling in (FLAG, "--trust-config"):
        assert (
            run_command("infer", spelling, "--run", "gone", "--images", ".", "--output", "o") == 2
        )
        assert "has no option" not in capsys.readouterr().err
    assert not is_trusted()


def test_module_in_the_current_folder_shadows_none(own_code):
    for name in ("yaml", "torch", "msgspec"):
        (own_code / f"{name}.py").write_text(OWN_CODE)
    result = run_python(own_code, "-m", "ovseg", "infer", *("--run", "a", "--images", "b"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert not (own_code / "canary").exists()
