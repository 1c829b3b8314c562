"""Which device a name stands for."""

import pytest
import torch

from ovseg.core.device import choose_device, name_devices, spread_devices
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


def test_several_processes_get_a_gpu_each_or_share_the_cpu():
    assert spread_devices(torch.device("cuda"), 2, 4) == ["cuda:0", "cuda:1"]
    assert spread_devices(torch.device("xpu"), 1, 1) == ["xpu:0"]
    assert spread_devices(torch.device("cpu"), 3, 8) == ["cpu", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("cuda", 3, "--devices is 3, but this machine has 2 devices of cuda. Give a smaller"),
        ("cpu", 3, "--devices is 3, but this machine has 2 cores. Give a smaller"),
        ("cuda:1", 2, "--device cuda:1 is one device, but --devices asks for 2. .*--device cuda"),
        ("cpu", 0, "--devices is 0, expected at least 1"),
    ],
)
def test_number_of_devices_that_cannot_be_is_an_error(kind, count, message):
    with pytest.raises(InputError, match=message):
        spread_devices(torch.device(kind), count, available=2)


def test_one_process_takes_the_device_as_it_is_named():
    assert name_devices("cuda:7", 1) == ["cuda:7"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="auto is a GPU here")
def test_without_a_gpu_several_processes_share_the_cpu():
    assert name_devices("auto", 2) == ["cpu", "cpu"]
