"""Whether a checkpoint is of a training that early stopping had ended."""

import pytest

from ovseg.training.callbacks import stopped_early


@pytest.mark.parametrize(
    ("epochs", "wait_count", "stopped_epoch", "expected"),
    [
        (4, 1, 0, False),
        (4, 3, 3, True),  # out of patience
        (4, 0, 3, True),  # by a threshold
        (1, 0, 0, False),
        (6, 0, 3, False),  # resumed since
    ],
)
def test_training_was_stopped_by_its_patience_or_in_its_last_epoch(
    epochs, wait_count, stopped_epoch, expected
):
    state = {"wait_count": wait_count, "patience": 3, "stopped_epoch": stopped_epoch}
    checkpoint = {
        "callbacks": {"EarlyStopping{'monitor': 'val_loss'}": state},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}},
    }
    assert stopped_early(checkpoint) == expected
