"""Settings, callbacks and progress bars of Lightning: they work, or are refused in a line."""

import pytest
import yaml

from ovseg.core.errors import InputError
from ovseg.experiments.train import read_configuration

SETTINGS = {
    "model": {
        "arch_args": {"base_filters": 2, "base_kernel": 3, "num_layers": 2},
        "optimizer_args": {"lr": 0.003},
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0},
    "snapshots": {"num_infer_images": 0},
    "evaluate_test": False,
}


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
