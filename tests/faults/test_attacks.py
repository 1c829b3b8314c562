"""Files that try to run code or to read other files: nothing of them runs.

Each attack would make a file `canary` in the current folder.
"""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from ovseg.core.files import write_json

CODE = """
from pathlib import Path

from pytorch_lightning import Callback

Path("canary").touch()


class Own(Callback):
    pass


def call(*arguments, **keywords):
    Path("canary").touch()
    return Own()
"""


def spec(path: str, **init_args: object) -> dict[str, object]:
    return {"class_path": path, "init_args": init_args}


TOUCH = spec("pathlib.Path.touch", self="canary")
OPEN = spec("logging.FileHandler", filename="canary")
LAMBDA = "pytorch_lightning.callbacks.LambdaCallback"
HIDDEN = "pytorch_lightning.callbacks.lambda_function.LambdaCallback"

# Key of a configuration -> a value that would run code, or read another file.
CONFIGURATIONS: list[tuple[str, object]] = [
    ("trainer.callbacks", "attack.Own"),
    ("trainer.callbacks", ["attack.Own"]),
    ("trainer.callbacks", [spec("attack.Own")]),
    ("trainer.callbacks", spec("attack.call")),
    ("trainer.callbacks", "attack.yaml"),
    ("trainer.callbacks", ["attack.yaml"]),
    ("trainer.callbacks", [OPEN]),
    ("trainer.callbacks", [spec(LAMBDA, setup="attack.call")]),
    ("trainer.callbacks", [spec(LAMBDA, on_fit_start="attack.call")]),
    ("trainer.callbacks", [spec(HIDDEN, setup="attack.call")]),
    ("trainer.callbacks", [spec("LambdaCallback", setup="attack.call")]),
    ("trainer.callbacks", [spec("LambdaCallback", setup="os.system")]),
    ("trainer.callbacks", [spec("Timer", duration=spec("attack.Own"))]),
    ("trainer.callbacks", [spec("StochasticWeightAveraging", swa_lrs=0.1, avg_fn="attack.call")]),
    ("trainer.callbacks", [spec("ovseg.core.trust.importlib.import_module", name="attack")]),
    ("trainer.logger", spec("attack.Own")),
    ("trainer.logger", [spec("CSVLogger", save_dir=spec("attack.Own"))]),
    ("trainer.plugins", [spec("attack.Own")]),
    ("trainer.profiler", spec("attack.Own")),
    ("trainer.profiler", spec("PyTorchProfiler", on_trace_ready="attack.call")),
    ("trainer.strategy", spec("attack.Own")),
    ("trainer.accelerator", spec("attack.Own")),
    ("model.arch", "attack.Own"),
    ("model.arch", spec("attack.Own")),
    ("model.arch_args", spec("attack.Own")),
    ("model.arch_args", {"base_filters": OPEN}),
    ("model.loss", "attack.call"),
    ("model.loss_args", {"false_positive_weight": spec("attack.call")}),
    ("model.optimizer_args", {"lr": spec("attack.call")}),
    ("model.scheduler_args", {"patience": OPEN}),
    ("data.exclude", [spec("attack.Own")]),
    ("data.augmentation", "attack.yaml"),
    ("data.augmentation", "albumentation.json"),
    ("config", "attack.yaml"),
    ("early_stopping", spec("attack.Own")),
    ("best_checkpoint", OPEN),
]


@pytest.fixture
def attack(work) -> Path:
    """The current folder, with the code that an attack names."""
    (work / "attack.py").write_text(CODE)
    (work / "attack.yaml").write_text(yaml.safe_dump(spec("attack.Own")))
    transform = {"__class_fullname__": "attack.Own", "transforms": []}
    write_json(work / "albumentation.json", {"__version__": "2.0.8", "transform": transform})
    return work


def refuse(attack: Path, run_command, *arguments: object) -> None:
    code = run_command(*arguments)
    assert code == 2
    assert not (attack / "canary").exists()


