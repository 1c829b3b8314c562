"""How much near-duplicates across a split add to the test score.

The same small network is trained on splits with and without such near-duplicates.

For each seed three trainings of as many images, from the same initial weights, with as many steps:

- `random`: a random tenth is the test set; the network trains on the rest, among it near-duplicates
  of test images ("relatives": images of the same group);
- `clean`: the same test set, but its relatives are left out of training;
- `groups`: whole groups are assigned to training or test, so another test set, without relatives in
  training.

`random` and `groups` are what people compare, but on different test images. `random` and `clean`
differ in the relatives only, so their difference on each test image is the leak itself (and the
effect of whatever else the groups share: some hold images that only look alike). For equal sizes
`random` and `groups` leave out as many images, drawn by chance, as `clean` leaves out relatives.
The network of the last epoch is scored: no epoch is chosen, so no validation set is needed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from ovseg.core.console import print_table, progress_bar
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.core.files import refuse_nested, write_json, write_table
from ovseg.core.plots import draw_leakage
from ovseg.core.schema import read_json
from ovseg.core.statistics import mean_interval
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.manifest import read_manifest
from ovseg.data.prepare.splits import deal_groups
from ovseg.data.tree import SPLITS
from ovseg.metrics import hard_scores, predict
from ovseg.models import build_model
from ovseg.training.losses import build_loss

KINDS = ("random", "clean", "groups")
TEST_SHARE = 0.1
NETWORK = {
    "base_filters": 8,
    "base_kernel": 3,
    "num_layers": 5,
    "dilation": 1,
    "dropout_rate": 0.0,
}
AUGMENTATION = "standard"
BATCH_SIZE = 16
LEARNING_RATE = 2e-3  # falls to zero along a half cosine
COLUMNS = {
    "seed": int,
    "split": str,
    "stem": str,
    "dice": float,
    "train_images": int,
    "related": bool,
}


@dataclass(frozen=True)
class Dataset:
    """All pairs of a prepared dataset, whatever its split.

    Attributes:
        stems: str, (N,).
        groups: group of near-duplicates of each image, int, (N,).
        categories: category of each image; groups are assigned so that each split has its share.
        images: RGB, uint8, (N, S, S, 3).
        masks: uint8, 0 or 1, (N, S, S).
    """

    stems: np.ndarray
    groups: np.ndarray
    categories: list[int]
    images: np.ndarray
    masks: np.ndarray


def measure_leakage(
    root: Path,
    output: Path,
    seeds: int = 3,
    image_size: int = 64,
    epochs: int = 15,
    device: str = "auto",
) -> dict[str, Any]:
    """Train and score `random`, `clean` and `groups` for every seed.

    Writes `images.csv`, a row for each test image of each training, and `leakage.{csv,json,png}`. A
    second call with the same settings keeps the finished trainings and does the missing ones.

    Args:
        root: a dataset that `prepare_data` wrote; its pairs are pooled, its groups are used.
        output: folder of the results.
        seeds: repetitions, each with other splits and initial weights; an interval needs 2.
        image_size: side of the squares, pixels, a multiple of 16.
        epochs: of each training.
        device: see `ovseg.core.device.choose_device`.

    Returns:
        The summary, see `summarise_leakage`.

    Raises:
        InputError: no groups in the manifest, an argument out of range, `output` lies in the
            dataset or holds it, or has results of other settings.
    """
    if seeds < 1 or epochs < 1 or image_size < 16 or image_size % 16:
        raise InputError(
            f"--seeds {seeds} and --epochs {epochs} must be at least 1, --image_size {image_size} "
            "a multiple of 16."
        )
    refuse_nested(output, [root])
    stems, groups, categories = _read_groups(root)
    settings = _describe(stems, groups, categories, image_size, epochs)
    rows = _read_finished(output, settings)
    images, masks = _read_pairs(root, stems, image_size)
    dataset = Dataset(stems, groups, categories, images, masks)
    write_json(output / "settings.json", settings)

    chosen_device = choose_device(device)
    for seed in range(seeds):
        sets = draw_sets(groups, categories, seed)
        for kind, (train, test) in sets.items():
            is_finished = (rows["seed"] == seed) & (rows["split"] == kind)
            if is_finished.any():
                continue
            title = f"seed {seed}, {kind}"
            dice = _train_and_score(dataset, train, test, seed, epochs, chosen_device, title)
            added = pd.DataFrame(
                {
                    "seed": seed,
                    "split": kind,
                    "stem": stems[test],
                    "dice": dice,
                    "train_images": len(train),
                    "related": np.isin(groups[test], groups[train]),
                }
            )
            rows = pd.concat([rows, added], ignore_index=True).astype(COLUMNS)
            write_table(output / "images.csv", rows)
    return _write_report(rows[rows["seed"] < seeds], settings, output)


def _read_groups(root: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Stem, group and category of every image of a prepared dataset."""
    items = read_manifest(root).get("items", [])
    if not items or any("group" not in item for item in items):
        raise InputError(f"{root} has no manifest.json with groups. Make it: ovseg prepare_data.")
    if len(items) < 30:
        raise InputError(
            f"{root} has {len(items)} images, too few to measure leakage, expected at least 30."
        )
    stems = np.array([item["stem"] for item in items])
    groups = np.array([item["group"] for item in items])
    categories = [item["category"] for item in items]
    return stems, groups, categories


