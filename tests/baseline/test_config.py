"""The baseline's INI file to our YAML."""

import pytest
import torch
import yaml

from ovseg.baseline.config import (
    convert_baseline_config,
    explain_baseline_config,
    read_baseline_config,
)
from ovseg.core.errors import InputError
from ovseg.models import build_model
from support import REPOSITORY


def test_the_experiment_becomes_unet_yaml(experiment_file):
    ours = yaml.safe_load((REPOSITORY / "configs" / "unet.yaml").read_text())
    theirs = read_baseline_config(experiment_file)
    for key in ("fit", "mask_threshold"):  # of the author's JPEG masks; ours are PNG
        del theirs["data"][key]
    for section, values in theirs.items():
        for key, value in values.items():
            assert ours[section][key] == value, (section, key)


def test_experiment_network_has_124996849_parameters(experiment_file):
    model = read_baseline_config(experiment_file)["model"]
    with torch.device("meta"):
        network = build_model(model["arch"], **model["arch_args"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 124_996_849


def test_every_key_is_explained(experiment_file):
    table = explain_baseline_config(experiment_file)
    rows = {key: becomes for key, _, becomes in table}
    assert len(rows) == len(table)
    lines = experiment_file.read_text().splitlines()
    in_file = [key for key, text, _ in table if text != "(missing)"]
    assert len(in_file) == sum("=" in line for line in lines)
    assert all(rows.values())
    assert rows["model.base_kernels"] == "model.arch_args.base_kernel"
    assert rows["augmentor.vflip"].startswith("ignored: ")
    assert rows["mask.blur"].startswith("ignored: BaseImageMaskDataset takes every grey value")
    assert rows["train.reducer_factor"] == "model.scheduler_args.factor"
    assert rows["model.activation"] == (
        "model.arch_args.activation ('relu', the baseline's default)"
    )


# Every key that the baseline's published configurations have, with a value.
ALL_KEYS = """
[model] model "TensorflowUNet" | evaluation "test" | generator False | image_width 64
    image_height 64 | image_channels 3 | num_classes 1 | base_filters 2 | num_layers 3
    base_kernels (3,3) | dilation (1,1) | dropout_rate 0.05 | dropout_seed_fixing True
    input_normalize True | normalization False | activation "mish" | final_activation "sigmoid"
    learning_rate 1e-4 | clipvalue 0.5 | optimizer "AdamW" | loss "bce_dice_loss"
    metrics ["dice_coef"] | show_summary True
[dataset] datasetclass "ImageMaskDataset" | resize_interpolation "cv2.INTER_NEAREST"
    color_order "bgr" | image_normalize False | input_normalize False | image_format "rgb"
    rgb_mask False | mask_format "gray" | debug False
[train] epochs 9 | batch_size 2 | steps_per_epoch 320 | validation_steps 80 | patience 10
    metrics ["dice_coef"] | model_dir "./models" | eval_dir "./eval" | show_history True
    image_datapath "set/train/images/" | mask_datapath "set/train/masks/"
    epoch_change_infer True | epoch_change_infer_dir "./e" | epoch_change_tiledinfer True
    epoch_change_tiledinfer_dir "./t" | num_infer_images 6 | create_backup False
    learning_rate_reducer True | reducer_factor 0.4 | reducer_patience 4 | save_weights_only True
    dataset_splitter False | seedreset_callback True | best_model_file "best_model.h5"
[eval] image_datapath "set/valid/images/" | mask_datapath "set/valid/masks/" | batch_size 4
[test] image_datapath "set/test/images/" | mask_datapath "set/test/masks/"
[infer] images_dir "./mini_test" | output_dir "./out" | merged_dir "./merged" | threshold 127
    algorithm None | blur False | ksize (5,5) | binarize False | mask_colorize False
    colorized_dir "./c" | colorized_output_format "rgb"
[tiledinfer] overlapping 64 | split_size 512 | images_dir "./m" | output_dir "./o"
    merged_dir "./m" | bitwise_blending True | binarize False | threshold 127 | algorithm None
    background 0
[segmentation] colorize True | black "black" | white "green" | blursize (3,3)
[image] color_converter None | gamma 0 | sharpening 0
[mask] blur True | blur_size (3,3) | binarize True | threshold 60 | algorithm None
    mask_colors [] | mask_channels 1 | grayscaling None | color_order "bgr" | sharpening False
[generator] debug False | augmentation True | verbose False | generated_images_dir "./g"
    generated_masks_dir "./h"
[augmentor] vflip True | hflip True | rotation True | angles [90] | shrinks [0.8] | shears [0.1]
    deformation True | distortion True | sharpening True | brightening True | barrdistortion True
    pincdistortion True
[deformation] alpah 1300 | sigmoid 8 | sigmoids [8.0]
[distortion] gaussian_filter_rsigma 40 | gaussian_filter_sigma 0.5 | distortions [0.02]
[barrdistortion] radius 0.3 | amount 0.3 | centers [(0.3, 0.3)]
[pincdistortion] radius 0.3 | amount -0.3 | centers [(0.3, 0.3)]
[sharpening] k 1.0
[brightening] alpha 1.2 | beta 10
"""


@pytest.mark.parametrize("generator", [False, True])
def test_every_key_of_the_baseline_has_a_row_that_says_what_became_of_it(tmp_path, generator):
    lines = []
    count = 0
    for line in ALL_KEYS.strip().splitlines():
        if line.startswith("["):
            section, _, line = line.partition(" ")
            lines.append(section)
        for pair in line.split("|"):
            key, _, value = pair.strip().partition(" ")
            lines.append(f"{key} = {value}")
            count += 1
    path = tmp_path / "all.config"
    path.write_text("\n".join(lines).replace("generator = False", f"generator = {generator}"))
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    assert len(rows) == count
    unknown = [key for key, becomes in rows.items() if "does not read" in becomes]
    unknown += [key for key, becomes in rows.items() if "not known to read" in becomes]
    assert unknown == []


@pytest.mark.parametrize(
    ("old", "new", "section", "key", "value"),
    [
        ("patience      = 10", "patience = 0", "early_stopping", "patience", 100),
        ("patience      = 10", "patience = -3", "early_stopping", "patience", 100),
        ("patience      = 10", "", "early_stopping", "patience", 10),
        ("num_infer_images   = 6", "", "snapshots", "num_infer_images", 1),
        ("num_infer_images   = 6", "num_infer_images = 0", "snapshots", "num_infer_images", 1),
        ("epoch_change_infer = True", "", "snapshots", "num_infer_images", 0),
        ("clipvalue      = 0.5", "", "trainer", "gradient_clip_val", 0.2),
        ("clipvalue      = 0.5", "clipvalue = O.5", "trainer", "gradient_clip_val", 0.2),
    ],
)
def test_missing_and_malformed_values_take_the_defaults_of_the_baseline(
    write_experiment, old, new, section, key, value
):
    assert read_baseline_config(write_experiment(old, new))[section][key] == value


@pytest.mark.parametrize(
    ("old", "new", "factor", "patience"),
    [
        ("reducer_patience   = 4", "", 0.4, 5),  # half of the patience of 10
        ("reducer_factor     = 0.4", "", 0.1, 4),
        ("reducer_patience   = 4", "reducer_patience = 0", 0.4, 1),
    ],
)
def test_schedule_takes_the_defaults_of_the_baseline(write_experiment, old, new, factor, patience):
    arguments = read_baseline_config(write_experiment(old, new))["model"]["scheduler_args"]
    assert (arguments["factor"], arguments["patience"]) == (factor, patience)


@pytest.mark.parametrize(("patience", "expected"), [(7, 3), (2, 1), (1, 1), (0, 1)])
def test_learning_rate_falls_after_half_the_patience(write_experiment, patience, expected):
    path = write_experiment("patience      = 10", f"patience = {patience}")
    path.write_text(path.read_text().replace("reducer_patience   = 4", ""))
    assert read_baseline_config(path)["model"]["scheduler_args"]["patience"] == expected


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("True", "snapshots.num_infer_images: train.num_infer_images"),
        ("False", "snapshots.num_infer_images: 0"),
    ],
)
def test_row_of_a_switch_says_what_it_became(write_experiment, value, becomes):
    path = write_experiment("epoch_change_infer = True", f"epoch_change_infer = {value}")
    rows = {key: text for key, _, text in explain_baseline_config(path)}
    assert rows["train.epoch_change_infer"] == becomes


