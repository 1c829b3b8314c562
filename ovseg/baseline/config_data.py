"""The baseline's INI file: images, masks, their split and their augmentation, for our `data`."""

from typing import Any

from ovseg.baseline.ini import MISSING, BaselineFile, is_number
from ovseg.core.errors import InputError
from ovseg.core.registry import choose

DEFAULT_ROOT = "dataset/Ovarian-Tumor"  # the baseline's own
OPENCV_CLASS = "ImageMaskDataset"
PLAIN_CLASS = "BaseImageMaskDataset"
CLASSES = {
    PLAIN_CLASS: "pictures as RGB; every grey value of a mask above 0 is lesion",
    OPENCV_CLASS: "pictures as BGR, read by OpenCV; masks as [mask] says",
}
# Interpolations of the baseline, by the `fit` of ours that does nearly the same.
FITS = {
    "cv2.INTER_NEAREST": "stretch_nearest",
    "cv2.INTER_AREA": "stretch",
    "cv2.INTER_CUBIC": "stretch",
}
VALID_SHARE = 0.2
STEPS_PER_EPOCH = 400
# Sections of the augmentor's variants, and the key of [augmentor] that turns each on.
VARIANTS = ("deformation", "distortion", "barrdistortion", "pincdistortion")


def read_data(file: BaselineFile) -> dict[str, Any]:
    """The arguments of our data module.

    Raises:
        InputError: a value can't be used, or changes pixels in a way that ovseg has not.
    """
    generator = file.flag("model", "generator", "data.augmentation", False)
    images = file.word("train", "image_datapath", "data.root", f"{DEFAULT_ROOT}/train/images")
    data = {
        "root": _root(images),
        "image_size": max(image_size(file)),
        "batch_size": file.integer("train", "batch_size", "data.batch_size"),
        "shuffle": False,
        **_read_pixels(file, generator),
        **_read_split(file),
    }
    if generator:
        return data | _read_generator(file)
    for section in ("generator", "augmentor", *VARIANTS, "sharpening", "brightening"):
        file.unused[section] = "model.generator is False"
    for key in ("steps_per_epoch", "validation_steps"):
        file.note("train", key, "ignored: model.generator is False")
    return data | {"augmentation": "none"}


def feeds_bgr(file: BaselineFile) -> bool:
    """Whether the baseline trains on pictures as BGR: those of OpenCV's class or the generator."""
    if file.integer("model", "image_channels", "checked: 3", 3) != 3:
        return False
    generator = file.flag("model", "generator", "data.augmentation", False)
    return generator or _dataset_class(file) == OPENCV_CLASS


def normalizes(file: BaselineFile) -> bool:
    """Whether the dataset class divides pictures by 255 before the network does."""
    section = file.find_section("image_normalize", "dataset", "image")
    value = file.flag(section, "image_normalize", "model.arch_args.input_scale", False)
    if file.flag("model", "generator", "data.augmentation", False):
        file.note(section, "image_normalize", "ignored: model.generator is True")
        return False
    return value


def image_size(file: BaselineFile) -> tuple[int, int]:
    """Height and width."""
    becomes = "data.image_size (a square: the longer side)"
    height = file.integer("model", "image_height", becomes)
    width = file.integer("model", "image_width", becomes)
    return height, width


def _root(images: str) -> str:
    """`../../../dataset/Ovarian-Tumor/train/images/` -> `dataset/Ovarian-Tumor`.

    An absolute path stays absolute.
    """
    images = images.replace("\\", "/")
    parts = images.split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    if parts[-1:] == ["images"]:
        parts = parts[:-2]  # train/images
    start = "/" if images.startswith("/") else ""
    return start + "/".join(parts) if parts else DEFAULT_ROOT


def _dataset_class(file: BaselineFile) -> str:
    name = file.get("dataset", "datasetclass", "data.mask_threshold", OPENCV_CLASS)
    becomes = choose("dataset class of the baseline", name, CLASSES)
    if name == OPENCV_CLASS:
        becomes += "; ovseg reads RGB, so imported weights get their input channels exchanged"
    file.note("dataset", "datasetclass", becomes)
    return name


def _read_pixels(file: BaselineFile, generator: bool) -> dict[str, Any]:
    """`fit` and what makes a mask of grey values; the row of every key that changes pixels."""
    name = _dataset_class(file)
    if generator:
        file.note(
            "dataset",
            "datasetclass",
            "ignored in training: model.generator is True. It reads pictures as BGR, so imported "
            "weights get their input channels exchanged",
        )
    of_opencv = generator or name == OPENCV_CLASS
    _read_picture_keys(file, only_in_inference=generator or not of_opencv)
    fit = "stretch_nearest" if generator else "stretch"
    if of_opencv and not generator:
        becomes = "data.fit; masks are resized by nearest neighbour"
        interpolation = file.get("dataset", "resize_interpolation", becomes, "cv2.INTER_NEAREST")
        fit = choose("resize_interpolation that ovseg has", interpolation, FITS)
        if fit == "stretch":
            becomes = "data.fit stretch: cubic where it enlarges, by area where it shrinks"
            file.note("dataset", "resize_interpolation", becomes)
    else:
        reader = "the generator" if generator else PLAIN_CLASS
        how = "by nearest neighbour" if generator else "bilinearly; data.fit stretch does so nearly"
        file.note("dataset", "resize_interpolation", f"ignored: {reader} resizes {how}")
    if not of_opencv:
        file.unused["mask"] = f"{PLAIN_CLASS} takes every grey value above 0 (data.mask_threshold)"
        return {"fit": fit, "mask_threshold": 0}
    return {"fit": fit, **_read_mask(file, generator)}


