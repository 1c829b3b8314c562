"""The target's images in a batch: which, from where, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation.data import AdaptationDataModule, TargetImages
from ovseg.core.errors import InputError
from ovseg.data.pictures import read_image
from ovseg.data.prepare.phantoms import write_phantoms


@pytest.fixture
def make_data(phantom_root, ceus_root):
    """A data module of 32 x 32 in batches of 4: 14 images of the source, 8 of the target."""

    def make(target=ceus_root, augmentation: str = "none", **options) -> AdaptationDataModule:
        settings = {"image_size": 32, "batch_size": 4, "num_workers": 0, "cache": False, **options}
        data = AdaptationDataModule(str(phantom_root), **settings)
        data.add_target(str(target), augmentation)
        return data

    return make


def read_epoch(data: AdaptationDataModule) -> dict[str, torch.Tensor]:
    """The target's image beside each image of the source, by its stem."""
    images = {}
    for batch in data.train_dataloader():
        images |= dict(zip(batch["stem"], batch["target"], strict=True))
    return images


def test_each_image_of_the_source_comes_with_one_of_the_target(make_data, ceus_root):
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    assert batch["target"].shape == batch["image"].shape == (4, 3, 32, 32)
    assert batch["target"].dtype == torch.uint8
    known = []
    for path in (ceus_root / "train" / "images").iterdir():
        known.append(torch.from_numpy(read_image(path)).permute(2, 0, 1))
    for image in read_epoch(data).values():
        assert any(torch.equal(image, other) for other in known)


def test_drawn_images_do_not_depend_on_workers_or_batches(make_data):
    alone = read_epoch(make_data(augmentation="flips"))
    batches = read_epoch(make_data(augmentation="flips", batch_size=7))
    workers = read_epoch(make_data(augmentation="flips", num_workers=1))
    assert len(alone) == 14
    for other in (batches, workers):
        assert all(torch.equal(alone[stem], other[stem]) for stem in alone)


def test_epochs_and_seeds_draw_other_images(make_data):
    data = make_data()
    loader = data.train_dataloader()
    first = torch.cat([batch["target"] for batch in loader])
    loader.sampler.set_epoch(1)
    second = torch.cat([batch["target"] for batch in loader])
    other = read_epoch(make_data(seed=7))
    assert not torch.equal(first, second)
    assert any(not torch.equal(image, other[stem]) for stem, image in read_epoch(data).items())


def test_target_is_as_large_as_what_the_augmentation_cuts_of_the_source(phantom_root, ceus_root):
    settings = {"image_size": 56, "batch_size": 2, "num_workers": 0, "cache": False}
    data = AdaptationDataModule(str(phantom_root), augmentation="mmotu", **settings)
    data.add_target(str(ceus_root), "distortion", "stretch")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[-2:] == batch["target"].shape[-2:] == (48, 48)


def test_target_smaller_than_a_batch_is_drawn_again(make_data, ceus_root, tmp_path):
    path = next((ceus_root / "train" / "images").iterdir())
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.png").write_bytes(path.read_bytes())
    data = make_data(tmp_path / "one")
    data.prepare_data()
    images = list(read_epoch(data).values())
    assert len(images) == 14
    assert all(torch.equal(image, images[0]) for image in images)


def test_pictures_of_another_size_are_placed_as_those_of_the_source(make_data, save_png, tmp_path):
    """20 x 40 in a letterbox of 32: 16 rows of picture between 8 black rows above and below."""
    save_png(tmp_path / "wide" / "a.png", np.full((20, 40, 3), 200, np.uint8))
    image = next(iter(read_epoch(make_data(tmp_path / "wide")).values()))
    assert (image[:, 8:24] == 200).all()
    assert (image[:, :8] == 0).all() and (image[:, 24:] == 0).all()


def test_borders_of_a_letterboxed_target_are_left_out_where_it_is_stretched(
    make_data, run_command, save_png, tmp_path
):
    rng = np.random.default_rng(0)
    for stem in range(12):
        pixels = rng.integers(100, 256, (20, 40, 3), dtype=np.uint8)
        save_png(tmp_path / "raw" / "images" / f"{stem}.png", pixels)
        mask = np.zeros((20, 40), np.uint8)
        mask[5:9, stem : stem + 6] = 255
        save_png(tmp_path / "raw" / "masks" / f"{stem}.png", mask)
    command = ["prepare_data", "--source", tmp_path / "raw", "--output", tmp_path / "prepared"]
    assert run_command(*command, "--size", 32, "--allow_leakage") == 0
    data = make_data(tmp_path / "prepared", fit="stretch")
    for image in read_epoch(data).values():
        assert (image > 0).all()


def test_validation_and_test_have_the_source_alone(make_data):
    data = make_data()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert "target" not in next(iter(loader))


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_target_without_pictures_is_refused(kind, make_data, tmp_path):
    if kind == "empty":
        (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"There is no folder .*{kind}|{kind} holds no picture"):
        make_data(tmp_path / kind)


def test_damaged_pictures_of_the_target_are_named_before_training(make_data, save_png, tmp_path):
    save_png(tmp_path / "t" / "good.png", np.zeros((8, 8, 3), np.uint8))
    for name in ("a", "b"):
        (tmp_path / "t" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"(?s)a\.png.*b\.png"):
        make_data(tmp_path / "t").prepare_data()


def test_damaged_picture_found_by_a_worker_is_named(make_data, save_png, tmp_path):
    path = save_png(tmp_path / "t" / "only.png", np.zeros((8, 8, 3), np.uint8))
    data = make_data(tmp_path / "t", num_workers=1)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"only\.png"):
        read_epoch(data)


def test_source_as_its_own_target_is_refused(make_data, phantom_root):
    with pytest.raises(InputError, match="are both .*phantoms, so there is nothing to adapt to"):
        make_data(phantom_root)


def test_copies_of_the_source_as_target_are_refused(make_data, phantom_root, tmp_path):
    for number, path in enumerate((phantom_root / "train" / "images").iterdir()):
        (tmp_path / f"renamed_{number}.png").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="the same 14 images as the train split"):
        make_data(tmp_path).prepare_data()


def test_digest_of_the_target_follows_its_images_alone(ceus_root, make_data, tmp_path):
    digest = make_data().target_digest()
    paths = sorted((ceus_root / "train" / "images").iterdir())
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert make_data(tmp_path).target_digest() == digest
    Image.new("RGB", (32, 32)).save(tmp_path / paths[0].name)
    assert make_data(tmp_path).target_digest() != digest


def test_panels_are_one_target_too(tmp_path):
    write_phantoms(tmp_path / "panels", 10, size=32, look="panels")
    target = TargetImages(tmp_path / "panels", 32, "letterbox")
    assert target.draw(0).shape == (32, 32, 3)
