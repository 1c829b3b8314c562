"""Pictures, curves and logs come after the checkpoint, and never end a training."""

import pytest

from ovseg.core.errors import WriteError
from ovseg.training import callbacks
from ovseg.training.callbacks import Curves, EpochSnapshots

ONE_EPOCH = ("--trainer.max_epochs", "1", "--evaluate_test", "false")


@pytest.mark.parametrize("shown", [Curves, EpochSnapshots])
def test_checkpoints_of_the_epoch_are_there_when_it_is_shown(tiny, monkeypatch, train, shown):
    seen = []

    def look(self, trainer, module, run):
        seen.append(sorted(path.name for path in run.checkpoints.iterdir()))

    monkeypatch.setattr(shown, "show", look)
    assert train(*ONE_EPOCH) == 0
    assert seen == [["best.ckpt", "last.ckpt"]]


@pytest.mark.parametrize("error", [WriteError("Cannot write a.png."), ZeroDivisionError()])
def test_failure_of_what_is_shown_is_told_once(tiny, monkeypatch, train, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(callbacks.snapshots, "write_image", fail)
    monkeypatch.setattr(callbacks.curves, "draw_curves", fail)
    assert train("--trainer.max_epochs", "2", "--evaluate_test", "false") == 0
    told = [record.getMessage() for record in caplog.records]
    for what in ("Snapshots", "Curves"):
        of_it = [text for text in told if text.startswith(what)]
        assert len(of_it) == 1
        assert "training continues: " in of_it[0]
        assert (str(error) or "ZeroDivisionError") in of_it[0]
    run = tiny / "runs" / "tiny" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "train_losses.csv").read_text().count("\n") == 3


def test_log_on_a_full_disk_does_not_end_a_training(tiny, monkeypatch, train, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytorch_lightning.loggers.csv_logs.ExperimentWriter.save", fail)
    assert train(*ONE_EPOCH) == 0
    told = [record.getMessage() for record in caplog.records]
    of_log = [text for text in told if text.startswith("metrics.csv could not be written")]
    assert len(of_log) == 1
    assert "No space left on device" in of_log[0]
    assert (tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt").is_file()
