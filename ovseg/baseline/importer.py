"""Turn a configuration of the TensorFlow baseline, and its weights, into a run folder.

`ovseg evaluate`, `infer` and `train` take that folder like any other run.
"""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from pytorch_lightning import Trainer
from torch import nn

from ovseg.baseline.config import convert_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.baseline.rescaling import settle_rescaling
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_table
from ovseg.core.runs import BEST, RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.models.efficientnet import PixelNormalization
from ovseg.models.layers import InputScale
from ovseg.models.swin_unet import PatchEmbedding
from ovseg.training.task import SegmentationTask


def import_baseline(
    config_path: Path, weights: Path | None, output: Path, overwrite: bool = False
) -> list[tuple[str, str, str]]:
    """Write `config.yaml` and `import.csv`, and with weights a run: `checkpoints/best.ckpt`.

    The baseline's configuration is copied too. If the baseline trained on pictures as BGR, the
    input channels of the weights are exchanged, because ovseg's networks take RGB.

    Args:
        config_path: the baseline's configuration.
        weights: its weights, see `ovseg.baseline.keras_weights`, or a folder with the file that the
            configuration names; None converts the configuration only.
        output: run folder to make.
        overwrite: replace an earlier import.

    Returns:
        The rows of `explain_baseline_config`, and one of `settle_rescaling`.

    Raises:
        InputError: configuration or weights cannot be used, or they disagree; nothing is written.
    """
    baseline = convert_baseline_config(config_path)
    config = baseline.experiment
    rows = baseline.rows
    _check_trainable(config_path, config)
    if weights is not None and Path(weights).is_dir():
        weights = Path(weights) / baseline.weights_name
    rows = rows + settle_rescaling(config["model"], weights)
    task = SegmentationTask(**config["model"])
    data = OvarianTumorDataModule(**config["data"])
    if weights is not None:
        load_keras_weights(task.network, weights)
        if baseline.bgr:
            size = config["model"]["arch_args"].get("image_size", [64, 64])
            exchange_input_channels(task.network, *size)

    with atomic_dir(output, overwrite, marker=RunFolder(output).import_table.name) as folder:
        run = RunFolder(folder)
        shutil.copyfile(config_path, run.baseline_config)
        run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        table = pd.DataFrame(rows, columns=["key", "value", "becomes"])
        write_table(run.import_table, table)
        if weights is not None:
            _save_checkpoint(task, data, run)
    return rows


@torch.inference_mode()
def exchange_input_channels(network: nn.Module, height: int = 64, width: int = 64) -> None:
    """Change a network of pictures as BGR into one that gives the same for them as RGB.

    Args:
        network: its weights are changed.
        height: rows of the picture that it is checked with.
        width: columns of it.

    Raises:
        InputError: the network then gives something else.
    """
    was_training = network.training
    network.eval()
    generator = torch.Generator().manual_seed(0)
    bgr = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    places, expected = _find_pixels(network, bgr)
    for module in network.modules():
        if isinstance(module, InputScale | PixelNormalization):
            for buffer in module.buffers():
                if buffer.numel() == 3:  # a number for each channel of a picture
                    _reverse(buffer.view(3), axis=0)
        elif isinstance(module, PatchEmbedding):
            weight = module.dense.weight
            _reverse(weight.view(len(weight), -1, 3), axis=2)  # the channel comes last
    for convolution, first in places.items():
        _reverse(convolution.weight[:, first : first + 3], axis=1)
    found = network(bgr.flip(1))
    network.train(was_training)
    tolerance = 1e-3 * max(1.0, float(expected.abs().max()))
    if (found - expected).abs().max() > tolerance:
        raise InputError(
            f"The weights of {type(network).__name__} are for pictures as BGR, and its input "
            "channels can't be exchanged. Train it with BaseImageMaskDataset, which reads RGB."
        )


def _reverse(values: torch.Tensor, axis: int) -> None:
    """Reverse a view of a tensor in its place."""
    values.copy_(values.flip(axis))


def _find_pixels(
    network: nn.Module, image: torch.Tensor
) -> tuple[dict[nn.Conv2d, int], torch.Tensor]:
    """The convolutions that see the pixels of the image, and the network's output.

    Returns:
        For each the first of the three input channels: the first of all, or behind others, where a
        decoder takes the image as its last skip. The logits.
    """
    height, width = image.shape[-2:]
    scaled: list[torch.Tensor] = []
    places: dict[nn.Conv2d, int] = {}

    def keep_output(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        scaled.append(output)

    def look_at_input(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(module, nn.Conv2d)
        last = inputs[0][:, -3:, :height, :width]  # without what was padded
        if any(torch.equal(last, pixels[..., :height, :width]) for pixels in scaled):
            places[module] = module.in_channels - 3

    handles = []
    for module in network.modules():
        if isinstance(module, InputScale):
            handles.append(module.register_forward_hook(keep_output))
        elif isinstance(module, nn.Conv2d) and module.in_channels >= 3 and module.groups == 1:
            handles.append(module.register_forward_pre_hook(look_at_input))
    output = network(image)
    for handle in handles:
        handle.remove()
    return places, output


def _check_trainable(path: Path, config: dict[str, Any]) -> None:
    """Refuse what neither the network nor the data module refuses, but training would."""
    numbers = {
        "epochs": config["trainer"]["max_epochs"],
        "patience": config["early_stopping"]["patience"],
        "clipvalue": config["trainer"]["gradient_clip_val"],
        "learning_rate": config["model"]["optimizer_args"]["lr"],
    }
    wrong = [f"{name} is {value}" for name, value in numbers.items() if value <= 0]
    if wrong:
        raise InputError(f"{path}: {first_five(wrong)}, expected more than 0. Correct the file.")

    channels = config["model"]["arch_args"].get("in_channels", 3)
    if channels != 3:
        raise InputError(
            f"{path}: image_channels is {channels}, but training and inference read RGB. Only "
            "read_baseline_config takes it."
        )
    image_size = config["model"]["arch_args"].get("image_size")
    if image_size is None:
        return
    height, width = image_size
    if height != width:
        raise InputError(
            f"{path}: the position embeddings of this network are for images of {height} x "
            f"{width}, but training and inference use squares. Only read_baseline_config takes it."
        )


def _save_checkpoint(task: SegmentationTask, data: OvarianTumorDataModule, run: RunFolder) -> None:
    """Let Lightning write a checkpoint of no epoch, so that it is a checkpoint like any other."""
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=0,
        limit_val_batches=0,
        accelerator="cpu",
        default_root_dir=run.path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data.prepare_data = _read_nothing  # type: ignore[method-assign]
    trainer.fit(task, data)
    trainer.save_checkpoint(run.checkpoint(BEST))


def _read_nothing() -> None:
    """In place of the data module's verification: the dataset need not be on this machine."""
