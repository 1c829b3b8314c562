"""`ovseg adapt` as a user calls it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from ovseg.adaptation.data import AdaptationDataModule
from ovseg.adaptation.methods import Adaptation
from ovseg.adaptation.task import AdaptationTask
from ovseg.core.configs import list_configs
from ovseg.core.runs import RunFolder
from support import tiny_settings

NETWORK = {"encoder_name": "tu-lcnet_035"}
LOSSES = ("ce_s", "ce_t", "adv_s", "adv_t", "d_s", "d_t")


@pytest.fixture
def settings(ceus_root) -> dict[str, Any]:
    """A configuration of `adapt`, without the source's folder."""
    made = tiny_settings(max_epochs=2, augmentation="flips")
    made["model"] = {
        "arch": "ds2net",
        "arch_args": NETWORK,
        "loss": "binary_crossentropy",
        "optimizer": "adamw",
        "optimizer_args": {"lr": 0.001},
        "scheduler": "polynomial",
    }
    made["adaptation"] = {"target_root": str(ceus_root), "channels": [4], "lr": 0.001}
    return made


@pytest.fixture
def adapt(run_command) -> Callable[..., int]:
    """A function that runs `ovseg adapt --config tiny.yaml ...` and returns its exit code."""

    def run(*arguments: object) -> int:
        return run_command("adapt", "--config", "tiny.yaml", *arguments)

    return run


