"""The commands that train many times."""

from pathlib import Path

from ovseg.cli.parser import build_parser, conclude, parse_own, quiet_lightning


def cross_validate(arguments: list[str]) -> int:
    """Train and score every fold; arguments of `train` are handed on."""
    parser = build_parser(
        "cross_validate",
        "Train each fold of a dataset prepared with --folds, and score every image by the network that has not seen "
        "it; run it again to go on. Further arguments are those of train, such as --data.batch_size 4.",
    )
    parser.add_argument("--config", type=Path, required=True, help="as for train")
    parser.add_argument(
        "--folds", type=int, default=5, help="as the dataset was prepared (default: 5)"
    )
    parser.add_argument("--output", type=Path, help="folder of results (default: runs/cv/<config>)")
    parser.add_argument(
        "--device", default="auto", help="of the scoring (default: the GPU, if any)"
    )
    options, overrides = parse_own(parser, arguments)
    quiet_lightning()
    from ovseg.experiments.cross_validation import cross_validate
    from ovseg.experiments.out_of_fold import print_folds
    from ovseg.experiments.train import read_configuration

    output = options.output or Path("runs/cv") / options.config.stem
    config = read_configuration(["--config", str(options.config), *overrides])
    print_folds(cross_validate(config, options.folds, output, options.device))
    text = f"Written to {output}. The ensemble of the folds on test: python scripts/evaluate.py --run {output}"
    return conclude(text, [])


def sweep(arguments: list[str]) -> int:
    """Search for the best values of some keys; arguments of `train` are handed on."""
    parser = build_parser(
        "sweep",
        "Search for the values of configuration keys that validate best (Optuna); run it again to go on, one call at "
        "a time. Further arguments are those of train, such as --trainer.max_epochs 20.",
    )
    parser.add_argument("--config", type=Path, required=True, help="as for train")
    parser.add_argument(
        "--space", type=Path, required=True, help="YAML: key: {low, high, log, step} or {choices}"
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="finished trials wanted in all (default: 20)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of results (default: runs/sweep/<config>)"
    )
    parser.add_argument(
        "--study", type=Path, help="SQLite file of the study (default: sweep.db in the folder)"
    )
    parser.add_argument(
        "--monitor", default="val_dice", help="validation value to better (default: val_dice)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument(
        "--prune", action="store_true", help="end trials below the median of the others' epochs"
    )
    options, overrides = parse_own(parser, arguments)
    quiet_lightning()
    from ovseg.experiments.sweep import sweep
    from ovseg.experiments.train import read_configuration

    output = options.output or Path("runs/sweep") / options.config.stem
    config = read_configuration(["--config", str(options.config), *overrides])
    how = (options.monitor, options.seed, options.prune)
    best = sweep(
        config, options.space, options.trials, output, options.study or output / "sweep.db", *how
    )
    values = ", ".join(f"{name} {value}" for name, value in best.params.items())
    text = f"Best of {options.trials} trials: {options.monitor} {best.value:.4f} with {values}.\nWritten to {output}. "
    return conclude(
        f"{text}Train with it: python scripts/train.py --config {output / 'best.yaml'}", []
    )
