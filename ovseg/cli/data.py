"""The commands that make, check and look at datasets."""

from pathlib import Path

from ovseg.cli.parser import build_parser, conclude


def prepare_data(arguments: list[str]) -> int:
    """The OTU_2d download to a dataset tree."""
    parser = build_parser(
        "prepare_data", "Make a dataset of squares from the official OTU_2d download."
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with images and annotations"
    )
    parser.add_argument("--output", type=Path, required=True, help="dataset folder to make")
    parser.add_argument(
        "--size", type=int, default=512, help="side of the squares in pixels (default: 512)"
    )
    parser.add_argument("--fit", default="letterbox", help="letterbox (default) or stretch")
    parser.add_argument(
        "--split",
        default="groups",
        help="groups (of near-duplicates; default) or official (train.txt, val.txt)",
    )
    parser.add_argument(
        "--split-file",
        type=Path,
        help="a split to use instead: JSON {stem: split} or CSV stem,split",
    )
    parser.add_argument(
        "--folds", type=int, default=0, help="also deal train and valid to so many folds"
    )
    parser.add_argument(
        "--allow-leakage", action="store_true", help="accept near-duplicates in two splits"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the split (default: 42)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dataset")
    options = vars(parser.parse_args(arguments))
    from ovseg.data.prepare.otu2d import prepare_dataset

    manifest = prepare_dataset(**options)
    splits = [item["split"] for item in manifest["items"]]
    counts = ", ".join(f"{splits.count(name)} {name}" for name in ("train", "valid", "test"))
    groups = len({item["group"] for item in manifest["items"]})
    leakage = (
        f" with leakage: {len(manifest['leaking_pairs'])} pairs are in two splits"
        if manifest["leakage"]
        else ""
    )
    text = f"{len(splits)} pairs in {options['output']}: {counts}, {groups} groups of near-duplicates{leakage}"
    return conclude(text, manifest["failures"])


def audit_data(arguments: list[str]) -> int:
    """Check a dataset tree; exit code 1 where it can't be trusted."""
    parser = build_parser(
        "audit_data",
        "Find faults, copies and leakage in a dataset; exit code 1 if there are leaks or broken pairs.",
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="dataset folder with train, valid and test"
    )
    parser.add_argument(
        "--output", type=Path, help="folder to make (default: audit in the dataset folder)"
    )
    parser.add_argument(
        "--mask-threshold", type=int, default=127, help="grey above it is lesion (default: 127)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier audit")
    options = parser.parse_args(arguments)
    from ovseg.audit.report import print_audit, report_audit

    summary = report_audit(options.root, options.output, options.mask_threshold, options.overwrite)
    print_audit(summary)
    print(f"Written to {options.output or options.root / 'audit'}")
    return 0 if summary["passed"] else 1


def phantoms(arguments: list[str]) -> int:
    """Write a dataset of phantoms."""
    parser = build_parser("make_phantoms", "Make a dataset of synthetic ultrasound pairs.")
    parser.add_argument("--output", type=Path, required=True, help="dataset folder to make")
    parser.add_argument("--count", type=int, default=400, help="number of pairs (default: 400)")
    parser.add_argument(
        "--size", type=int, default=256, help="side of the pictures in pixels (default: 256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    parser.add_argument(
        "--folds", type=int, default=0, help="also deal train and valid to so many folds"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dataset")
    options = vars(parser.parse_args(arguments))
    from ovseg.data.prepare.phantoms import write_phantoms

    write_phantoms(**options)
    return conclude(f"{options['count']} phantoms in {options['output']}", [])


def measure_leakage(arguments: list[str]) -> int:
    """What near-duplicates across a split add."""
    parser = build_parser(
        "measure_leakage", "Measure what near-duplicates across a split add to the test score."
    )
    parser.add_argument("--root", type=Path, required=True, help="dataset that prepare_data wrote")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of results; a second call goes on in it"
    )
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument(
        "--image-size", type=int, default=64, help="side of the squares in pixels (default: 64)"
    )
    parser.add_argument(
        "--epochs", type=int, default=15, help="of each of the 3 trainings a seed (default: 15)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: the GPU, if any)"
    )
    options = vars(parser.parse_args(arguments))
    from ovseg.evaluation.report import print_leakage
    from ovseg.experiments.leakage import measure_leakage

    print_leakage(measure_leakage(**options))
    return conclude(f"Written to {options['output']}", [])


def draw_augmentations(arguments: list[str]) -> int:
    """Pictures of what augmentations do."""
    parser = build_parser(
        "draw_augmentations", "Draw what augmentations do to a phantom, or to pairs of a dataset."
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument(
        "--augmentations",
        nargs="+",
        default=["ultrasound_light", "ultrasound_strong"],
        help="pipelines or albumentations files (default: ultrasound_light ultrasound_strong)",
    )
    parser.add_argument("--root", type=Path, help="dataset folder (default: a phantom)")
    options = vars(parser.parse_args(arguments))
    from ovseg.data.augment.sheet import draw_augmentations

    draw_augmentations(**options)
    return conclude(f"Written to {options['output']}", [])
