"""Trainings in a child process, and the configurations that are written for them."""

import os

import pytest
import yaml

from ovseg.experiments.child_training import training_process, write_configuration


def test_training_ends_with_the_block_that_started_it(tmp_path):
    path = tmp_path / "long.yaml"  # never read: the process is ended while it imports its packages
    with pytest.raises(KeyboardInterrupt), training_process(path) as process:
        os.kill(process.pid, 0)
        raise KeyboardInterrupt
    assert process.returncode not in (None, 0)


def test_configuration_is_written_in_its_own_order(tmp_path):
    write_configuration(tmp_path / "a.yaml", {"model": {"b": 1, "a": 2}, "data": None})
    text = (tmp_path / "a.yaml").read_text()
    assert list(yaml.safe_load(text)) == ["model", "data"]
    assert text.index("b: 1") < text.index("a: 2")