def test_expressions_are_refused_and_unknown_names_are_malformed(write_experiment):
    path = write_experiment("clipvalue      = 0.5", "clipvalue = 1 / 2")
    with pytest.raises(InputError, match="clipvalue = 1 / 2 is no Python literal, and no expr"):
        read_baseline_config(path)
    path = write_experiment("clipvalue      = 0.5", "clipvalue = half / 2")
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    assert rows["model.clipvalue"] == (
        "trainer.gradient_clip_val (0.2, the baseline's default for what is no Python)"
    )


def test_tiles_have_the_share_of_the_baseline(write_experiment):
    path = write_experiment("[mask]", "[tiledinfer]\noverlapping = 64\n[mask]")
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    # 64 pixels on each side of 512, so tiles of 640 have 128 in common.
    assert rows["tiledinfer.overlapping"].startswith("`ovseg infer --tiles 0.2`")
    assert "(512, the baseline's default)" in rows["tiledinfer.split_size"]


def test_absolute_folders_stay_absolute(write_experiment):
    path = write_experiment("../../../dataset/Ovarian-Tumor/train/images/", "/data/OT/train/images")
    assert read_baseline_config(path)["data"]["root"] == "/data/OT"


def test_file_of_weights_is_that_of_the_configuration(write_experiment):
    path = write_experiment("epochs        = 100", 'epochs = 100\nbest_model_file = "mine.h5"')
    assert convert_baseline_config(path).weights_name == "mine.h5"
    assert convert_baseline_config(write_experiment()).weights_name == "best_model.h5"