def _read_picture_keys(file: BaselineFile, only_in_inference: bool) -> None:
    """What changes the colours of pictures: refuse it where the network is trained on it."""
    for key, neutral in (("gamma", 0), ("sharpening", 0), ("color_converter", None)):
        section = file.find_section(key, "image", "dataset")
        value = file.get(section, key, "infer --as_baseline", neutral)
        if only_in_inference:
            becomes = "infer --as_baseline: the baseline does so in inference only"
            file.note(section, key, becomes)
        elif value not in (neutral, None, 0):
            raise InputError(
                f"{file.path}: [{section}] {key} = {value!r} changes the pictures that the network "
                "is trained on, which ovseg does not do. Change the pictures of the dataset "
                "beforehand, and remove the key."
            )
        else:
            file.note(section, key, f"checked: {neutral}, which changes nothing")


def _read_mask(file: BaselineFile, generator: bool) -> dict[str, Any]:
    """`mask_threshold` and `mask_blur` of OpenCV's class or of the generator."""
    threshold = 0
    becomes = "data.mask_threshold"
    binarize = file.flag("mask", "binarize", becomes, False)
    if binarize:
        threshold = file.integer(
            "mask", "threshold", f"{becomes}: grey values from it on are lesion"
        )
        if not 1 <= threshold <= 255:
            raise file.unexpected("mask", "threshold", threshold, "1..255")
        threshold -= 1
        algorithm = None
        if generator:
            file.note("mask", "algorithm", "ignored: model.generator is True")
        else:
            algorithm = file.get("mask", "algorithm", becomes, None)
        if algorithm == "cv2.THRESH_BINARY":
            threshold = min(threshold + 1, 254)
        elif algorithm is not None:
            raise file.unexpected("mask", "algorithm", algorithm, "None or 'cv2.THRESH_BINARY'")
    else:
        file.note("mask", "binarize", f"{becomes} 0: every grey value above 0 is lesion")
        for key in ("threshold", "algorithm"):
            file.note("mask", key, "ignored: mask.binarize is False")

    blur = 0
    becomes = "data.mask_blur: every pixel that is not black afterwards is lesion"
    if file.flag("mask", "blur", becomes, False):
        blur = 3  # of the generator
        if generator:
            file.note("mask", "blur_size", "ignored: the generator has 3 x 3")
        else:
            blur = file.square("mask", "blur_size", becomes, 3)
            if blur < 1:
                raise file.unexpected("mask", "blur_size", (blur, blur), "sides of at least 1")
        # The white of the baseline would survive where our grey value does not.
        if binarize and threshold < blur * blur / 2:
            raise InputError(
                f"{file.path}: [mask] threshold {threshold + 1} is too low for a blur of {blur} x "
                f"{blur} pixels, expected more than {blur * blur // 2}. Binarise the masks of the "
                "dataset beforehand."
            )
    else:
        file.note("mask", "blur_size", "ignored: mask.blur is False")
    return {"mask_threshold": threshold, "mask_blur": blur}


def _read_split(file: BaselineFile) -> dict[str, Any]:
    """`valid_share` where the baseline takes the last fifth of train for validation."""
    becomes = f"data.valid_share {VALID_SHARE}"
    splits = file.flag("train", "dataset_splitter", becomes, False)
    if not splits:
        file.note("train", "dataset_splitter", "data.valid_share 0")
    if not splits and file.text("eval", "image_datapath") is not None:
        return {}
    file.rows.setdefault(
        "eval.image_datapath",
        (
            file.text("eval", "image_datapath") or MISSING,
            f"{becomes}: the last fifth of the images of train validates",
        ),
    )
    return {"valid_share": VALID_SHARE}


def _read_generator(file: BaselineFile) -> dict[str, Any]:
    """The online generator: batches of random images, each as one of its variants."""
    section = file.find_section("steps_per_epoch", "train", "generator")
    steps = file.integer(section, "steps_per_epoch", "data.steps_per_epoch", STEPS_PER_EPOCH)
    section = file.find_section("validation_steps", "train", "generator")
    becomes = "ignored: every image of valid is scored once, as it is"
    file.note(section, "validation_steps", becomes)
    found: dict[str, Any] = {"shuffle": True, "steps_per_epoch": steps}
    if not file.flag("generator", "augmentation", "data.augmentation", True):
        for name in ("augmentor", *VARIANTS, "sharpening", "brightening"):
            file.unused[name] = "generator.augmentation is False"
        return found | {"augmentation": "none"}
    arguments = _read_augmentor(file)
    return found | {"augmentation": "baseline", "augmentation_args": arguments}


