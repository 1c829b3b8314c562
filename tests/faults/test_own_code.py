"""A network and a loss of one's own, which a command runs only if it is told to."""

import sys

import pytest
import torch
import yaml

from ovseg.core.errors import InputError
from ovseg.training.losses import build_loss, tversky_loss

CODE = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, width: int = 4, classes: int = 1):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, classes, 1))

    def forward(self, image):
        return self.layers(image.float() / 255)


class Shrinking(Network):
    def forward(self, image):
        return super().forward(image)[..., ::2, ::2]


class Failing(Network):
    def forward(self, image):
        raise KeyError("no such layer")


def weighted(logits, mask, weight: float = 1.0):
    return weight * (logits.sigmoid() - mask).square().mean()


NUMBER = 3
"""


@pytest.fixture
def train(work, run_command, monkeypatch):
    """A function that trains a network of `own_networks` and returns the exit code."""
    monkeypatch.syspath_prepend(work)
    (work / "own_networks.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)

    def run(*options: object, arch: str = "Network", arch_args: dict | None = None) -> int:
        config = yaml.safe_load((work / "tiny.yaml").read_text())
        model = {"arch": f"own_networks.{arch}", "arch_args": arch_args or {}}
        model |= {"loss": "own_networks.weighted", "loss_args": {"weight": 2.0}}
        config["model"] = model
        (work / "own.yaml").write_text(yaml.safe_dump(config))
        return run_command("train", "--config", "own.yaml", *options)

    return run


def test_own_network_is_trained_and_predicts_where_it_is_trusted(train, work, run_command, capsys):
    assert train("--trust_config", arch_args={"width": 3}) == 0
    run = work / "runs" / "own" / "version_0"
    infer = ["infer", "--run", run, "--images", "one", "--device", "cpu"]
    assert run_command(*infer, "--output", "refused") == 2
    assert "own_networks.Network is code that is not ovseg's" in capsys.readouterr().err
    assert run_command(*infer, "--output", "masks", "--trust_config") == 0
    assert len(list((work / "masks").glob("*.png"))) == 1

    evaluate = ["evaluate", "--run", run, "--device", "cpu"]
    assert run_command(*evaluate) == 2
    assert run_command(*evaluate, "--trust_config") == 0
    more = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2]
    assert train(*more, "--trust_config", arch_args={"width": 3}) == 0


def test_own_network_is_refused_without_trust(train, work, capsys):
    assert train() == 2
    assert "own_networks.Network is code that is not ovseg's" in capsys.readouterr().err
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("arch", "problem"),
    [
        ("Shrinking", "returns torch.float32 (1, 1, 16, 16). Expected uint8 (1, 3, 32, 32) to"),
        ("Failing", "own_networks.Failing fails (KeyError: 'no such layer')"),
        ("weighted", "own_networks.weighted is no network, expected a class of nn.Module"),
        ("Gone", "own_networks.Gone can't be imported"),
    ],
)
def test_own_network_of_another_contract_is_refused_before_training(
    train, work, capsys, arch, problem
):
    assert train("--trust_config", arch=arch) == 2
    assert problem in capsys.readouterr().err
    assert not (work / "runs").exists()


def test_argument_that_an_own_network_does_not_take_is_refused(train, capsys):
    assert train("--trust_config", arch_args={"depth": 3}) == 2
    message = "arch own_networks.Network does not take depth. Its arguments are: width, classes."
    assert message in capsys.readouterr().err


def test_arguments_of_a_loss_are_given_to_it():
    logits = torch.randn(2, 1, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) > 0.5).to(torch.uint8)
    weights = {"false_positive_weight": 0.1, "false_negative_weight": 0.9}
    loss = build_loss("tversky_loss", arguments=weights)
    assert loss(logits, mask) == tversky_loss(logits, mask.float(), 0.1, 0.9)
    assert loss(logits, mask) != build_loss("tversky_loss")(logits, mask)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"alpha": 0.3},
            "loss tversky_loss does not take alpha. Its arguments are: false_positive",
        ),
        ({"false_positive_weight": "x"}, "false_positive_weight is 'x', expected a number"),
        ({"mask": 1}, "loss tversky_loss does not take mask"),
    ],
)
def test_argument_that_a_loss_does_not_take_is_refused(arguments, problem):
    with pytest.raises(InputError, match=problem):
        build_loss("tversky_loss", arguments=arguments)
