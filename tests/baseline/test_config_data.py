"""What the keys of the baseline's INI file that concern pictures do to pixels and to training."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.baseline.config import convert_baseline_config, read_baseline_config
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule

SIDE = 32


@pytest.fixture
def jpeg_root(tmp_path):
    """A dataset of JPEGs, as the baseline's: coloured noise, and ellipses with soft edges."""
    generator = np.random.default_rng(0)
    root = tmp_path / "set"
    for split, count in (("train", 5), ("valid", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            image = cv2.blur(image, (9, 9))
            mask = np.zeros((SIDE, SIDE), np.uint8)
            cv2.ellipse(mask, (16, 12 + number), (9, 6), 20, 0, 360, 255, -1)
            name = f"{split}_{number}.jpg"
            Image.fromarray(image).save(root / split / "images" / name, quality=95)
            Image.fromarray(mask).save(root / split / "masks" / name, quality=50)
    return root


@pytest.fixture
def write_sections(tmp_path):
    """A function that writes a configuration with more sections: name -> text of its keys."""

    def write(model: str = "", train: str = "epochs = 9", **sections: str):
        text = f"""[model]
image_width = {SIDE}
image_height = {SIDE}
base_filters = 2
num_layers = 3
dropout_rate = 0.05
learning_rate = 0.001
loss = "bce_dice_loss"
{model}
[train]
batch_size = 2
{train}
"""
        for name, keys in sections.items():
            text += f"[{name}]\n{keys}\n"
        path = tmp_path / "train_eval_infer.config"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def read_first(write_sections, jpeg_root):
    """A function from sections to the first image and mask of train, as `import` reads them."""

    def read(**sections: str) -> tuple[np.ndarray, np.ndarray]:
        data = read_baseline_config(write_sections(**sections))["data"]
        data |= {"root": str(jpeg_root), "cache": False, "num_workers": 0}
        item = OvarianTumorDataModule(**data).dataset("train")[0]
        return item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy()

    return read


def grey_of(root) -> np.ndarray:
    """The grey values of the first mask of train, as OpenCV reads it for the baseline."""
    mask = cv2.imread(str(root / "train" / "masks" / "train_0.jpg"))
    return cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY)


def table_of(path) -> dict[str, tuple[str, str]]:
    return {key: (text, becomes) for key, text, becomes in convert_baseline_config(path).rows}


BASE = 'datasetclass = "BaseImageMaskDataset"'


def test_plain_class_takes_every_grey_value_as_lesion(read_first, jpeg_root):
    grey = grey_of(jpeg_root)
    assert ((grey > 0) != (grey > 127)).sum() > 20  # the noise of JPEG
    mask = "binarize = True\nthreshold = 200\nblur = True"
    _, labels = read_first(dataset=BASE, mask=mask)
    assert np.array_equal(labels, grey > 0)


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ("", 0),
        ("blur = True", 3),
        ("binarize = False\nthreshold = 60", 0),
        ("blur = True\nblur_size = (5,5)", 5),
    ],
)
def test_opencv_class_blurs_grey_values(read_first, jpeg_root, keys, size):
    grey = grey_of(jpeg_root)
    if size:
        grey = cv2.blur(grey, (size, size))
    assert np.array_equal(read_first(mask=keys)[1], grey.astype(bool))


@pytest.mark.parametrize("blur", [False, True])
def test_opencv_class_binarises_and_blurs(read_first, jpeg_root, blur):
    grey = grey_of(jpeg_root)
    grey[grey < 60] = 0
    grey[grey >= 60] = 255
    if blur:
        grey = cv2.blur(grey, (3, 3))
    _, labels = read_first(mask=f"binarize = True\nthreshold = 60\nblur = {blur}")
    assert np.array_equal(labels, grey.astype(bool))


def test_threshold_of_opencv_is_exclusive(write_sections):
    mask = 'binarize = True\nthreshold = 60\nalgorithm = "cv2.THRESH_BINARY"'
    assert read_baseline_config(write_sections(mask=mask))["data"]["mask_threshold"] == 60


def test_opencv_class_resizes_by_nearest_neighbour(write_sections):
    path = write_sections()
    assert read_baseline_config(path)["data"]["fit"] == "stretch_nearest"
    path = write_sections(dataset='resize_interpolation = "cv2.INTER_CUBIC"')
    assert read_baseline_config(path)["data"]["fit"] == "stretch"
    assert "cubic where it enlarges" in table_of(path)["dataset.resize_interpolation"][1]
    path = write_sections(dataset=BASE)
    assert read_baseline_config(path)["data"]["fit"] == "stretch"