def _read_augmentor(file: BaselineFile) -> dict[str, Any]:
    """The arguments of our pipeline `baseline`."""
    where = "data.augmentation_args"
    arguments: dict[str, Any] = {}
    for key in ("hflip", "vflip"):
        arguments[key] = file.flag("augmentor", key, f"{where}.{key}", True)
    arguments["angles"] = []
    if file.flag("augmentor", "rotation", f"{where}.angles", True):
        default = [90, 180, 270]
        arguments["angles"] = file.numbers("augmentor", "angles", f"{where}.angles", default)
    else:
        file.note("augmentor", "angles", "ignored: augmentor.rotation is False")
    for key, shown in (("shrinks", [0.8]), ("shears", [])):
        value = file.get("augmentor", key, f"{where}.{key}", shown)
        if isinstance(value, list):
            arguments[key] = file.numbers("augmentor", key, f"{where}.{key}", shown)
        else:
            arguments[key] = []
            file.note("augmentor", key, "none: the baseline makes them of a list in [] only")
    return arguments | _read_variants(file, where)


def _read_variants(file: BaselineFile, where: str) -> dict[str, Any]:
    """Deformation, distortions, sharpening and brightening, which are off by default."""
    found: dict[str, Any] = {}
    if _is_on(file, "deformation", f"{where}.deformation_sigmas"):
        alpha = file.number("deformation", "alpah", f"{where}.deformation_alpha", 1300)
        becomes = f"{where}.deformation_sigmas"
        sigmas = file.numbers("deformation", "sigmoids", becomes, [8])
        if sigmas:
            file.note("deformation", "sigmoid", "ignored: deformation.sigmoids is not empty")
        else:
            sigmas = [file.number("deformation", "sigmoid", becomes, 8)]
        found["deformation_sigmas"] = [int(sigma) for sigma in sigmas]
        found["deformation_alpha"] = alpha
    if _is_on(file, "distortion", f"{where}.distortions"):
        found["distortions"] = file.numbers(
            "distortion", "distortions", f"{where}.distortions", [0.02]
        )
        found["distortion_sigma"] = file.number(
            "distortion", "gaussian_filter_rsigma", f"{where}.distortion_sigma", 40
        )
        becomes = "ignored: the baseline smooths the picture with it and drops the result"
        file.note("distortion", "gaussian_filter_sigma", becomes)
    for section, name, amount in (
        ("barrdistortion", "barrel", 0.5),
        ("pincdistortion", "pincushion", -0.5),
    ):
        if _is_on(file, section, f"{where}.{name}_centers"):
            found[f"{name}_centers"] = _read_centers(file, section, f"{where}.{name}_centers")
            for key, default in (("radius", 0.5), ("amount", amount)):
                becomes = f"{where}.{name}_{key}"
                found[f"{name}_{key}"] = file.number(section, key, becomes, default)
    if _is_on(file, "sharpening", f"{where}.sharpening"):
        found["sharpening"] = file.number("sharpening", "k", f"{where}.sharpening", 1.0)
    if _is_on(file, "brightening", f"{where}.brightening"):
        becomes = f"{where}.brightening"
        factor = file.number("brightening", "alpha", becomes, 1.2)
        offset = file.number("brightening", "beta", becomes, 10)
        found["brightening"] = [factor, offset]
        if offset:
            becomes += "; it makes the whole mask lesion, as in the baseline"
            file.note("brightening", "beta", becomes)
        if "deformation_alpha" in found:
            found["deformation_alpha"] = factor
            becomes = "ignored: in the baseline brightening.alpha takes its place"
            file.note("deformation", "alpah", becomes)
    return found


def _is_on(file: BaselineFile, name: str, becomes: str) -> bool:
    """Whether the augmentor makes a variant; if not, the section of that name is unused."""
    is_on = file.flag("augmentor", name, becomes, False)
    if not is_on:
        file.unused[name] = f"augmentor.{name} is False"
    return is_on


def _read_centers(file: BaselineFile, section: str, becomes: str) -> list[list[float]]:
    centers = file.get(section, "centers", becomes, [(0.5, 0.5)])
    expected = "a list of pairs such as [(0.3, 0.3), (0.7, 0.7)]"
    if not isinstance(centers, list | tuple):
        raise file.unexpected(section, "centers", centers, expected)
    for center in centers:
        is_pair = isinstance(center, list | tuple) and len(center) == 2
        if not is_pair or not all(is_number(share) for share in center):
            raise file.unexpected(section, "centers", centers, expected)
    return [list(center) for center in centers]
