"""Settings, callbacks and progress bars of Lightning: they work, or are refused in a line."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.experiments.train import read_configuration
from ovseg.training.callbacks import BestCheckpoint
from support import make_data, tiny_settings

SETTINGS = tiny_settings(max_epochs=1)


@pytest.fixture
def tiny(write_config, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml."""
    return write_config(SETTINGS, phantom_root)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("limit_test_batches", "1", "trainer.limit_test_batches would do nothing"),
        ("limit_predict_batches", "0.5", "trainer.limit_predict_batches would do nothing"),
        ("val_check_interval", "0.5", "trainer.val_check_interval is 0.5"),
        ("val_check_interval", "1", "trainer.val_check_interval is 1,"),  # after every batch
    ],
)
def test_setting_that_would_do_nothing_or_be_misread_is_refused(tiny, key, value, message):
    with pytest.raises(InputError, match=message):
        read_configuration(["--config", "tiny.yaml", f"--trainer.{key}", value])


def test_validation_at_the_end_of_an_epoch_may_be_spelt_out(tiny, train):
    assert train("--trainer.val_check_interval", "1.0") == 0


@pytest.mark.parametrize("name", ["BatchSizeFinder", "LearningRateFinder"])
def test_tuner_is_refused_by_name(tiny, train, capsys, name):
    assert train("--trainer.callbacks+", name) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: trainer.callbacks has {name}")
    assert "ovseg sweep" in error
    assert not (tiny / "runs").exists()


def test_callback_that_finds_no_backbone_is_refused_in_a_line(tiny, train, capsys):
    assert train("--trainer.callbacks+", "BackboneFinetuning") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "command line: trainer.callbacks+ is BackboneFinetuning" in error
    assert "no attribute 'backbone'" in error
    assert not (tiny / "runs").exists()


def test_callback_with_an_enumeration_as_default_is_recorded(tiny, train):
    timer = ("--trainer.callbacks+", "Timer", "--trainer.callbacks.duration", "00:00:01:00")
    assert train(*timer) == 0
    config = yaml.safe_load((tiny / "runs/tiny/version_0/config.yaml").read_text())
    arguments = config["trainer"]["callbacks"][0]["init_args"]
    assert arguments == {"duration": "00:00:01:00", "interval": "step", "verbose": True}


def test_given_progress_bar_replaces_our_own(tiny, train, capsys):
    assert train("--trainer.callbacks+", "RichProgressBar") == 0
    assert "epoch 1/1" not in capsys.readouterr().err


def test_early_stopping_of_the_configuration_says_why_it_ends(tiny, train, caplog):
    stopping = ("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_dice")
    at_once = ("--trainer.callbacks.stopping_threshold", "2", "--trainer.max_epochs", "3")
    with caplog.at_level("INFO"):
        assert train(*stopping, *at_once) == 0
    assert "Stopping threshold reached: val_dice = " in caplog.text


# Values that are NaN


def write_pairs(root, save_png, lesions: dict[str, bool]) -> None:
    """Two noisy pairs a split, with a lesion or without."""
    rng = np.random.default_rng(0)
    for split, has_lesion in lesions.items():
        for stem in ("a", "b"):
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 8:20] = 255 * has_lesion
            image = rng.integers(0, 255, (32, 32, 3), np.uint8)
            save_png(root / split / "images" / f"{split}_{stem}.png", image)
            save_png(root / split / "masks" / f"{split}_{stem}.png", mask)


@pytest.fixture
def without_lesions(write_config, tmp_path, save_png, empty_figures):
    """A folder to work in, with tiny.yaml, for a dataset whose valid has no lesion."""
    write_pairs(tmp_path / "d", save_png, {"train": True, "valid": False, "test": True})
    return write_config(SETTINGS, tmp_path / "d")


def test_monitored_score_that_can_have_no_value_is_refused(without_lesions, train, capsys):
    monitors = ("--early_stopping.monitor", "val_dice", "--best_checkpoint.monitor", "val_iou")
    assert train(*monitors) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No image of valid in" in error
    assert "early_stopping.monitor val_dice, best_checkpoint.monitor val_iou has no value" in error
    assert "Set it to val_loss" in error
    assert not (without_lesions / "runs").exists()


def test_loss_is_monitored_without_a_lesion(without_lesions, train):
    assert train() == 0


def test_fold_has_the_lesions_of_the_images_that_it_holds_out(fold_root):
    data = make_data(fold_root, fold=0, cache=False)
    data.verify(("train", "valid"))
    assert data.has_lesion("valid")


@pytest.mark.parametrize("monitored", ["val_dice", "epoch"])
def test_diverged_training_ends_after_its_epoch_and_keeps_no_checkpoint(
    tiny, train, capsys, monitored
):
    diverging = ("--model.optimizer_args.lr", "1e30", "--trainer.max_epochs", "5")
    monitor = ("--early_stopping.monitor", "val_dice", "--best_checkpoint.monitor", monitored)
    assert train(*diverging, *monitor) == 2
    errors = capsys.readouterr().err
    assert "Training diverged: val_loss is nan after epoch 1" in errors
    assert "There is no checkpoint." in errors
    run = tiny / "runs" / "tiny" / "version_0"
    assert (run / "train_losses.csv").is_file()
    assert not list(run.rglob("*.ckpt"))


def test_best_checkpoint_is_never_one_of_a_nan():
    best = BestCheckpoint("val_dice")
    assert not best.check_monitor_top_k(None, torch.tensor(float("nan")))
    assert best.check_monitor_top_k(None, torch.tensor(0.0))


def test_last_epoch_can_be_the_best_one(tiny, train):
    # With so high a rate the loss rises after the first epoch.
    rising = ("--model.optimizer_args.lr", "0.5", "--trainer.max_epochs", "3")
    assert train(*rising, "--best_checkpoint.monitor", "epoch") == 0
    run = tiny / "runs" / "tiny" / "version_0"
    losses = pd.read_csv(run / "train_losses.csv")["val_loss"]
    assert losses.argmin() < 2
    best, last = (
        read_checkpoint(run / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt")
    )
    assert all(
        torch.equal(best["state_dict"][name], last["state_dict"][name])
        for name in last["state_dict"]
    )


def test_epoch_is_no_score_to_stop_by(tiny):
    with pytest.raises(InputError, match="Unknown monitor .epoch."):
        read_configuration(["--config", "tiny.yaml", "--early_stopping.monitor", "epoch"])


def test_word_that_is_no_postprocessing_is_refused_in_its_words(tiny):
    with pytest.raises(InputError, match="postprocess is 'horizontal', expected true, false, or"):
        read_configuration(["--config", "tiny.yaml", "--postprocess", "horizontal"])