def _describe(
    stems: np.ndarray, groups: np.ndarray, categories: list[int], image_size: int, epochs: int
) -> dict[str, Any]:
    """The settings that all results in a folder share; more seeds may be added."""
    content = repr((stems.tolist(), groups.tolist(), categories))
    return {
        "image_size": image_size,
        "epochs": epochs,
        "images": len(stems),
        "groups_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "network": NETWORK,
        "batch": BATCH_SIZE,
        "rate": LEARNING_RATE,
        "augmentation": AUGMENTATION,
    }


def _read_finished(output: Path, settings: dict[str, Any]) -> pd.DataFrame:
    """The rows of the trainings that an earlier call finished; none in a new folder.

    Raises:
        InputError: `output` holds results of other settings, or something else.
    """
    settings_path = output / "settings.json"
    if settings_path.is_file():
        remedy = "Choose another --output."
        earlier = read_json(settings_path, dict, "ovseg measure_leakage", remedy)
        if earlier != settings:
            raise InputError(f"{output} holds results of other settings. Choose another --output.")
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(
            f"{output} holds something else than leakage results. Choose another --output."
        )

    path = output / "images.csv"
    if path.is_file():
        try:
            return pd.read_csv(path, dtype={"stem": str}).astype(COLUMNS)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is not what ovseg measure_leakage writes ({error}). Delete it, or choose "
                "another --output."
            ) from None
    return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)


