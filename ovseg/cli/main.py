"""The commands. `ovseg NAME ...` and `python scripts/NAME.py ...` are the same functions."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ovseg.cli import data as cli_data
from ovseg.cli import studies as cli_studies
from ovseg.cli.parser import build_parser, conclude, quiet_lightning
from ovseg.core.errors import InputError
from ovseg.core.registry import choose


def _run(command: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on standard error and exit code 2."""
    try:
        return command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _of_lightning("SIGTERMException"):  # which would leave with 0
        print("error: stopped by SIGTERM", file=sys.stderr)
        return 143
    except (
        InputError,
        argparse.ArgumentError,
        UnicodeDecodeError,
        *_of_lightning("MisconfigurationException"),
    ) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _of_lightning(name: str) -> tuple[type[BaseException], ...]:
    """An exception of Lightning; none where it is not imported, which takes seconds in which Ctrl-C must work."""
    module = sys.modules.get("pytorch_lightning.utilities.exceptions")
    return (getattr(module, name),) if module else ()


def _train(arguments: list[str]) -> int:
    quiet_lightning()
    from ovseg.experiments.train import train_from_command_line

    return train_from_command_line(arguments)


def _evaluate(arguments: list[str]) -> int:
    parser = build_parser("evaluate", "Score a run on a split: tables, summary and pictures.")
    parser.add_argument(
        "--run", type=Path, required=True, help="run folder, checkpoint, or folder of an ensemble"
    )
    parser.add_argument("--split", default="test", help="train, valid or test (default)")
    parser.add_argument(
        "--data", type=Path, help="dataset folder, if it is not the one of training"
    )
    parser.add_argument("--output", type=Path, help="folder to write (default: in the run folder)")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="images at a time (default: 4, as the baseline)"
    )
    _add_postprocessing(parser)
    _add_common(parser)
    options = parser.parse_args(arguments)
    from ovseg.core.runs import RunFolder
    from ovseg.evaluation.evaluate import Evaluation
    from ovseg.evaluation.report import print_summary, report_evaluation

    output = options.output or RunFolder(options.run).evaluation(options.split)
    evaluation = Evaluation(
        options.run,
        options.split,
        options.data,
        options.batch_size,
        options.device,
        options.postprocessing,
    )
    print_summary(report_evaluation(evaluation, output, options.overwrite))
    print(f"Written to {output}")
    return 0


def _infer(arguments: list[str]) -> int:
    parser = build_parser(
        "infer", "Segment every picture of a folder: one mask each, at the picture's own size."
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="run folder, checkpoint, or folder of an ensemble"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of jpg, png, bmp or tif pictures"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--overlays", action="store_true", help="also write the masks over the images"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write 16-bit probability maps"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at a time (default: 4)")
    parser.add_argument(
        "--engine", default="torch", help="torch (default), compile, onnxruntime, openvino, or auto"
    )
    _add_postprocessing(parser)
    _add_common(parser)
    options = vars(parser.parse_args(arguments))
    from ovseg.inference.predictor import infer_folder

    count, failures = infer_folder(**options)
    ids = options["output"] / "categories.json"
    kind = f"category ids, named in {ids.name}" if ids.exists() else "0 and 255"
    return conclude(f"{count} masks ({kind}) written to {options['output']}", failures)


def _postprocess(arguments: list[str]) -> int:
    parser = build_parser(
        "postprocess",
        "Choose flips, threshold and clean-up of a run on its validation images, for evaluate and infer.",
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="run folder, or folder of an ensemble"
    )
    parser.add_argument(
        "--metric",
        default="dice",
        help="dice (default) or iou, mean per image at the original size",
    )
    parser.add_argument("--split", default="valid", help="valid (default) or train; never test")
    parser.add_argument(
        "--data", type=Path, help="dataset folder, if it is not the one of training"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time (default: 4)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: the GPU, if any)"
    )
    options = parser.parse_args(arguments)
    from ovseg.evaluation.postprocessing_search import print_search, search_postprocessing

    print_search(search_postprocessing(**vars(options)))
    return conclude(
        f"Written to {options.run}/postprocessing.json, which evaluate and infer use from now on",
        [],
    )