@pytest.mark.parametrize(("key", "value"), CONFIGURATIONS)
def test_nothing_of_a_configuration_runs(attack, run_command, monkeypatch, key, value):
    monkeypatch.syspath_prepend(attack)
    config = yaml.safe_load((attack / "tiny.yaml").read_text())
    section, _, name = key.partition(".")
    if name:
        config[section][name] = value
    else:
        config[section] = value
    (attack / "own.yaml").write_text(yaml.safe_dump(config))
    refuse(attack, run_command, "train", "--config", "own.yaml", "--runs_dir", "new")
    assert not (attack / "new").exists()


class Touch:
    """Unpickling it makes the canary."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def add_pickle(checkpoint: dict) -> None:
    checkpoint["extra"] = Touch()


def add_instantiator(checkpoint: dict) -> None:
    checkpoint["hyper_parameters"]["_instantiator"] = "attack.call"


def add_class_path(checkpoint: dict) -> None:
    checkpoint["hyper_parameters"]["arch_args"] |= spec("attack.call")


def add_class_path_to_data(checkpoint: dict) -> None:
    checkpoint["datamodule_hyper_parameters"] |= spec("attack.call")


def name_own_network(checkpoint: dict) -> None:
    checkpoint["hyper_parameters"]["arch"] = "attack.Own"


def name_own_loss(checkpoint: dict) -> None:
    checkpoint["hyper_parameters"]["loss"] = "attack.call"


def name_other_constructor(checkpoint: dict) -> None:
    checkpoint["hparams_name"] = "attack.call"


# Predictions need no loss, so only an evaluation looks at it.
CHECKPOINTS = [
    add_pickle,
    add_instantiator,
    add_class_path,
    name_own_network,
    name_other_constructor,
]


@pytest.mark.parametrize("change", [*CHECKPOINTS, name_own_loss, add_class_path_to_data])
@pytest.mark.parametrize("command", ["infer", "evaluate", "resume"])
def test_nothing_of_a_checkpoint_runs(attack, run_command, monkeypatch, command, change):
    if command == "infer" and change not in CHECKPOINTS:
        pytest.skip("infer does not use what this changes")
    if command == "resume" and change is add_class_path_to_data:
        pytest.skip("a resume takes the dataset of the configuration")
    monkeypatch.syspath_prepend(attack)
    path = attack / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    arguments = {
        "infer": ["infer", "--run", path, "--images", "one", "--output", "out"],
        "evaluate": ["evaluate", "--run", path, "--output", "out", "--device", "cpu"],
        "resume": ["train", "--config", "tiny.yaml", "--ckpt_path", path],
    }
    refuse(attack, run_command, *arguments[command])
    assert not (attack / "out").exists()


def test_plain_pickle_is_not_opened(attack, run_command):
    (attack / "old.ckpt").write_bytes(pickle.dumps(Touch()))
    options = ["--run", "old.ckpt", "--images", "one", "--output", "out"]
    refuse(attack, run_command, "infer", *options)


@pytest.mark.parametrize("member", ["/etc", "../run", "a/../../run", "link"])
def test_ensemble_reads_nothing_outside_of_its_folder(attack, run_command, member):
    (attack / "ensemble" / "link").symlink_to(attack / "run")
    write_json(attack / "ensemble" / "ensemble.json", {"members": [member]})
    options = ["--run", "ensemble", "--images", "one", "--output", "out"]
    refuse(attack, run_command, "infer", *options)


@pytest.mark.parametrize("name", ["tiny.yaml", "run/postprocessing.json", "data/manifest.json"])
def test_pipe_is_refused_and_does_not_hang(attack, run_command, name):
    (attack / name).unlink()
    os.mkfifo(attack / name)
    if name.startswith("run"):
        options = ["infer", "--run", "run", "--images", "one", "--output", "out"]
    else:
        options = ["train", "--config", "tiny.yaml"]
    refuse(attack, run_command, *options)
