"""Trainings in a child process, and the configurations that are written for them."""

import os

import pytest
import yaml

from ovseg.experiments.child_training import (
    changed_settings,
    flatten,
    training_process,
    write_configuration,
)


def test_training_ends_with_the_block_that_started_it(tmp_path):
    path = tmp_path / "long.yaml"  # never read: the process is ended while it imports its packages
    with pytest.raises(KeyboardInterrupt), training_process(path) as process:
        os.kill(process.pid, 0)
        raise KeyboardInterrupt
    assert process.returncode not in (None, 0)


def test_flat_settings_have_dotted_keys():
    nested = {"a": {"b": {"c": 1}, "d": [2]}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [2], "e": {}, "f": None}


def test_changed_settings_are_named_with_both_values():
    earlier = {"data": {"batch_size": 4}, "seed": 1}
    now = {"data": {"batch_size": 8}, "seed": 1, "new": True}
    assert changed_settings(earlier, now) == "data.batch_size 4, now 8, new None, now True"
    assert changed_settings(now, now) == ""


def test_configuration_is_written_in_its_own_order(tmp_path):
    write_configuration(tmp_path / "a.yaml", {"model": {"b": 1, "a": 2}, "data": None})
    text = (tmp_path / "a.yaml").read_text()
    assert list(yaml.safe_load(text)) == ["model", "data"]
    assert text.index("b: 1") < text.index("a: 2")