def test_input_is_divided_by_default(write_experiment):
    path = write_experiment("input_normalize = False", "")
    arch_args = read_baseline_config(path)["model"]["arch_args"]
    assert arch_args["input_scale"] == pytest.approx(1 / 255)


def test_values_are_never_evaluated(write_experiment, tmp_path):
    path = write_experiment("epochs        = 100", f"epochs = open('{tmp_path}/made', 'w')")
    with pytest.raises(InputError, match=r"\[train\] epochs = open.* is no Python literal"):
        read_baseline_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[network]", r"has no section \[model\]"),
        ("num_layers     = 8", "", r"has no key 'num_layers' in section \[model\]"),
        ("num_layers     = 8", "num_layers = eight", "num_layers = eight is no Python literal"),
        ("num_layers     = 8", 'num_layers = "8"', "num_layers is '8', expected int"),
        ("(9,9)", "(9,7)", "expected two equal numbers"),
        ("(9,9)", "9", "expected two equal numbers"),
        ('"bce_dice_loss"', '"hope"', "Unknown loss 'hope'"),
        ('"bce_dice_loss"', '["bce_dice_loss"]', r"Unknown loss \['bce_dice_loss'\]"),
        (
            "normalization  = False",
            'normalization = "False"',
            "normalization is 'False', expected True or False",
        ),
        (
            '"TensorflowUNet"',
            '"TensorflowWNet"',
            "Unknown model of the baseline 'TensorflowWNet'. Choose one of: ",
        ),
        ("clipvalue      = 0.5", 'activation = "loud"', "Unknown activation 'loud'"),
        ("num_classes    = 1", "num_classes = 4", "only 3 and 1 are ported"),
        ("epochs        = 100", "", r"no key 'epochs' in section \[train\]"),
        ("clipvalue      = 0.5", 'final_activation = "softmax"', "only the sigmoid is ported"),
        ("[mask]", "[mask", "is not an INI file"),
    ],
)
def test_mistakes_that_matter_are_errors(write_experiment, old, new, message):
    with pytest.raises(InputError, match=message):
        read_baseline_config(write_experiment(old, new))


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read_baseline_config(tmp_path / "gone.config")