def _export(arguments: list[str]) -> int:
    parser = build_parser(
        "export", "Write a run's network as ONNX, with how its logits become masks beside it."
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder or checkpoint")
    parser.add_argument(
        "--output", type=Path, help="folder to make (default: export in the run folder)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options = parser.parse_args(arguments)
    from ovseg.inference.export import export_run

    description = export_run(options.run, options.output, options.overwrite)
    where = options.output or "export in the run folder"
    return conclude(
        f"Written to {where}; probabilities within {description['difference']:.1e} of torch's.", []
    )


def _import_baseline(arguments: list[str]) -> int:
    parser = build_parser(
        "import_baseline", "Turn a configuration of the baseline, and its weights, into a run."
    )
    parser.add_argument("--config", type=Path, required=True, help="train_eval_infer.config")
    parser.add_argument("--weights", type=Path, help="best_model.h5, .weights.h5 or .keras")
    parser.add_argument("--output", type=Path, required=True, help="run folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier import")
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    from ovseg.baseline.importer import import_baseline
    from ovseg.core.console import print_table

    rows = import_baseline(options.config, options.weights, options.output, options.overwrite)
    print_table(("key", "value", "becomes"), rows, title=str(options.config))
    return conclude(f"Written to {options.output}", [])


def _compare_baseline(arguments: list[str]) -> int:
    parser = build_parser(
        "compare_baseline",
        "Train the flexible UNet in TensorFlow and in ovseg from the same weights on the same data; or, with "
        "--predictions, score another tool's masks against ours.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/unet.yaml"),
        help="(default: configs/unet.yaml)",
    )
    parser.add_argument("--data", help="dataset folder, if it is not the configuration's")
    parser.add_argument(
        "--arch-args", nargs="*", default=[], metavar="KEY=VALUE", help="such as num_layers=6"
    )
    parser.add_argument("--lr", type=float, help="learning rate, if it is not the configuration's")
    parser.add_argument(
        "--image-size", type=int, default=128, help="side of the squares in pixels (default: 128)"
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument(
        "--epochs", type=int, help="passes over the training split, in place of --steps"
    )
    parser.add_argument("--predictions", type=Path, help="folder of another tool's masks")
    parser.add_argument(
        "--ours", type=Path, help="with --predictions: folder of our masks, as infer writes them"
    )
    parser.add_argument("--masks", type=Path, help="with --predictions: folder of reference masks")
    parser.add_argument(
        "--threshold", type=int, default=127, help="of --predictions' grey values (default: 127)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison")
    options = parser.parse_args(arguments)
    if options.predictions:
        from ovseg.evaluation.compare import compare_masks

        if not (options.ours and options.masks):
            raise InputError(
                "--predictions needs --ours and --masks: the folders of our masks and of the reference."
            )
        paths = (options.predictions, options.ours, options.masks, options.output)
        summary = compare_masks(*paths, options.threshold, options.overwrite)
        print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    else:
        from ovseg.baseline.compare_training import compare_training
        from ovseg.training.config import read_experiment

        config = read_experiment(options.config, options.data, options.arch_args, options.lr)
        how = (options.output, options.steps, options.image_size, options.overwrite, options.epochs)
        print(compare_training(config, *how).to_string())
    return conclude(f"Written to {options.output}", [])


def _benchmark(arguments: list[str]) -> int:
    parser = build_parser(
        "benchmark", "Measure speed and memory against other tools: table, JSON and figure."
    )
    parser.add_argument(
        "what", help="train, infer, layers (of the network, one by one) or data (the loader)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/unet.yaml"),
        help="(default: configs/unet.yaml)",
    )
    parser.add_argument(
        "--arch-args", nargs="*", default=[], metavar="KEY=VALUE", help="such as num_layers=6"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        help="of: tensorflow torch ovseg compile onnxruntime openvino smp monai",
    )
    parser.add_argument(
        "--data", help="dataset folder, for `data`, if it is not the configuration's"
    )
    parser.add_argument(
        "--image-size", type=int, help="side of the squares (default: the configuration's)"
    )
    parser.add_argument(
        "--batch-size", type=int, help="(default: the configuration's in train, 1 in infer)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps of each peer (default: 5)"
    )
    parser.add_argument("--warmup", type=int, default=2, help="steps before, untimed (default: 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as cores)")
    parser.add_argument(
        "--precision", default="32", help="32 (default), tf32, bf16 or 16, of torch's peers"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="images and weights of torch's peers that way"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="also against image size, batch, layers and threads"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    _add_common(parser)
    options = parser.parse_args(arguments)
    from ovseg.benchmark.command import benchmark

    return conclude(f"{benchmark(**vars(options))}\nWritten to {options.output}", [])


def _add_postprocessing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-postprocessing",
        dest="postprocessing",
        action="store_false",
        help="leave the run's postprocessing.json (of postprocess) aside",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: the GPU, if any)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier output")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "cross_validate": cli_studies.cross_validate,
    "sweep": cli_studies.sweep,
    "evaluate": _evaluate,
    "infer": _infer,
    "postprocess": _postprocess,
    "export": _export,
    "prepare_data": cli_data.prepare_data,
    "audit_data": cli_data.audit_data,
    "make_phantoms": cli_data.phantoms,
    "measure_leakage": cli_data.measure_leakage,
    "draw_augmentations": cli_data.draw_augmentations,
    "import_baseline": _import_baseline,
    "compare_baseline": _compare_baseline,
    "benchmark": _benchmark,
}


def run_script(command: str) -> int:
    """A command with the arguments of this process; the body of `scripts/<command>.py`."""
    return _run(COMMANDS[command])


def main(argv: list[str] | None = None) -> int:
    """The console command `ovseg NAME ...`.

    Args:
        argv: the command's name and its arguments; those of this process by default.

    Returns:
        The exit code: 0, 1 where some files failed, 2 for a user's mistake.
    """
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(
            f"usage: ovseg {{{','.join(COMMANDS)}}} ...\n`ovseg NAME --help` tells the options of a command."
        )
        return 0
    if name == "--version":
        from ovseg import __version__

        print(f"ovseg {__version__}")
        return 0
    return _run(lambda given: choose("command", name.replace("-", "_"), COMMANDS)(given), rest)