@pytest.fixture
def tiny(write_config, settings, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml."""
    return write_config(settings, phantom_root)


@pytest.fixture
def run(tiny) -> RunFolder:
    """The folder of the first run there."""
    return RunFolder.first(tiny / "runs" / "tiny")


def weights(run: RunFolder, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint(name), weights_only=True)["state_dict"]


def assert_equal(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_run_is_an_ordinary_run(adapt, run, run_command, phantom_root, tmp_path, capsys):
    assert adapt("--evaluate_test", "true") == 0
    printed = capsys.readouterr().out
    assert "its masks neither trained the network nor chose the checkpoint" in printed
    for folder in ("evaluation", "evaluation_target"):
        assert (run.path / folder / "report.html").is_file()

    images = phantom_root / "test" / "images"
    infer = ["infer", "--run", run.path, "--images", images, "--output", tmp_path / "masks"]
    assert run_command(*infer) == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    assert run_command("export", "--run", run.path, "--format", "safetensors") == 0
    evaluate = ["evaluate", "--run", run.path, "--split", "valid", "--report", "minimal"]
    assert run_command(*evaluate) == 0


def test_every_loss_is_in_the_table(adapt, run):
    assert adapt() == 0
    table = pd.read_csv(run.path / "metrics.csv")
    values = table.dropna(subset="train_loss").iloc[-1]
    losses = {name: values[f"train_{name}"] for name in LOSSES}
    assert all(np.isfinite(list(losses.values())))
    # The network's loss; 0.005 is the paper's weight.
    expected = losses["ce_s"] + losses["ce_t"] + 0.005 * (losses["adv_s"] + losses["adv_t"])
    assert values["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_masks_of_the_target_are_never_read(adapt, run, tiny, ceus_root):
    """Without them, and with masks of something else, training gives the same bits."""
    assert adapt() == 0
    shutil.copytree(ceus_root, tiny / "without")
    shutil.copytree(ceus_root, tiny / "wrong")
    for split in ("train", "valid", "test"):
        shutil.rmtree(tiny / "without" / split / "masks")
        shutil.rmtree(tiny / "without" / split / "categories")
        for path in (tiny / "wrong" / split / "masks").iterdir():
            path.write_bytes(b"no picture")
    for root in ("without", "wrong"):
        assert adapt("--adaptation.target_root", tiny / root, "--runs_dir", tiny / root) == 0
        other = RunFolder.first(tiny / root / "tiny")
        for name in ("best", "last"):
            assert_equal(weights(run, name), weights(other, name))


def test_masks_that_cannot_be_scored_do_not_fail_a_training(adapt, tiny, ceus_root, capsys):
    shutil.copytree(ceus_root, tiny / "wrong")
    for path in (tiny / "wrong" / "test" / "masks").iterdir():
        path.write_bytes(b"no picture")
    command = ["--adaptation.target_root", tiny / "wrong", "--trainer.max_epochs", 1]
    assert adapt(*command, "--evaluate_test", "true") == 0
    assert "Nothing is scored on the target: " in capsys.readouterr().out


def test_folder_of_pictures_is_a_target_without_scores(adapt, run, ceus_root, capsys):
    images = ceus_root / "train" / "images"
    command = ["--adaptation.target_root", images, "--trainer.max_epochs", 1]
    assert adapt(*command, "--evaluate_test", "true") == 0
    assert "has no test images with masks, so nothing is scored" in capsys.readouterr().out
    assert not run.evaluation("target").exists()


def test_resumed_run_ends_with_the_same_bits(adapt, run, tiny):
    assert adapt("--runs_dir", "whole") == 0
    assert adapt("--trainer.max_epochs", 1, "--model.scheduler", "null") == 0
    whole = tiny / "constant"
    assert adapt("--model.scheduler", "null", "--runs_dir", whole) == 0
    last = run.checkpoint("last")
    resume = ["--model.scheduler", "null", "--ckpt_path", last]
    assert adapt(*resume, "--runs_dir", tiny / "resumed") == 0
    resumed = RunFolder.first(tiny / "resumed" / "tiny")
    expected = RunFolder.first(whole / "tiny")
    assert_equal(weights(resumed), weights(expected))
    states = []
    for each in (resumed, expected):
        checkpoint = torch.load(each.checkpoint("last"), weights_only=True)
        states.append(checkpoint["adaptation"]["state_dict"])
        # One step a batch, though there are two optimisers: 2 epochs of 4 batches.
        assert checkpoint["global_step"] == 8
    assert_equal(*states)


def test_resume_finds_the_unfinished_run(adapt, run, capsys):
    constant = ["--model.scheduler", "null"]
    assert adapt(*constant, "--trainer.max_epochs", 1) == 0
    assert adapt(*constant, "--resume") == 0
    record = (run.path.parent / "version_1" / "run.json").read_text()
    assert "ovseg adapt --config tiny.yaml" in record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--adaptation.weight", "0.1"], "was trained with adaptation.weight 0.005, not 0.1"),
        (["--adaptation.target_root", "other"], "has other images than those that"),
        (["--data.image_size", "48"], "was trained with data.image_size 32, not 48"),
    ],
)
def test_resume_with_another_adaptation_is_refused(
    change, message, adapt, run, tiny, ceus_root, capsys
):
    assert adapt("--trainer.max_epochs", 1, "--model.scheduler", "null") == 0
    shutil.copytree(ceus_root / "test" / "images", tiny / "other")
    resume = ["--ckpt_path", run.checkpoint("last"), "--model.scheduler", "null", *change]
    assert adapt(*resume) == 2
    assert message in last_line(capsys)


def test_runs_of_train_and_adapt_are_not_mixed_up(adapt, run, run_command, tiny, capsys):
    assert adapt("--trainer.max_epochs", 1) == 0
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    target = config.pop("adaptation")
    (tiny / "plain.yaml").write_text(yaml.safe_dump(config))
    train = ["train", "--config", "plain.yaml"]
    assert run_command(*train, "--ckpt_path", run.checkpoint("last")) == 2
    assert "is of `ovseg adapt`. Resume it with that command" in last_line(capsys)

    assert run_command(*train, "--model.weights", run.path, "--trainer.max_epochs", 1) == 0
    last = RunFolder.first(tiny / "runs" / "plain").checkpoint("last")
    assert adapt("--ckpt_path", last) == 2
    assert "is not of `ovseg adapt`" in last_line(capsys)
    assert target["target_root"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--trainer.precision", "16-mixed"], "Set it to bf16-mixed or 32-true"),
        (["--model.compile", "true"], "model.compile does nothing for the method ds2net"),
        (["--model.scheduler", "keras_plateau"], "Set it to null or one of: cosine, one_cycle"),
        (["--ema.decay", "0.9"], "ema.decay is for `ovseg train`"),
        (["--trainer.gradient_clip_val", "1"], "has two. Set it to null"),
        (["--trainer.accumulate_grad_batches", "2"], "has two. Set it to 1, and data.batch_size"),
        (["--adaptation.target_augmentation", "mmotu"], "mmotu cuts a window"),
        (["--adaptation.chanels", "[4]"], "there is no key adaptation.chanels"),
        (["--adaptation.method", "cycle"], "Unknown adaptation.method 'cycle'"),
        (["--adaptation.channels", "[4, 4, 4]"], "leave nothing of maps of 4 x 4"),
        (["--model.arch", "flexible_unet", "--model.arch_args", "{}"], "for model.arch ds2net"),
    ],
)
def test_settings_that_would_fail_are_refused_without_a_run(change, message, adapt, run, capsys):
    assert adapt(*change) == 2
    assert message in last_line(capsys)
    assert not run.path.exists()


def test_missing_target_is_asked_for(run_command, tiny, capsys):
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    del config["adaptation"]
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert run_command("adapt", "--config", "tiny.yaml") == 2
    assert "adaptation.target_root is not set" in last_line(capsys)


def test_adapsegnet_trains_any_network(adapt, run):
    network = "{base_filters: 2, base_kernel: 3, num_layers: 2}"
    change = ["--model.arch", "flexible_unet", "--model.arch_args", network]
    assert adapt(*change, "--adaptation.method", "adapsegnet", "--trainer.max_epochs", 1) == 0
    columns = pd.read_csv(run.path / "metrics.csv").columns
    assert {"train_ce_s", "train_adv_s", "train_d_s"} <= set(columns)
    assert "train_ce_t" not in columns


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precisions(precision, adapt, run):
    assert adapt("--trainer.precision", precision, "--trainer.max_epochs", 1) == 0
    assert run.checkpoint("best").is_file()


def test_both_optimisers_follow_the_schedule(phantom_root, ceus_root, tmp_path):
    data = AdaptationDataModule(
        str(phantom_root), image_size=32, batch_size=4, num_workers=0, cache=False
    )
    data.add_target(str(ceus_root), "none")
    task = AdaptationTask(
        arch="ds2net",
        arch_args={"encoder_name": "tu-lcnet_035"},
        optimizer_args={"lr": 0.01},
        scheduler="polynomial",
        scheduler_args={"min_lr": 0.001},
    )
    task.adapt(Adaptation(str(ceus_root), channels=[4], lr=0.1), 32)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([0.001, 0.001])  # from 0.01 and 0.1


@pytest.mark.parametrize("name", ["ds2net_pspnet", "ds2net_segformer"])
def test_shipped_configurations_have_the_papers_numbers(name):
    config = yaml.safe_load(list_configs()[name].read_text())
    adaptation = Adaptation(**config["adaptation"])
    assert adaptation.weight == 0.005
    optimizer = config["model"]["optimizer_args"]
    expected = {
        "ds2net_pspnet": ([64, 128, 256, 512], 2.5e-4, 0.01, 0.9, 5e-4),
        "ds2net_segformer": ([64, 128, 256], 1e-5, 6e-5, 1.0, 0.01),
    }
    channels, lr, encoder_lr, power, decay = expected[name]
    factor = config["model"].get("encoder_lr_factor", 1.0)
    assert (adaptation.channels, adaptation.lr) == (channels, lr)
    assert optimizer["lr"] * factor == pytest.approx(encoder_lr)
    assert optimizer["weight_decay"] == decay
    assert config["model"]["scheduler_args"]["power"] == power


@pytest.mark.parametrize(
    ("name", "encoder"), [("ds2net_pspnet", "tu-lcnet_035"), ("ds2net_segformer", "mit_b0")]
)
def test_shipped_configuration_trains(
    name, encoder, run_command, phantom_root, ceus_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = ["--model.arch_args.encoder_name", encoder, "--adaptation.channels", "[4]"]
    paths = ["--data.root", phantom_root, "--adaptation.target_root", ceus_root]
    size = ["--data.image_size", 96, "--data.num_workers", 0, "--data.cache", "false"]
    quick = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    assert run_command("adapt", "--config", name, *small, *paths, *size, *quick) == 0
    assert not list(tmp_path.iterdir())


def test_prepared_ceus_download_is_a_target(run_command, adapt, tiny, ceus_root):
    """OTU_3d: images/N.JPG, and annotations/N.PNG whose colours are no categories of OTU_2d."""
    for number, path in enumerate(sorted((ceus_root / "train" / "images").iterdir()), 1):
        mask = np.array(Image.open(ceus_root / "train" / "masks" / path.name)) > 0
        annotation = np.zeros((*mask.shape, 3), np.uint8)
        annotation[mask] = (128, 0, 0)
        for folder in ("images", "annotations"):
            (tiny / "OTU_3d" / folder).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(tiny / "OTU_3d" / "images" / f"{number}.JPG", format="JPEG")
        Image.fromarray(annotation).save(tiny / "OTU_3d" / "annotations" / f"{number}.PNG")
    (tiny / "OTU_3d" / "train.txt").write_text("1\n2\n3\n4\n5\n6\n")
    (tiny / "OTU_3d" / "val.txt").write_text("7\n8\n")
    prepare = ["prepare_data", "--source", "OTU_3d", "--kind", "ceus", "--output", "prepared"]
    options = ["--split", "official", "--size", 32, "--allow_leakage"]
    assert run_command(*prepare, *options) == 0
    assert adapt("--adaptation.target_root", "prepared", "--trainer.max_epochs", 1) == 0


TWO_PROCESSES = """
import sys
from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["adapt", *sys.argv[1:]]))
"""


@pytest.mark.timeout(300)
def test_two_processes_keep_one_network_and_its_discriminators(tiny, run):
    (tiny / "two.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "two.py", "--config", "tiny.yaml", "--trainer.max_epochs", "1"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=200)
    checkpoint = torch.load(run.checkpoint("last"), weights_only=True)
    assert checkpoint["global_step"] == 2  # 14 images, 4 a batch and process
    assert checkpoint["adaptation"]["state_dict"]
