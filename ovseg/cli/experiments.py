"""The commands that train many times."""

from pathlib import Path

from ovseg.cli.output import conclude, quiet_lightning
from ovseg.core.configs import find_config, short_name
from ovseg.core.long_work import continues, long_work


@long_work
@continues
def cross_validate(
    *train_arguments: str,
    config: str,
    folds: int = 5,
    output: Path | None = None,
    device: str = "auto",
) -> int:
    """Train and score every fold of a dataset prepared with --folds.

    Every image is scored by the network that has not seen it. Call it again to continue. Further
    arguments are those of train, such as --data.batch_size 4.

    Args:
        train_arguments: passed on
        config: configuration file, or name of a shipped configuration
        folds: number of folds, as the dataset was prepared
        output: folder of results (default: runs/cv/<config>)
        device: of the scoring: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
    """
    quiet_lightning()
    from ovseg.data.tree import has_images
    from ovseg.experiments import cross_validation
    from ovseg.experiments.out_of_fold import print_folds
    from ovseg.experiments.train import read_configuration

    path = find_config(config)
    folder = output or Path("runs/cv") / short_name(path)
    settings = read_configuration(["--config", str(path), *train_arguments])
    print_folds(cross_validation.cross_validate(settings, folds, folder, device))
    text = (
        f"Written to {folder}. The whole report of these scores: ovseg evaluate --run {folder} "
        "--split valid"
    )
    if has_images(settings["data"]["root"], "test"):
        text += f". The ensemble of the folds on test: ovseg evaluate --run {folder}"
    return conclude(text)


@long_work
@continues
def sweep(
    *train_arguments: str,
    config: str,
    space: Path,
    trials: int = 20,
    output: Path | None = None,
    study: Path | None = None,
    monitor: str = "val_dice",
    seed: int = 0,
    prune: bool = False,
) -> int:
    """Search for the values of configuration keys that validate best, with Optuna.

    Call it again to continue, one call at a time. Further arguments are those of train, such as
    --trainer.max_epochs 20.

    Args:
        train_arguments: passed on
        config: configuration file, or name of a shipped configuration
        space: YAML file, key: {low, high, log, step} or {choices}
        trials: number of finished trials wanted in all
        output: folder of results (default: runs/sweep/<config>)
        study: SQLite file of the study (default: sweep.db in the folder)
        monitor: validation value to improve
        seed: seed of the search
        prune: end trials below the median of the others' epochs
    """
    quiet_lightning()
    from ovseg.experiments import sweep as search
    from ovseg.experiments.train import read_configuration

    path = find_config(config)
    folder = output or Path("runs/sweep") / short_name(path)
    settings = read_configuration(["--config", str(path), *train_arguments])
    best = search.sweep(
        settings, space, trials, folder, study or folder / "sweep.db", monitor, seed, prune
    )
    values = ", ".join(f"{name} {value}" for name, value in best.params.items())
    return conclude(
        f"Best of {trials} trials: {monitor} {best.value:.4f} with {values}.\n"
        f"Written to {folder}. Train with it: ovseg train --config {folder / 'best.yaml'}"
    )