def _read_pairs(root: Path, stems: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in the order of `stems`: uint8 (N, S, S, 3), and (N, S, S) of 0 and 1."""
    fit = read_manifest(root).get("fit", "letterbox")
    data = OvarianTumorDataModule(str(root), image_size=size, fit=fit, num_workers=0)
    data.prepare_data()

    image_of_stem = {}
    mask_of_stem = {}
    for split in SPLITS:
        dataset = data.dataset(split)
        for index, pair in enumerate(dataset.pairs):
            image, mask = dataset.load(index)
            image_of_stem[pair.stem] = image
            mask_of_stem[pair.stem] = mask
    images = np.stack([image_of_stem[stem] for stem in stems])
    masks = np.stack([mask_of_stem[stem] for stem in stems])
    return images, masks


def draw_sets(
    groups: np.ndarray, categories: list[int], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Indices of the training and test images of `random`, `clean` and `groups`.

    All training sets have the same size.

    Args:
        groups: group of near-duplicates of each image, int, (N,).
        categories: category of each image; groups are assigned so that each split has its share.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    test_count = round(TEST_SHARE * len(groups))
    test = order[:test_count]
    rest = order[test_count:]

    is_related = np.isin(groups[rest], groups[test])
    relatives = rest[is_related]
    clean_train = rest[~is_related]
    kept = rng.permutation(clean_train)[: len(clean_train) - len(relatives)]
    random_train = np.concatenate([relatives, kept])

    shares = {"train": 1 - TEST_SHARE, "test": TEST_SHARE}
    split_of_image = np.array(deal_groups(groups.tolist(), categories, shares, seed))
    groups_train = rng.permutation(np.flatnonzero(split_of_image == "train"))
    groups_test = rng.permutation(np.flatnonzero(split_of_image == "test"))[:test_count]

    size = min(len(clean_train), len(groups_train))
    return {
        "random": (rng.permutation(random_train)[:size], test),
        "clean": (rng.permutation(clean_train)[:size], test),
        "groups": (rng.permutation(groups_train)[:size], groups_test),
    }


def _train_and_score(
    dataset: Dataset,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    epochs: int,
    device: torch.device,
    title: str,
) -> np.ndarray:
    """Train a network on the images `train` and score it on the images `test`.

    Returns:
        Hard Dice of each test image, float32; NaN if mask and prediction are empty.
    """
    torch.manual_seed(seed)
    network = build_model("flexible_unet", **NETWORK, normalization=True).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    loss_function = build_loss("bce_dice_loss")
    steps = len(train) // BATCH_SIZE * epochs  # a short last batch is left out
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    transform = build_transform(AUGMENTATION)
    rng = np.random.default_rng(seed)

    for _ in progress_bar(range(epochs), title):
        order = rng.permutation(train)
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            indices = order[start : start + BATCH_SIZE]
            seeds = rng.integers(2**32, size=BATCH_SIZE)
            images, masks = _augment_images(dataset, indices, transform, seeds)
            logits = network(_to_batch(images, device))
            loss = loss_function(logits, _to_batch(masks, device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _score(network.eval(), dataset.images[test], dataset.masks[test], device)


def _augment_images(
    dataset: Dataset, indices: np.ndarray, transform: Any, seeds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, S, S, 3) and masks (N, S, S, 1) of a batch, each augmented with its seed."""
    images = []
    masks = []
    for index, seed in zip(indices, seeds, strict=True):
        image, mask = augment(transform, dataset.images[index], dataset.masks[index], int(seed))
        images.append(image)
        masks.append(mask)
    return np.stack(images), np.stack(masks)[..., None]


@torch.inference_mode()
def _score(
    network: torch.nn.Module, images: np.ndarray, masks: np.ndarray, device: torch.device
) -> np.ndarray:
    """Hard Dice of each image, float32 (N,)."""
    scores = []
    for start in range(0, len(images), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        pred = predict(network(_to_batch(images[part], device)))
        mask = _to_batch(masks[part, ..., None], device)
        scores.append(hard_scores(pred, mask)["dice"].cpu())
    return torch.cat(scores).numpy()


def _to_batch(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """(N, S, S, C) -> (N, C, S, S) on the device."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)


def _write_report(rows: pd.DataFrame, settings: dict[str, Any], output: Path) -> dict[str, Any]:
    """Write `leakage.{csv,json,png}` and return the summary."""
    by_training = rows.groupby(["seed", "split"], sort=False).agg(
        dice=("dice", "mean"),
        images=("stem", "size"),
        train_images=("train_images", "first"),
        related=("related", "mean"),
    )
    write_table(output / "leakage.csv", by_training.reset_index())
    summary = {**settings, **summarise_leakage(rows)}
    write_json(output / "leakage.json", summary)
    draw_leakage(by_training["dice"].unstack(), summary["differences"], output / "leakage.png")
    return summary


def summarise_leakage(rows: pd.DataFrame) -> dict[str, Any]:
    """The means of the three kinds of splits, and what the leak adds.

    The intervals over images are for these trainings only: they do not say what another training
    would give.

    Args:
        rows: a row for each test image of each training: `seed`, `split`, `stem`, `dice`, `related`
            (an image of its group was trained on).

    Returns:
        `dice`: mean of each kind of split. `related_share`: share of random test images that have a
        relative in training. `differences`, each a mean with its 95 % interval: `random - groups`
        and `random - clean` over seeds (t; null for one seed), and `random - clean` over test
        images (bootstrap; an image with its mean over seeds): all, those with relatives, those
        without.
    """
    means = rows.groupby(["seed", "split"])["dice"].mean().unstack()
    differences = {}
    for kind in ("groups", "clean"):
        by_seed = means["random"] - means[kind]
        differences[f"random - {kind}, by split"] = _interval_over_seeds(by_seed)

    dice = rows.pivot_table("dice", ["seed", "stem"], "split", sort=False)
    by_image = (dice["random"] - dice["clean"]).dropna()
    random_rows = rows[rows["split"] == "random"]
    related = random_rows.set_index(["seed", "stem"])["related"].astype(bool)
    is_related = related.reindex(by_image.index)
    differences["random - clean, all"] = _interval_over_images(by_image)
    differences["random - clean, with relatives"] = _interval_over_images(by_image[is_related])
    differences["random - clean, without"] = _interval_over_images(by_image[~is_related])

    return {
        "dice": means.mean().to_dict(),
        "related_share": float(random_rows["related"].mean()),
        "differences": differences,
    }


def _interval_over_seeds(values: pd.Series) -> dict[str, Any]:
    """Mean over seeds, and its 95 % interval by Student's t."""
    mean = values.mean()
    interval = None
    if len(values) > 1:
        reach = student.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
        interval = [float(mean - reach), float(mean + reach)]
    return {"mean": float(mean), "ci95": interval, "count": len(values)}


def _interval_over_images(values: pd.Series) -> dict[str, Any]:
    """Mean over images, each with its mean over seeds, and its 95 % interval by the bootstrap."""
    by_stem = values.groupby("stem").mean().to_numpy()
    return {
        "mean": float(by_stem.mean()) if len(by_stem) else None,
        "ci95": mean_interval(by_stem),
        "count": len(by_stem),
    }


def print_leakage(summary: dict[str, Any]) -> None:
    """What `measure_leakage` found, as a table on the terminal."""
    rows = []
    for name, found in summary["differences"].items():
        mean = "none" if found["mean"] is None else f"{found['mean']:+.4f}"
        interval = ""
        if found["ci95"] is not None:
            low, high = found["ci95"]
            interval = f"{low:+.4f} .. {high:+.4f}"
        rows.append((name, mean, interval, str(found["count"])))
    dice = ", ".join(f"{name} {value:.4f}" for name, value in summary["dice"].items())
    share = 100 * summary["related_share"]
    title = (
        f"mean test Dice: {dice}. {share:.0f} % of random test images have a near-duplicate in "
        "training."
    )
    print_table(("difference of Dice", "mean", "95 % interval", "of"), rows, title)
