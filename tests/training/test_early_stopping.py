"""How early stopping ends a training, and whether a checkpoint is of one that it had ended."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping as LightningEarlyStopping
from pytorch_lightning.trainer.states import TrainerFn

from ovseg.training.callbacks import ExplainedEarlyStopping, stopped_early

NOT_STOPPED = 0
BY_THRESHOLD = 1
OUT_OF_PATIENCE = 3


def a_checkpoint(epochs: int, wait_count: int, stopped_epoch: int, reason: int) -> dict:
    """What the functions read of the checkpoint of a training with a patience of 3."""
    state = {
        "wait_count": wait_count,
        "patience": 3,
        "stopped_epoch": stopped_epoch,
        "best_score": torch.tensor(0.5),
        "stopping_reason": reason,
    }
    return {
        "callbacks": {"EarlyStopping{'monitor': 'val_loss'}": state},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}},
    }


@pytest.mark.parametrize(
    ("epochs", "wait_count", "stopped_epoch", "reason", "expected"),
    [
        (4, 1, 0, NOT_STOPPED, False),
        (4, 3, 3, OUT_OF_PATIENCE, True),
        (4, 0, 3, BY_THRESHOLD, True),
        (1, 0, 0, NOT_STOPPED, False),
        (1, 0, 0, BY_THRESHOLD, True),
        (6, 0, 3, BY_THRESHOLD, False),  # resumed since
    ],
)
def test_training_was_stopped_by_its_patience_or_in_its_last_epoch(
    epochs, wait_count, stopped_epoch, reason, expected
):
    checkpoint = a_checkpoint(epochs, wait_count, stopped_epoch, reason)
    assert stopped_early(checkpoint) == expected


def test_higher_patience_would_not_have_ended_a_training():
    checkpoint = a_checkpoint(4, 3, 3, OUT_OF_PATIENCE)
    assert not stopped_early(checkpoint, patience=4)
    assert stopped_early(checkpoint, patience=2)


def a_trainer(**logged: float) -> SimpleNamespace:
    """What the callback asks a Trainer that has logged some values in its third epoch."""
    return SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in logged.items()},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        sanity_checking=False,
        fast_dev_run=False,
        should_stop=False,
        current_epoch=2,
        val_check_interval=1.0,
        check_val_every_n_epoch=1,
    )


def start(callback: ExplainedEarlyStopping, trainer: SimpleNamespace) -> None:
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)


def test_epoch_without_a_score_is_not_counted(caplog):
    stopping = ExplainedEarlyStopping("val_dice", mode="max", patience=1)
    trainer = a_trainer(val_dice=float("nan"))
    start(stopping, trainer)
    stopping.on_train_epoch_end(trainer, None)
    assert not trainer.should_stop
    assert stopping.wait_count == 0


def test_reason_of_an_early_stop_is_printed(caplog):
    stopping = ExplainedEarlyStopping("val_loss", patience=1)
    trainer = a_trainer(val_loss=0.5)
    start(stopping, trainer)
    with caplog.at_level("INFO"):
        for _ in range(2):
            stopping.on_train_epoch_end(trainer, None)
        stopping.on_train_end(trainer, None)
    assert trainer.should_stop
    reason = "Monitored metric val_loss did not improve in the last 1 records. Best score: 0.500."
    assert f"Early stopping in epoch 3: {reason}" in caplog.text


@pytest.mark.parametrize(("patience", "stops"), [(3, True), (4, False)])
def test_resumed_training_has_the_patience_of_its_configuration(patience, stops):
    """With 3 it had only gone on to reach min_epochs."""
    state = a_checkpoint(4, 3, 3, OUT_OF_PATIENCE)["callbacks"].popitem()[1]
    stopping = ExplainedEarlyStopping("val_loss", patience=patience)
    stopping.load_state_dict(state)
    trainer = a_trainer(val_loss=0.6)
    start(stopping, trainer)
    assert trainer.should_stop == stops
    stopping.on_train_epoch_end(trainer, None)
    assert stopping.wait_count == 4
    assert trainer.should_stop


def test_checkpoints_hold_the_state_under_the_name_of_lightning_s_class():
    key = LightningEarlyStopping("val_loss", mode="min").state_key
    assert ExplainedEarlyStopping("val_loss", mode="min").state_key == key
