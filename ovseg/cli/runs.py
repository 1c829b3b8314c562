"""The commands that make a run and use it."""

from pathlib import Path

from ovseg.cli.output import conclude, quiet_lightning
from ovseg.core.long_work import continues, end_with_caller, long_work
from ovseg.core.memory import keep_freed_memory


@long_work
def train(*arguments: str) -> int:
    """Train a network: `ovseg train --config unet`, where every YAML key is an option.

    Args:
        arguments: --config with a file or the name of a shipped configuration, and keys such as
            --data.batch_size 4
    """
    end_with_caller()
    quiet_lightning()
    keep_freed_memory()
    from ovseg.experiments.train import train_from_command_line

    return train_from_command_line(list(arguments))


@long_work
def adapt(*arguments: str) -> int:
    """Train on images with masks, and on images of another kind without masks.

    Args:
        arguments: as those of train, with --data.root for the images with masks and
            --adaptation.target_root for the others
    """
    end_with_caller()
    quiet_lightning()
    keep_freed_memory()
    from ovseg.experiments.adapt import AdaptCLI
    from ovseg.experiments.train import train_from_command_line

    return train_from_command_line(list(arguments), AdaptCLI)


def evaluate(
    *,
    run: Path,
    split: str = "test",
    data: Path | None = None,
    output: Path | None = None,
    batch_size: int = 4,
    postprocessing: bool = True,
    mask_threshold: int | None = None,
    device: str = "auto",
    report: str = "full",
    robustness: int = 0,
    spacing: str | None = None,
    overwrite: bool = False,
) -> int:
    """Score a run on a split: tables, summary, figures and a page.

    Args:
        run: run folder, checkpoint, or folder of an ensemble
        split: train, valid or test
        data: dataset folder, if it is not the one of training
        output: folder to make (default: in the run folder; a checkpoint needs one)
        batch_size: images at a time
        postprocessing: ignore the run's postprocessing.json, which `ovseg postprocess` wrote
        mask_threshold: grey values above it are lesion (default: that of training)
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
        report: full, or minimal, which leaves the page report.html out
        robustness: number of images that are also scored under graded disturbances
        spacing: millimetres per pixel of the original pictures, a number such as 0.1 or a CSV of
            stem,row_mm,column_mm: also distances and areas in millimetres
        overwrite: replace an earlier evaluation
    """
    keep_freed_memory()
    from ovseg.core.runs import RunFolder
    from ovseg.evaluation.report import evaluate, print_summary

    folder = output or RunFolder(run).evaluation(split)
    summary = evaluate(
        run,
        split,
        data,
        folder,
        batch_size,
        device,
        postprocessing,
        overwrite,
        mask_threshold,
        report,
        robustness,
        spacing,
    )
    print_summary(summary)
    return conclude(f"Written to {folder}")


@continues
def infer(
    *,
    run: Path | None = None,
    images: list[Path],
    output: Path,
    recursive: bool = False,
    overlays: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    format: list[str] | None = None,
    frame_step: int = 1,
    tiles: float | None = None,
    batch_size: int = 4,
    engine: str = "torch",
    postprocessing: bool = True,
    as_baseline: bool = False,
    device: str = "auto",
    devices: int = 1,
    overwrite: bool = False,
) -> int:
    """Segment pictures: one mask each, at the picture's own size.

    If it is interrupted, the same command continues where it stopped.

    Args:
        run: run folder, checkpoint, folder of an ensemble, or a file of `ovseg export`
            (default: the model that comes with ovseg)
        images: pictures and folders of pictures (JPEG, PNG, BMP, TIFF, DICOM)
        output: folder to make
        recursive: also take the folders in folders, as is always done for a folder without
            pictures of its own; masks keep their structure
        overlays: also write the masks over the images
        probabilities: also write 16-bit probability maps
        uncertainty: also write maps of where flips or members of an ensemble disagree
        format: what to write beside png masks, one or several: npy, coco, labelme, labelstudio,
            contours (JSON), dicomseg (of each DICOM picture)
        frame_step: of a cine in DICOM, segment every n-th frame
        tiles: segment pictures that are larger than the network's square in tiles of its size at
            their own resolution, which overlap by this share of their side, such as 0.25
        batch_size: pictures at a time
        engine: torch, compile, onnxruntime, openvino, or auto for the fastest
        postprocessing: ignore the run's postprocessing.json, which `ovseg postprocess` wrote
        as_baseline: write what the TensorFlow baseline's inferencer would: JPEGs of probabilities
            (a run of `ovseg import_baseline`)
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
        devices: share the pictures among as many processes: each on a GPU of its own, or on the CPU
        overwrite: replace earlier output
    """
    keep_freed_memory()
    if as_baseline:
        from ovseg.baseline.inferencer import infer_as_baseline

        others = {
            "recursive": recursive,
            "overlays": overlays,
            "probabilities": probabilities,
            "uncertainty": uncertainty,
            "format": format is not None,
            "tiles": tiles is not None,
            "devices": devices != 1,
            "frame_step": frame_step != 1,
        }
        count, failures = infer_as_baseline(
            run, images, output, batch_size, engine, device, overwrite, others
        )
        return conclude(f"{count} pictures as of the baseline written to {output}", failures)
    from ovseg.inference.folder import infer_folder

    count, failures = infer_folder(
        run=run,
        images=images,
        output=output,
        overlays=overlays,
        probabilities=probabilities,
        uncertainty=uncertainty,
        batch_size=batch_size,
        engine=engine,
        postprocessing=postprocessing,
        device=device,
        overwrite=overwrite,
        recursive=recursive,
        formats=format or [],
        frame_step=frame_step,
        tiles=tiles,
        devices=devices,
    )
    names = output / "categories.json"
    kind = f"category ids, named in {names.name}" if names.exists() else "0 and 255"
    return conclude(f"{count} masks ({kind}) written to {output}", failures)


