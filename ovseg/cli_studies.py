"""The commands that train many times."""

from pathlib import Path

from ovseg.cli_parser import build_parser, conclude, quiet_lightning


def cross_validate(arguments: list[str]) -> int:
    """Train and score every fold; arguments of `train` are handed on."""
    parser = build_parser(
        "cross_validate",
        "Train each fold of a dataset prepared with --folds, and score every image by the network that has not seen "
        "it; run it again to go on. Further arguments are those of train, such as --data.batch_size 4.",
    )
    parser.add_argument("--config", type=Path, required=True, help="as for train")
    parser.add_argument("--folds", type=int, default=5, help="as the dataset was prepared (default: 5)")
    parser.add_argument("--output", type=Path, help="folder of results (default: runs/cv/<config>)")
    parser.add_argument("--device", default="auto", help="of the scoring (default: the GPU, if any)")
    options, overrides = parser.parse_known_args(arguments)
    quiet_lightning()
    from ovseg.cross_validation import cross_validate
    from ovseg.out_of_fold import print_folds
    from ovseg.training import read_configuration

    output = options.output or Path("runs/cv") / options.config.stem
    config = read_configuration(["--config", str(options.config), *overrides])
    print_folds(cross_validate(config, options.folds, output, options.device))
    text = f"Written to {output}. The ensemble of the folds on test: python scripts/evaluate.py --run {output}"
    return conclude(text, [])
