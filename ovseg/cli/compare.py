"""The commands that compare ovseg with the TensorFlow baseline and with other tools."""

import logging
from pathlib import Path

from ovseg.cli.output import conclude
from ovseg.core.configs import find_config
from ovseg.core.memory import keep_freed_memory


def import_baseline(
    *, config: Path, output: Path, weights: Path | None = None, overwrite: bool = False
) -> int:
    """Turn a configuration of the baseline, and its weights, into a run.

    Args:
        config: the baseline's train_eval_infer.config
        output: run folder to make
        weights: best_model.h5, .weights.h5 or .keras, or the baseline's folder of it
        overwrite: replace an earlier import
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    from ovseg.baseline import importer
    from ovseg.core.console import print_table

    rows = importer.import_baseline(config, weights, output, overwrite)
    print_table(("key", "value", "becomes"), rows, title=str(config))
    return conclude(f"Written to {output}")


def compare(
    *,
    runs: list[str],
    output: Path,
    split: str = "test",
    data: Path | None = None,
    masks: Path | None = None,
    common: bool = False,
    mask_threshold: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> int:
    """Compare runs, or masks of any tool, image by image: verdict, table, figure and page.

    Args:
        runs: two or more run folders, checkpoints, ensembles, or folders of masks; NAME=PATH gives
            one a name
        output: folder to make
        split: train, valid or test
        data: dataset folder (default: that of the first run)
        masks: folder of reference masks, to compare folders of masks without a dataset
        common: leave out images that a folder has no mask of
        mask_threshold: grey values of masks above it are lesion (default: that of training, or 127)
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
        overwrite: replace an earlier comparison
    """
    keep_freed_memory()
    from ovseg.evaluation.compare import compare_runs, print_comparison

    print_comparison(
        compare_runs(runs, output, split, data, masks, common, mask_threshold, device, overwrite)
    )
    return conclude(f"Written to {output}")


def compare_baseline(
    *,
    output: Path,
    config: str = "unet",
    data: str | None = None,
    arch_args: list[str] | None = None,
    lr: float | None = None,
    image_size: int = 128,
    steps: int = 200,
    epochs: int | None = None,
    overwrite: bool = False,
) -> int:
    """Train the baseline's network in TensorFlow and in ovseg, from the same weights and data.

    Args:
        output: folder to make
        config: configuration file, or name of a shipped configuration
        data: dataset folder, if it is not the configuration's
        arch_args: KEY=VALUE, such as num_layers=6
        lr: learning rate, if it is not the configuration's
        image_size: side of the squares in pixels
        steps: training steps
        epochs: passes over the training split, instead of --steps
        overwrite: replace an earlier comparison
    """
    from ovseg.baseline.compare_training import compare_training
    from ovseg.training.settings import read_experiment

    experiment = read_experiment(find_config(config), data, arch_args or [], lr)
    table = compare_training(experiment, output, steps, image_size, overwrite, epochs)
    print(table.to_string())
    return conclude(f"Written to {output}")


def benchmark(
    what: str,
    /,
    *,
    output: Path,
    config: str = "unet",
    run: Path | None = None,
    arch_args: list[str] | None = None,
    peers: list[str] | None = None,
    data: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    repeats: int = 5,
    warmup: int = 2,
    threads: int | None = None,
    precision: str = "32",
    channels_last: bool = False,
    scaling: bool = False,
    device: str = "auto",
    overwrite: bool = False,
) -> int:
    """Measure speed and memory against other tools: table, JSON and figure.

    Args:
        what: train, infer, layers (of the network, one by one) or data (the loader)
        output: folder to make
        config: configuration file, or name of a shipped configuration
        run: run whose exported files `infer` compares, instead of the peers: time, memory, size
            and Dice on validation images
        arch_args: KEY=VALUE, such as num_layers=6
        peers: of tensorflow torch ovseg compile graphs onnxruntime openvino smp monai
        data: dataset folder for `data`, if it is not the configuration's
        image_size: side of the squares in pixels (default: the configuration's)
        batch_size: images a batch (default: the configuration's in train, 1 in infer)
        repeats: timed steps of each peer
        warmup: untimed steps before them
        threads: CPU threads (default: as many as cores)
        precision: 32, tf32, bf16 or 16, of torch's peers
        channels_last: images and weights of torch's peers in channels-last order
        scaling: also measure against image size, batch size, layers and threads
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
        overwrite: replace an earlier benchmark
    """
    from ovseg.benchmark import command

    tables = command.benchmark(
        what=what,
        output=output,
        config=find_config(config),
        run=run,
        arch_args=arch_args or [],
        peers=peers,
        data=data,
        image_size=image_size,
        batch_size=batch_size,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        precision=precision,
        channels_last=channels_last,
        scaling=scaling,
        device=device,
        overwrite=overwrite,
    )
    return conclude(f"{tables}\nWritten to {output}")