def postprocess(
    *,
    run: Path,
    metric: str = "dice",
    split: str = "valid",
    data: Path | None = None,
    batch_size: int = 4,
    mask_threshold: int | None = None,
    failure_dice: float = 0.7,
    flag_recall: float = 0.9,
    device: str = "auto",
) -> int:
    """Choose flips, threshold, clean-up, temperature and flags of a run on validation images.

    `evaluate` and `infer` use the choice from then on.

    Args:
        run: run folder, or folder of an ensemble
        metric: dice or iou, mean per image at the original size
        split: valid or train; never test
        data: dataset folder, if it is not the one of training
        batch_size: images at a time
        mask_threshold: grey values above it are lesion (default: that of training)
        failure_dice: an image fails if its Dice is below this
        flag_recall: share of the failing images that flags are to find
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
    """
    keep_freed_memory()
    from ovseg.core.runs import RunFolder
    from ovseg.evaluation.postprocessing_search import print_search, search_postprocessing

    result = search_postprocessing(
        run,
        metric,
        split,
        data,
        batch_size,
        device,
        mask_threshold,
        failure_dice,
        flag_recall,
    )
    print_search(result)
    path = RunFolder(run).postprocessing
    return conclude(f"Written to {path}, which evaluate and infer use from now on")


def export(
    *,
    run: Path,
    output: Path | None = None,
    format: str = "onnx",
    int8: bool = False,
    float16: bool = False,
    data: Path | None = None,
    notes: Path | None = None,
    cross_validation: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Write a run's network for other programs, with all that is done around it.

    The file is compared with the run on validation images, and refused where it differs.

    Args:
        run: run folder or checkpoint
        output: folder to make (default: export in the run folder; a lone checkpoint needs one)
        format: onnx, openvino or safetensors
        int8: compute with 8-bit integers (onnx, openvino); the loss of Dice and the gain in time
            are measured on validation images
        float16: store weights in half the bytes (safetensors)
        data: dataset folder, if it is not the one of training
        notes: Markdown file that the model card begins with, such as data, licence and limits
        cross_validation: folder of a cross-validation of the run's recipe, whose scores the model
            card has; for a run of all images (data.train_on_valid), to which none is new
        overwrite: replace an earlier export
    """
    from ovseg.core.errors import InputError
    from ovseg.core.runs import RunFolder
    from ovseg.inference.export import export_run

    if int8 and float16:
        raise InputError("--int8 and --float16 exclude each other. Leave one out.")
    precision = "float32"
    if int8:
        precision = "int8"
    if float16:
        precision = "float16"
    description = export_run(
        run, output, format, precision, data, notes, cross_validation, overwrite
    )
    where = output or RunFolder.of(run).export
    agreement = description["agreement"]
    print(f"Compared with the run on {agreement['images']}:")
    print(f"  largest difference of a probability  {agreement['difference']:.1e}")
    print(f"  least Dice between two masks         {agreement['dice_between_masks']:.4f}")
    print(f"  mean Dice, run and file   {agreement['dice']:.4f}  {agreement['dice_of_file']:.4f}")
    print(
        f"  seconds an image          {agreement['seconds']:.3f}  "
        f"{agreement['seconds_of_file']:.3f}"
    )
    return conclude(f"Written to {where}")
