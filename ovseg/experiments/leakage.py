"""How much near-duplicates across a split add to the test score: the same small network on splits with and without.

For each seed three trainings of as many images, from the same initial weights, with the same steps:

- `random`: a random tenth is the test set, the network trains on the rest, the test images' relatives among them;
- `clean`: the same test set, but its relatives (images of the same groups) are left out of training;
- `groups`: whole groups are dealt, so another test set, without relatives in training.

`random` and `groups` are what people compare, on different test images. `random` and `clean` differ only in the
relatives, so their difference of each test image is the leak itself (and of whatever else the groups share: some hold
look-alikes). To have one size, `random` and `groups` leave out
as many images drawn by chance as `clean` leaves out relatives. The network of the last epoch is scored: no choice of
epoch, so no validation set.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from ovseg.core.console import progress_bar
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.core.files import write_json, write_table
from ovseg.core.plots import draw_leakage
from ovseg.core.statistics import mean_interval
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.manifest import read_manifest
from ovseg.data.prepare.splits import deal_groups
from ovseg.metrics import hard_scores, predict
from ovseg.models import build_model
from ovseg.training.losses import build_loss

SPLITS = ("random", "clean", "groups")
NETWORK = {"base_filters": 8, "base_kernel": 3, "num_layers": 5, "dilation": 1, "dropout_rate": 0.0}
COLUMNS = {
    "seed": int,
    "split": str,
    "stem": str,
    "dice": float,
    "train_images": int,
    "related": bool,
}
BATCH, RATE, TEST = 16, 2e-3, 0.1  # the rate falls to zero along a half cosine


def measure_leakage(
    root: Path,
    output: Path,
    seeds: int = 3,
    image_size: int = 64,
    epochs: int = 15,
    device: str = "auto",
) -> dict[str, Any]:
    """Train and score `random`, `clean` and `groups` for every seed; writes `images.csv`, `leakage.{csv,json,png}`.

    Called again with the same settings it goes on where it was stopped: finished trainings are kept.

    Args:
        root: a dataset that `prepare_data` wrote, of any split: all its pairs are pooled, its groups are used.
        output: folder of the results.
        seeds: repetitions, each with splits and initial weights of its own; at least 2 give an interval.
        image_size: side of the squares, pixels, a multiple of 16.
        epochs: of each training.
        device: see `ovseg.inference.predictor.choose_device`.

    Returns:
        The summary, see `summarise_leakage`.

    Raises:
        InputError: no groups in the manifest, a setting out of range, or `output` holds results of other settings.
    """
    if seeds < 1 or epochs < 1 or image_size < 16 or image_size % 16:
        raise InputError(
            f"--seeds {seeds} and --epochs {epochs} must be at least 1, --image-size {image_size} a multiple of 16."
        )
    stems, groups, strata = _read_groups(root)
    digest = hashlib.sha256(repr((stems.tolist(), groups.tolist(), strata)).encode()).hexdigest()
    settings = {
        "image_size": image_size,
        "epochs": epochs,
        "images": len(stems),
        "groups_sha256": digest,
    }
    settings |= {"network": NETWORK, "batch": BATCH, "rate": RATE, "augmentation": "standard"}
    done = _read_done(output, settings)
    images, masks = _read_pairs(root, stems, image_size)
    write_json(output / "settings.json", settings)
    device = choose_device(device)
    for seed in range(seeds):
        sets = draw_sets(groups, strata, seed)
        for name in SPLITS:
            if ((done["seed"] == seed) & (done["split"] == name)).any():
                continue
            train, test = sets[name]
            dice = _train_and_score(
                images, masks, train, test, seed, epochs, device, f"seed {seed}, {name}"
            )
            related = np.isin(groups[test], groups[train])
            rows = {
                "seed": seed,
                "split": name,
                "stem": stems[test],
                "dice": dice,
                "train_images": len(train),
            }
            done = pd.concat(
                [done, pd.DataFrame({**rows, "related": related})], ignore_index=True
            ).astype(COLUMNS)
            write_table(output / "images.csv", done)
    return _report(done[done["seed"] < seeds], settings, output)


def _read_groups(root: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Stem, group and category of every image of a prepared dataset."""
    items = read_manifest(root).get("items", [])
    if not items or any("group" not in item for item in items):
        raise InputError(
            f"{root} has no manifest.json with groups. Make it: python scripts/prepare_data.py."
        )
    if len(items) < 30:
        raise InputError(
            f"{root} has {len(items)} images, too few to measure leakage, expected at least 30."
        )
    stems, groups = (
        np.array([item["stem"] for item in items]),
        np.array([item["group"] for item in items]),
    )
    return stems, groups, [item["category"] for item in items]


