"""Which parameters the losses reach, and what they are."""

import pytest
import torch
from torch import nn

from ovseg.adaptation.methods import METHODS, Adaptation
from ovseg.core.errors import InputError
from ovseg.models import build_model
from ovseg.training.losses import build_loss

NETWORKS = {
    "ds2net": ("ds2net", {"encoder_name": "tu-lcnet_035"}),
    "adapsegnet": ("flexible_unet", {"base_filters": 2, "base_kernel": 3, "num_layers": 2}),
}
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def batch():
    pixels = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    mask[:, :, 8:20, 8:20] = 1
    return {"image": pixels[0], "target": pixels[1], "mask": mask}


def make(name: str) -> tuple[nn.Module, nn.Module]:
    """The network and the method that trains it."""
    arch, arguments = NETWORKS[name]
    network = build_model(arch, **arguments)
    return network, METHODS[name](network, 1, [4], 32)


def reached(module: nn.Module) -> list[str]:
    names = []
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().sum() > 0:
            names.append(name)
    return names


def run(name: str, batch: dict, part: str) -> tuple[nn.Module, nn.Module]:
    """Network and method after a backward pass from one part of the losses."""
    network, method = make(name)
    losses = method(network, batch, build_loss("binary_crossentropy", 1, None))
    sum(getattr(losses, part).values()).backward()
    return network, method


@every_method
def test_segmentation_reaches_the_whole_network_and_no_discriminator(name, batch):
    network, method = run(name, batch, "segmentation")
    assert len(reached(network)) == len(list(network.parameters()))
    assert reached(method) == []


@every_method
def test_discriminators_losses_reach_all_of_them_and_nothing_of_the_network(name, batch):
    network, method = run(name, batch, "discriminators")
    assert reached(network) == []
    assert len(reached(method)) == len(list(method.parameters()))


def test_adversarial_losses_reach_the_encoders_alone(batch):
    network, method = run("ds2net", batch, "adversarial")
    assert reached(method) == []
    assert reached(network) == [name for name, _ in network.encoder.named_parameters("encoder")]


def test_adversarial_loss_on_probabilities_reaches_the_whole_network(batch):
    network, method = run("adapsegnet", batch, "adversarial")
    assert reached(method) == []
    assert len(reached(network)) == len(list(network.parameters()))


def test_each_encoder_must_deceive_its_discriminator_with_the_other_domain(batch):
    """D_s sees the source encoder's maps, D_t the target encoder's; labels as in the paper."""
    network, method = make("ds2net")
    for discriminator, logit in ((method.source, 2.0), (method.target, -1.0)):
        last = discriminator.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, logit)
    losses = method(network, batch, build_loss("binary_crossentropy", 1, None))

    def cross_entropy(logit: float, label: int) -> float:
        probability = torch.tensor(logit).sigmoid().item()
        share = probability if label else 1 - probability
        return -torch.tensor(share).log().item()

    assert losses.adversarial["adv_s"].item() == pytest.approx(cross_entropy(2.0, 1))
    assert losses.adversarial["adv_t"].item() == pytest.approx(cross_entropy(-1.0, 1))
    both = cross_entropy(2.0, 1) + cross_entropy(2.0, 0)
    assert losses.discriminators["d_s"].item() == pytest.approx(both)
    both = cross_entropy(-1.0, 1) + cross_entropy(-1.0, 0)
    assert losses.discriminators["d_t"].item() == pytest.approx(both)


@pytest.mark.parametrize(("own", "maps"), [("source", 0), ("target", 1)])
def test_adversarial_loss_of_a_discriminator_reaches_its_encoder_alone(own, maps, batch):
    network, method = make("ds2net")
    losses = method(network, batch, build_loss("binary_crossentropy", 1, None))
    losses.adversarial[f"adv_{own[0]}"].backward()
    assert reached(network.encoder[maps]) and not reached(network.encoder[1 - maps])


def test_ds2net_needs_its_network():
    network = build_model("flexible_unet", base_filters=2, num_layers=2)
    with pytest.raises(InputError, match="adaptation.method ds2net is for model.arch ds2net"):
        METHODS["ds2net"](network, 1, [4], 32)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "cycle"}, "Unknown adaptation.method 'cycle'. Choose one of: adapsegnet"),
        ({"weight": -1.0}, "adaptation.weight is -1.0"),
        ({"lr": 0.0}, "adaptation.lr 0.0"),
        ({"channels": []}, r"adaptation.channels is \[\]"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Adaptation(target_root="ceus", **setting)
