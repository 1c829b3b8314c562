"""A command line for the tests of training."""

from collections.abc import Callable

import pytest


@pytest.fixture
def train(run_command) -> Callable[..., int]:
    """A function that runs `ovseg train --config tiny.yaml ...` and returns the exit code."""

    def run(*arguments: object) -> int:
        return run_command("train", "--config", "tiny.yaml", *arguments)

    return run