@pytest.mark.parametrize(
    ("sections", "bgr"),
    [
        ({}, True),
        ({"dataset": BASE}, False),
        ({"dataset": BASE, "model": "generator = True"}, True),
        ({"dataset": 'datasetclass = "ImageMaskDataset"\ncolor_order = "rgb"'}, True),
    ],
)
def test_opencv_class_and_generator_read_bgr(write_sections, sections, bgr):
    config = convert_baseline_config(write_sections(**sections))
    assert config.bgr is bgr
    row = {key: becomes for key, _, becomes in config.rows}["dataset.datasetclass"]
    assert ("channels exchanged" in row) is bgr


def test_image_normalize_divides_once_more(write_sections):
    path = write_sections(dataset="image_normalize = True")
    scale = read_baseline_config(path)["model"]["arch_args"]["input_scale"]
    assert scale == pytest.approx(1 / 255**2)
    path = write_sections(model="input_normalize = False", dataset="image_normalize = True")
    scale = read_baseline_config(path)["model"]["arch_args"]["input_scale"]
    assert scale == pytest.approx(1 / 255)
    path = write_sections(model="generator = True", dataset="image_normalize = True")
    scale = read_baseline_config(path)["model"]["arch_args"]["input_scale"]
    assert scale == pytest.approx(1 / 255)


def test_image_normalize_holds_for_other_networks(write_sections):
    model = 'model = "TensorflowAttentionUNet"'
    path = write_sections(model=model, dataset="image_normalize = True")
    scale = read_baseline_config(path)["model"]["arch_args"]["input_scale"]
    assert scale == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("key", "value"),
    [("gamma", "1.5"), ("sharpening", "1"), ("color_converter", '"cv2.COLOR_BGR2HSV"')],
)
@pytest.mark.parametrize("section", ["image", "dataset"])
def test_changed_colours_are_refused_where_training_has_them(write_sections, section, key, value):
    path = write_sections(**{section: f"{key} = {value}"})
    with pytest.raises(InputError, match=f"{key} = .* changes the pictures that the network is"):
        read_baseline_config(path)
    text = f"{key} = {value}"
    sections = {"dataset": f"{BASE}\n{text}"} if section == "dataset" else {"image": text}
    table = table_of(write_sections(**{"dataset": BASE} | sections))
    assert table[f"{section}.{key}"][1].startswith("infer --as_baseline")


@pytest.mark.parametrize(
    ("sections", "share"),
    [
        ({}, 0.2),
        ({"eval": 'image_datapath = "set/valid/images"'}, None),
        (
            {
                "train": "epochs = 9\ndataset_splitter = True",
                "eval": 'image_datapath = "set/valid/images"',
            },
            0.2,
        ),
    ],
)
def test_last_fifth_of_train_validates(write_sections, jpeg_root, sections, share):
    data = read_baseline_config(write_sections(**sections))["data"]
    assert data.get("valid_share") == share
    module = OvarianTumorDataModule(**data | {"root": str(jpeg_root), "cache": False})
    expected = ["valid_0", "valid_1"] if share is None else ["train_4"]
    assert [pair.stem for pair in module.pairs("valid")] == expected
    assert len(module.pairs("train")) == (5 if share is None else 4)


def test_generator_draws_batches_of_variants(write_sections, jpeg_root):
    train = "epochs = 9\nsteps_per_epoch = 7\nvalidation_steps = 3"
    path = write_sections(model="generator = True", train=train, augmentor="vflip = Fale")
    data = read_baseline_config(path)["data"]
    assert data["augmentation"] == "baseline"
    assert data["shuffle"] is True
    module = OvarianTumorDataModule(
        **data | {"root": str(jpeg_root), "cache": False, "num_workers": 0}
    )
    batches = list(module.train_dataloader())
    assert [len(batch["stem"]) for batch in batches] == [2] * 7
    table = table_of(path)
    assert table["augmentor.vflip"] == (
        "Fale",
        "data.augmentation_args.vflip (True, the baseline's default for what is no Python)",
    )
    assert table["train.validation_steps"][1].startswith("ignored: every image of valid")


def test_generator_has_400_steps_and_no_augmentation_if_asked(write_sections):
    path = write_sections(model="generator = True", generator="augmentation = False")
    data = read_baseline_config(path)["data"]
    assert data["steps_per_epoch"] == 400
    assert data["augmentation"] == "none"


def test_steps_without_a_generator_are_ignored(write_sections):
    path = write_sections(train="epochs = 9\nsteps_per_epoch = 320", augmentor="hflip = False")
    assert "steps_per_epoch" not in read_baseline_config(path)["data"]
    table = table_of(path)
    assert table["train.steps_per_epoch"][1] == "ignored: model.generator is False"
    assert table["augmentor.hflip"][1] == "ignored: model.generator is False"


