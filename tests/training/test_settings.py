"""Mistakes on train's command line and in its files: one line with source, key and a remedy."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.training import callbacks
from ovseg.training.settings import Setting, check_values, explain_failure, read_settings
from support import REPOSITORY

KNOWN = [
    "ckpt_path",
    "model.arch",
    "model.arch_args",
    "data.root",
    "trainer.max_epochs",
    "trainer.min_epochs",
]


FILES = [
    ("model: {foo: 1}", "bad.yaml: there is no key model.foo. The command's --help lists the keys"),
    ("model: {lr: 3}", "bad.yaml: there is no key model.lr. Did you mean model.optimizer_args.lr?"),
    (
        "data: {imagesize: 128}",
        "bad.yaml: there is no key data.imagesize. Did you mean data.image_size?",
    ),
    (
        "trainer: {epochs: 3}",
        "bad.yaml: there is no key trainer.epochs. Did you mean trainer.max_epochs?",
    ),
    ("modle: {arch: smp}", "bad.yaml: there is no key modle. Did you mean model?"),
    (
        "data: {image_size: big}",
        "bad.yaml: data.image_size is big, expected a whole number. The",
    ),
    (
        "trainer: {max_epochs: many}",
        "bad.yaml: trainer.max_epochs is many, expected a whole number or null",
    ),
    ("data: {exclude: 3}", "bad.yaml: data.exclude is 3, expected a list or null"),
    (
        "trainer: {logger: 3}",
        "bad.yaml: trainer.logger is 3, which is refused: ",
    ),
    (
        "trainer: {callbacks: [{class_path: nope.X}]}",
        "bad.yaml: trainer.callbacks is [{'class_path': 'nope.X'}], which is refused: ",
    ),
    ("model: 3", "bad.yaml: the section model is 3, expected keys with values"),
    ("trainer:", "bad.yaml: the section trainer is empty, expected keys"),
    ("model:\n  arch: [1\ndata: 3", "bad.yaml line 3 is not valid YAML (expected ',' or ']'"),
    ("model: {}\nmodel: {}", "bad.yaml line 2 is not valid YAML (model is given twice)"),
    ("", "bad.yaml is empty, expected sections"),
    ("- 1", "bad.yaml holds a list, expected sections"),
    ("\0", "bad.yaml is not YAML: "),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "bad.yaml is not a text file"),
]
ARGUMENTS = [
    (["--model.foo", "1"], "command line: there is no key model.foo."),
    (["--data.imagesize=64"], "no key data.imagesize. Did you mean data.image_size?"),
    (["--data.image_size", "big"], "command line: data.image_size is big, expected a whole number"),
    (["--trainer.precision", "17"], "trainer.precision is 17, expected 64 or 32 or 16 or"),
    (["--model", "3"], "command line: the section model is 3, expected keys"),
    (["--data.image_size"], "--data.image_size has no value. Write --data.image_size VALUE"),
    (["--config"], "command line: --config has no value"),
    (["--config="], "There is no configuration file"),
    (["--config", "gone.yaml"], "There is no configuration file gone.yaml"),
    (["--config", "."], ". is a folder, expected a YAML file: tiny.yaml."),
    (["tiny.yaml"], "'tiny.yaml' is not an option, expected --KEY VALUE or --config FILE"),
    (["--seed_everything", "-4"], "seed_everything is -4, expected 0..4294967295"),
    (["--early_stopping.patience", "-1"], "early_stopping.patience is -1, expected 0 or more"),
    (["--trainer.max_steps", "0"], "trainer.max_steps is 0, so nothing would be trained"),
    (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0"),
    (["--trainer.accelerator", "abacus"], "tiny.yaml: trainer.max_epochs is 2): You selected"),
    (["--trainer.devices", "0"], "(command line: trainer.devices is 0, tiny.yaml: trainer.acc"),
    (["--trainer.devices", "many"], "(command line: trainer.devices is many"),
    (["--trainer.strategy", "dpd"], "(command line: trainer.strategy is dpd, tiny.yaml: trainer."),
    (["--trainer.max_epochs", "-5"], "(command line: trainer.max_epochs is -5, tiny.yaml: traine"),
    (["--trainer.val_check_interval", "1000"], "trainer.val_check_interval is 1000, but best"),
    (["--trainer.limit_train_batches", "0.01"], "refuses its settings (command line: trainer.lim"),
    (["--trainer.fast_dev_run", "-1"], "(command line: trainer.fast_dev_run is -1, tiny.yaml: "),
    (["--trainer.logger=WandbLogger"], "WandbLogger"),
]  # fmt: skip
NETWORKS = [
    (
        "swin_unet",
        {"image_size": 64, "filter_num_begin": 8},
        ["--data.image_size", "128"],
        "the image is 128 x 128",
    ),
    (
        "smp",
        {"architecture": "deeplabv3plus", "encoder_name": "resnet18", "encoder_weights": None},
        ["--data.batch_size", "1"],
        "A batch of one image of 32 x 32 leaves batch normalisation a single pixel. Raise",
    ),
]


def refuses(train, folder, capsys, arguments, message) -> None:
    assert train(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("content", "message"), FILES)
def test_mistake_in_a_file_names_the_file_and_the_key(tiny, capsys, content, message, train):
    (tiny / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refuses(train, tiny, capsys, ["--config", "bad.yaml"], message)


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_mistake_on_the_command_line_names_the_key(tiny, capsys, arguments, message, train):
    refuses(train, tiny, capsys, arguments, message)


@pytest.mark.parametrize(("arch", "arch_args", "arguments", "message"), NETWORKS)
def test_network_that_cannot_take_the_images_leaves_no_run(
    tiny, capsys, arch, arch_args, arguments, message, train
):
    (tiny / "net.yaml").write_text(
        yaml.safe_dump({"model": {"arch": arch, "arch_args": arch_args}})
    )
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    del config["model"]
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(config))
    refuses(train, tiny, capsys, ["--config", "net.yaml", *arguments], message)


def test_dataset_that_is_not_named_is_reported(tiny, capsys, train):
    (tiny / "tiny.yaml").write_text("model: {arch: smp}")
    refuses(
        train,
        tiny,
        capsys,
        [],
        "data.root is not set. Give a --config file that has it, or --data.root VALUE.",
    )


def test_settings_apply_in_order_and_deeper_keys_pass():
    arguments = [
        "--config",
        "{model: {arch: smp}}",
        "--model.arch_args.depth=3",
        "--data",
        "{root: a}",
        "--help",
    ]
    assert read_settings(arguments, KNOWN) == []
    settings = read_settings([*arguments[:-1], "--print_config"], KNOWN)
    assert [(s.key, s.value) for s in settings] == [
        ("model.arch", "smp"), ("model.arch_args.depth", "3"), ("data.root", "a")
    ]  # fmt: skip


def test_unreadable_file_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.yaml").touch()
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"Cannot read .*a\.yaml: Permission denied"):
        read_settings(["--config", str(tmp_path / "a.yaml")], KNOWN)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "many", "a whole number or null"),
        ("count", 1.5, "a whole number or null"),
        ("count", True, "a whole number or null"),
        ("rate", "fast", "a number"),
        ("shuffle", "maybe", "true or false"),
        ("names", "a", "a list or null"),
        ("name", 3, "text"),
        ("precision", 17, "16 or 32 or null"),
    ],
)
def test_value_of_a_wrong_type_is_named_with_what_is_expected(key, value, expected):
    setting = Setting("a.yaml", f"data.{key}", value)
    with pytest.raises(InputError, match=f"a.yaml: data.{key} is {value}, expected {expected}. "):
        check_values([setting], {"data": load})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", "3"),
        ("count", "null"),
        ("rate", "1e-4"),
        ("rate", "3"),
        ("shuffle", "false"),
        ("names", "[a, b]"),
        ("name", "3"),
        ("precision", "16"),
        ("any", "x"),
        ("gone", "x"),
    ],
)
def test_text_of_the_command_line_is_of_the_type_that_it_reads_as(key, value):
    check_values([Setting("command line", f"data.{key}", value)], {"data": load})


def load(
    count: int | None = None,
    rate: float = 0.1,
    shuffle: bool = True,
    names: list[str] | None = None,
    name: str = "",
    precision: Literal[16, 32] | None = None,
    any: Path | int = 1,
) -> None:
    """What the arguments of a section may look like."""


def test_a_bug_keeps_its_traceback_and_lack_of_memory_is_told():
    try:
        raise ZeroDivisionError("ours")
    except ZeroDivisionError as error:
        assert explain_failure(error, [], False, 32, 4) is error
    told = explain_failure(torch.OutOfMemoryError("CUDA out of memory."), [], True, 32, 4)
    assert isinstance(
        told, InputError
    ) and "data.batch_size 4 and data.image_size 32. Lower one" in str(told)


class Unreadable(Dataset):
    """A dataset whose one item is a user's mistake."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError("a.png cannot be read.\nReplace it.")


