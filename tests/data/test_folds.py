"""`data.fold`: who is trained on and who is held out, the shared caches, and what refuses to mix folds."""

import json
import pickle
import shutil

import pytest
import torch

from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.manifest import read_folds
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.evaluation.evaluate import Evaluation
from ovseg.training.task import SegmentationTask


def make(root, fold, **options):
    options = {"image_size": 48, "batch_size": 4, "num_workers": 0, **options}
    return OvarianTumorDataModule(str(root), fold=fold, **options)


def stems(pairs) -> list[str]:
    return [pair.stem for pair in pairs]


@pytest.fixture
def own_root(fold_root, tmp_path):
    """A copy of the phantoms with folds, without a cache, that a test may spoil."""
    return shutil.copytree(fold_root, tmp_path / "own", ignore=shutil.ignore_patterns(".cache"))


def test_folds_are_complementary_and_leave_test_alone(fold_root):
    held_out = []
    for fold in range(3):
        data = make(fold_root, fold)
        train, valid, test = (stems(data.pairs(split)) for split in ("train", "valid", "test"))
        assert not set(train) & set(valid) and len(train) + len(valid) == 17
        assert test == stems(make(fold_root, None).pairs("test"))
        assert valid == [f"phantom_{n}" for n in range(17) if n % 3 == fold]  # natural order
        held_out += valid
    assert sorted(held_out) == sorted(f"phantom_{n}" for n in range(17))


def test_batches_of_a_fold_are_the_decoded_ones_from_the_splits_own_caches(own_root):
    def batches(**options) -> list:
        data = make(own_root, 1, shuffle=False, **options)
        data.prepare_data()
        return [
            batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader
        ]

    plain = batches(cache=False)
    for augmentation in ("none", "standard"):
        decoded, cached = (
            batches(cache=cache, augmentation=augmentation) for cache in (False, True)
        )
        assert [batch["stem"] for batch in cached] == [batch["stem"] for batch in plain]
        assert all(
            torch.equal(a[k], b[k])
            for a, b in zip(decoded, cached, strict=True)
            for k in ("image", "mask")
        )
    files = sorted((own_root / ".cache").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    for fold in (None, 0, 2):
        make(own_root, fold).prepare_data()
    assert (
        sorted((own_root / ".cache").iterdir()) == files and len(files) == 3
    )  # one a split, whatever the fold
    assert [path.stat().st_mtime_ns for path in files] == times


def test_cached_fold_travels_to_a_worker_and_a_stale_cache_is_not_used(own_root):
    make(own_root, 0).prepare_data()
    dataset = make(own_root, 0).dataset("train")
    assert (
        torch.equal(pickle.loads(pickle.dumps(dataset))[7]["image"], dataset[7]["image"])
        and dataset.cache
    )
    path = next(iter((own_root / ".cache").glob("valid-*")))
    path.write_bytes(path.read_bytes()[:-1])
    assert make(own_root, 0).dataset("train").cache is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: None,
            r"has no manifest.json, which tells the folds.*prepare_data.py .* --folds 5",
        ),
        (
            lambda manifest: {**manifest, "made_by": "prepare_data", "items": []},
            r"has no folds. .*prepare_data.py --source",
        ),
        (
            lambda manifest: {**manifest, "items": []},
            r"has no folds. .*make_phantoms.py .* --count 20 .* --folds 5",
        ),
        (
            lambda manifest: {**manifest, "items": manifest["items"][1:]},
            "1 images of .* have no fold .*train/phantom_0",
        ),
    ],
)
def test_manifest_without_the_folds_is_an_error_with_the_command(own_root, change, message):
    path = own_root / "manifest.json"
    manifest = change(json.loads(path.read_text()))
    path.write_text(json.dumps(manifest)) if manifest else path.unlink()
    with pytest.raises(InputError, match=message):
        make(own_root, 0).prepare_data()
    assert (
        len(make(own_root, None).pairs("train")) == 14
    )  # without a fold the manifest is not asked


@pytest.mark.parametrize("fold", [-1, 3])
def test_fold_out_of_range_is_an_error(fold_root, fold):
    with pytest.raises(InputError, match=rf"data.fold is {fold}, but .* has the folds 0..2"):
        make(fold_root, fold).prepare_data()


def test_another_number_of_folds_than_expected_is_an_error(fold_root):
    assert len(read_folds(fold_root, 3)) == 17
    with pytest.raises(InputError, match="has 3 folds, expected 5. .* --folds 5 --overwrite"):
        read_folds(fold_root, 5)


def test_excluding_a_whole_fold_is_an_error(fold_root):
    excluded = [f"phantom_{n}" for n in range(1, 17, 3)]
    assert len(make(fold_root, 0, exclude=excluded).pairs("train")) == 5
    with pytest.raises(InputError, match="data.exclude leaves fold 1 of .* no image for valid"):
        make(fold_root, 1, exclude=excluded).prepare_data()


def test_phantoms_take_two_to_eight_folds(tmp_path):
    with pytest.raises(InputError, match="--folds is 9, expected 2..8"):
        write_phantoms(tmp_path / "new", 10, 32, folds=9)
    assert (
        main(f"make_phantoms --output {tmp_path}/new --count 10 --size 32 --folds 8".split()) == 0
    )
    assert len(set(read_folds(tmp_path / "new").values())) == 8


@pytest.fixture
def checkpoint(own_root, tmp_path):
    """A checkpoint of an untrained network for fold 1 of own_root."""
    from pytorch_lightning import Trainer

    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    task = SegmentationTask(
        arch_args={"base_filters": 2, "num_layers": 3}, optimizer_args={"lr": 1e-3}
    )
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, limit_train_batches=1, **options
    )
    trainer.fit(task, make(own_root, 1))
    trainer.save_checkpoint(tmp_path / "fold.ckpt")
    return tmp_path / "fold.ckpt"


def test_evaluation_of_valid_scores_the_fold_with_its_categories(checkpoint, own_root):
    table, summary = Evaluation(checkpoint, "valid", device="cpu").run()
    assert (
        table["stem"].tolist() == [f"phantom_{n}" for n in range(1, 17, 3)]
        and summary["images"] == 6
    )
    assert "unknown" not in set(table["category"])


def test_evaluation_refuses_a_fold_that_was_dealt_anew(checkpoint, own_root):
    manifest = json.loads((own_root / "manifest.json").read_text())
    for item in manifest["items"]:
        item["fold"] = None if item["fold"] is None else (item["fold"] + 1) % 3
    (own_root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match="Fold 1 of .* holds other images than when the checkpoint was trained"
    ):
        Evaluation(checkpoint, "valid", device="cpu")
    assert Evaluation(checkpoint, "test", device="cpu").describe()["images"] == 3


def test_resume_refuses_another_fold(checkpoint, own_root, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train"])
    arguments = [
        "--ckpt_path",
        str(checkpoint),
        "--data.root",
        str(own_root),
        "--trainer.max_epochs",
        "2",
    ]
    arguments += [
        "--model.arch_args",
        '{"base_filters": 2, "num_layers": 3}',
        "--model.optimizer_args.lr",
        "0.001",
    ]
    assert main(["train", *arguments, "--data.fold", "0"]) == 2
    assert "was trained with data.fold 1, but the configuration has 0" in capsys.readouterr().err