def _read_pairs(root: Path, stems: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in the order of `stems`: uint8 (N, S, S, 3) and (N, S, S) of 0 and 1."""
    fit = read_manifest(root).get("fit", "letterbox")
    data = OvarianTumorDataModule(str(root), image_size=size, fit=fit, num_workers=0)
    data.prepare_data()
    found = {}
    for split in ("train", "valid", "test"):
        dataset = data.dataset(split)
        found |= {pair.stem: dataset.load(i) for i, pair in enumerate(dataset.pairs)}
    images, masks = zip(*(found[stem] for stem in stems), strict=True)
    return np.stack(images), np.stack(masks)


def draw_sets(
    groups: np.ndarray, strata: list[int], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Indices of training and test images of `random`, `clean` and `groups`, all of one size.

    Args:
        groups: group of each image.
        strata: what the dealing of groups is stratified by.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    count = round(TEST * len(groups))
    test, rest = order[:count], order[count:]
    related = np.isin(groups[rest], groups[test])
    clean, strangers, relatives = rest[~related], rest[~related], rest[related]
    random = np.concatenate([relatives, rng.permutation(strangers)[: len(clean) - len(relatives)]])
    dealt = np.array(deal_groups(groups, strata, {"train": 1 - TEST, "test": TEST}, seed))
    of_groups = [rng.permutation(np.flatnonzero(dealt == name)) for name in ("train", "test")]
    size = min(len(clean), len(of_groups[0]))
    sets = {
        "random": (random, test),
        "clean": (clean, test),
        "groups": (of_groups[0], of_groups[1][:count]),
    }
    return {name: (rng.permutation(train)[:size], test) for name, (train, test) in sets.items()}


def _train_and_score(
    images: np.ndarray,
    masks: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    epochs: int,
    device: torch.device,
    title: str,
) -> np.ndarray:
    """Hard Dice of every test image after training; two empty maps give NaN."""
    torch.manual_seed(seed)
    network = build_model("flexible_unet", **NETWORK, normalization=True).to(device)
    optimizer, loss_function = (
        torch.optim.AdamW(network.parameters(), lr=RATE),
        build_loss("bce_dice_loss"),
    )
    steps = len(train) // BATCH * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    transform, rng = build_transform("standard"), np.random.default_rng(seed)
    for _ in progress_bar(range(epochs), title):
        order = rng.permutation(train)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen, draws = order[start : start + BATCH], rng.integers(2**32, size=BATCH)
            pairs = [
                augment(transform, images[i], masks[i], int(d))
                for i, d in zip(chosen, draws, strict=True)
            ]
            image, mask = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
            loss = loss_function(
                network(_to_batch(image, device)), _to_batch(mask[..., None], device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _score(network.eval(), images[test], masks[test], device)


@torch.inference_mode()
def _score(
    network: torch.nn.Module, images: np.ndarray, masks: np.ndarray, device: torch.device
) -> np.ndarray:
    scores = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        pred = predict(network(_to_batch(images[part], device)))
        scores.append(hard_scores(pred, _to_batch(masks[part, ..., None], device))["dice"].cpu())
    return torch.cat(scores).numpy()


def _to_batch(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)


def _read_done(output: Path, settings: dict[str, Any]) -> pd.DataFrame:
    """The rows of earlier trainings with the same settings."""
    path, described = output / "images.csv", output / "settings.json"
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not described.is_file()):
        raise InputError(
            f"{output} holds something else than leakage results. Choose another --output."
        )
    if described.is_file() and json.loads(described.read_text(encoding="utf-8")) != settings:
        raise InputError(f"{output} holds results of other settings. Choose another --output.")
    return (
        pd.read_csv(path, dtype={"stem": str})
        if path.is_file()
        else pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    )


def _report(rows: pd.DataFrame, settings: dict[str, Any], output: Path) -> dict[str, Any]:
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
    """The means of the three splits, and what the leak adds.

    Args:
        rows: a row for each test image of each training: `seed`, `split`, `stem`, `dice`, `related` (an image of its
            group was trained on).

    Returns:
        `dice`: mean of each split; `related_share`: of random test images; `differences`, each a mean with its 95 %
        interval: `random - groups` and `random - clean` over seeds (t; null for one seed), and `random - clean` over
        test images (bootstrap, an image with its mean over seeds): all of them, those with relatives, those without.
        The intervals over images are for these trainings: what another training would give is not in them.
    """
    table = rows.pivot_table("dice", ["seed", "stem"], "split", sort=False)
    means = rows.groupby(["seed", "split"])["dice"].mean().unstack()
    paired = (table["random"] - table["clean"]).dropna()
    related = (
        rows[rows["split"] == "random"]
        .set_index(["seed", "stem"])["related"]
        .astype(bool)
        .reindex(paired.index)
    )
    by_split = {
        f"random - {name}, by split": _over_seeds(means["random"] - means[name])
        for name in ("groups", "clean")
    }
    kinds = {"all": paired, "with relatives": paired[related], "without": paired[~related]}
    differences = by_split | {
        f"random - clean, {kind}": _over_images(values) for kind, values in kinds.items()
    }
    share = float(rows.loc[rows["split"] == "random", "related"].mean())
    return {"dice": means.mean().to_dict(), "related_share": share, "differences": differences}


def _over_seeds(values: pd.Series) -> dict[str, Any]:
    interval = None
    if len(values) > 1:
        reach = student.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
        interval = [float(values.mean() - reach), float(values.mean() + reach)]
    return {"mean": float(values.mean()), "ci95": interval, "count": len(values)}


def _over_images(values: pd.Series) -> dict[str, Any]:
    values = values.groupby("stem").mean().to_numpy()
    return {
        "mean": float(values.mean()) if len(values) else None,
        "ci95": mean_interval(values),
        "count": len(values),
    }