CENTERS = "[(0.3, 0.3), (0.7, 0.7)]"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"augmentor": "hflip = False"}, {"hflip": False, "vflip": True}),
        ({"augmentor": "vflip = Fale"}, {"vflip": True}),
        ({"augmentor": "vflip ="}, {"vflip": True}),
        ({}, {"angles": [90, 180, 270], "shrinks": [0.8], "shears": []}),
        ({"augmentor": "angles = [90. 180, 270,]"}, {"angles": [90, 180, 270]}),
        ({"augmentor": "angles = [30, 60]"}, {"angles": [30, 60]}),
        ({"augmentor": "rotation = False\nangles = [30]"}, {"angles": []}),
        ({"augmentor": "shrinks = [0.6, 0.8]\nshears = [0.1]"}, {"shrinks": [0.6, 0.8]}),
        ({"augmentor": "shrinks = (0.6, 0.8)"}, {"shrinks": []}),
        (
            {"augmentor": "deformation = True"},
            {"deformation_sigmas": [8], "deformation_alpha": 1300},
        ),
        (
            {"augmentor": "deformation = True", "deformation": "alpah = 90\nsigmoids = [8.5, 10]"},
            {"deformation_sigmas": [8, 10], "deformation_alpha": 90},
        ),
        (
            {"augmentor": "deformation = True", "deformation": "sigmoids = []\nsigmoid = 6"},
            {"deformation_sigmas": [6]},
        ),
        (
            {"augmentor": "distortion = True", "distortion": "distortions = [0.01, 0.03]"},
            {"distortions": [0.01, 0.03], "distortion_sigma": 40},
        ),
        (
            {"augmentor": "barrdistortion = True", "barrdistortion": f"centers = {CENTERS}"},
            {"barrel_centers": [[0.3, 0.3], [0.7, 0.7]], "barrel_radius": 0.5},
        ),
        (
            {"augmentor": "pincdistortion = True", "pincdistortion": "amount = -0.3"},
            {"pincushion_centers": [[0.5, 0.5]], "pincushion_amount": -0.3},
        ),
        ({"augmentor": "sharpening = True"}, {"sharpening": 1.0}),
        ({"augmentor": "brightening = True"}, {"brightening": [1.2, 10]}),
        # Both are one attribute in the baseline.
        (
            {"augmentor": "brightening = True\ndeformation = True"},
            {"deformation_alpha": 1.2, "brightening": [1.2, 10]},
        ),
    ],
)
def test_keys_of_the_augmentor_are_arguments_of_the_pipeline(write_sections, sections, expected):
    path = write_sections(model="generator = True", **sections)
    data = read_baseline_config(path)["data"]
    for name, value in expected.items():
        assert data["augmentation_args"][name] == value
    OvarianTumorDataModule(**data)  # takes them


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dataset": 'datasetclass = "MyDataset"'}, "Unknown dataset class of the baseline"),
        ({"dataset": 'resize_interpolation = "cv2.INTER_LANCZOS4"'}, "Unknown resize_interp"),
        ({"mask": "binarize = True"}, "no key 'threshold' in section .mask."),
        ({"mask": "binarize = True\nthreshold = 0"}, "threshold is 0, expected 1..255"),
        (
            {"mask": 'binarize = True\nthreshold = 9\nalgorithm = "cv2.THRESH_OTSU"'},
            "algorithm is 'cv2.THRESH_OTSU', expected None",
        ),
        (
            {"mask": "blur = True\nblur_size = (0,0)"},
            r"blur_size is \(0, 0\), expected sides of at least 1",
        ),
        (
            {"mask": "binarize = True\nthreshold = 3\nblur = True"},
            "threshold 3 is too low for a blur of 3 x 3 pixels",
        ),
        (
            {"model": "generator = True", "augmentor": "angles = 90"},
            "angles is 90, expected a list of finite numbers",
        ),
        (
            {"model": "generator = True", "augmentor": "shrinks = [1e999]"},
            "shrinks is .inf., expected a list of finite numbers",
        ),
        (
            {
                "model": "generator = True",
                "augmentor": "barrdistortion = True",
                "barrdistortion": "centers = [0.5]",
            },
            "centers is .0.5., expected a list of pairs",
        ),
    ],
)
def test_what_ovseg_does_not_do_is_refused(write_sections, sections, message):
    with pytest.raises(InputError, match=message):
        read_baseline_config(write_sections(**sections))
