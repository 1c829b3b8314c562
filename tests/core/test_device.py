"""Which device a name stands for."""

import pytest
import torch

from ovseg.core.device import choose_device
from ovseg.core.errors import InputError


def test_auto_gives_a_device_that_computes():
    device = choose_device("auto")
    assert torch.zeros(1, device=device).sum() == 0


def test_name_of_a_device_gives_that_device():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["quantum", "cuda:99"])
def test_device_that_is_not_there_is_an_error(name):
    with pytest.raises(InputError, match=f"Device '{name}' cannot be used .*Try auto or cpu"):
        choose_device(name)