@pytest.mark.parametrize("workers", [0, 1])
def test_mistake_that_a_loader_process_finds_has_its_own_words(workers):
    try:
        list(DataLoader(Unreadable(), num_workers=workers))
    except InputError as error:
        told = explain_failure(error, [], True, 32, 4)
    assert isinstance(told, InputError)
    assert str(told) == "a.png cannot be read.\nReplace it."


def test_run_folder_with_a_checkpoint_is_never_released(tmp_path):
    folder = tmp_path / "runs" / "a"
    assert [RunFolder.claim(folder).path.name for _ in range(2)] == ["version_0", "version_1"]
    (folder / "version_0" / "checkpoints").mkdir()
    (folder / "version_0" / "checkpoints" / "last.ckpt").touch()
    (folder / "version_1" / "config.yaml").touch()
    for name in ("version_0", "version_1"):
        RunFolder(folder / name).remove_if_unused()
    assert [path.name for path in folder.iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("hook", "kept"), [("on_train_start", False), ("on_train_batch_end", True)]
)
def test_failure_keeps_its_traceback_and_from_the_first_step_on_its_folder(
    tiny, monkeypatch, hook, kept, train
):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(callbacks.EpochSnapshots, hook, fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train("--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0")
    assert (
        (tiny / "runs" / "tiny" / "version_0" / "config.yaml").exists()
        == (tiny / "runs").exists()
        == kept
    )


def test_ctrl_c_before_the_first_epoch_leaves_nothing(tiny, monkeypatch, capsys, train):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(callbacks.LineProgress, "on_sanity_check_start", stop, raising=False)
    assert train() == 130
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: stopped by Ctrl-C. No epoch is complete")
    assert not (tiny / "runs").exists()


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "pytorch_lightning":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["train.py", "--data.root", "x"]
import runpy
runpy.run_path(sys.path.pop(), run_name="__main__")
"""


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_ctrl_c_while_packages_are_imported_is_one_line(command):
    script = REPOSITORY / "scripts" / f"{command}.py"
    code = INTERRUPTED.replace("sys.path.pop()", repr(str(script)))
    if command == "evaluate":
        code = code.replace('"--data.root", "x"', '"--run", "x"')
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert (result.returncode, result.stderr) == (130, "error: stopped by Ctrl-C\n")


def test_section_of_another_command_names_that_command():
    with pytest.raises(InputError, match="the section adaptation is for `ovseg adapt`"):
        read_settings(["--adaptation.method", "ds2net"], KNOWN)


def test_every_raise_of_the_parser_names_the_help():
    with pytest.raises(InputError, match="The command's --help lists"):
        read_settings(["--datas", "3"], KNOWN)
