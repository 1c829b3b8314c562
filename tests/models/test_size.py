"""A network that would fill the memory is refused before it is made."""

import pytest

from ovseg.core.errors import InputError
from ovseg.models import build_model


@pytest.mark.parametrize(
    ("arch", "arch_args"),
    [
        ("flexible_unet", {"base_filters": 10**6, "num_layers": 4}),
        ("attention_unet", {"base_filters": 4096, "num_layers": 10}),
        ("unet3plus", {"base_filters": 10**12, "num_layers": 5}),
    ],
)
def test_network_larger_than_memory_is_refused(arch, arch_args):
    with pytest.raises(InputError, match=rf"arch {arch} (with|can't be built with) .*base_filters"):
        build_model(arch, **arch_args)


def test_network_larger_than_the_default_is_made_if_it_fits():
    network = build_model("attention_unet", base_filters=8, num_layers=3, classes=5)
    assert sum(parameter.numel() for parameter in network.parameters()) < 10**6
