"""`ovseg infer`: the masks of files and folders of pictures, and what is made of them, in a folder.

An interrupted call continues: a mask counts when its row is in the table of the unfinished folder.
"""

import errno
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ovseg import __version__
from ovseg.core.checkpoints import (
    checkpoint_digest,
    find_checkpoints,
)
from ovseg.core.console import THREADS, compute_ahead, one_late, progress_bar
from ovseg.core.device import name_devices
from ovseg.core.drawing import legend
from ovseg.core.errors import InputError, WriteError, first_five, system_reason
from ovseg.core.files import (
    atomic_dir,
    check_output_dir,
    content_digest,
    write_image,
    write_json,
)
from ovseg.core.memory import keep_freed_memory
from ovseg.core.processes import processes_that_send
from ovseg.core.runs import RunFolder
from ovseg.core.text import printable
from ovseg.data.manifest import refuse_borders
from ovseg.inference.engine_choice import check_engine
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.inference.model_files import find_model_file, is_model
from ovseg.inference.pictures import InferPicture, Problem, find_pictures, read_pictures
from ovseg.inference.predictor import BOX, Prediction, Predictor, check_batch_size
from ovseg.inference.results import DICOMSEG, check_formats, check_pictures, write_results
from ovseg.inference.table import FLAGS, TABLE, PredictionTable, Row, RowSender, measure_area
from ovseg.inference.tiles import check_overlap
from ovseg.inference.uncertainty import (
    draw_uncertainty,
    map_flips,
)

# What a file system answers to a name that is too long, or has characters that it does not take.
REFUSED_NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
MARKER = ".ovseg_masks"  # the file by which `infer_folder` recognises a folder that it wrote


@dataclass(frozen=True)
class InferOptions:
    """How each process of `infer_folder` predicts, see there."""

    run: Path | None
    engine: str
    postprocessing: bool
    batch_size: int
    uncertainty: bool
    tiles: float | None


def infer_folder(
    run: Path | None,
    images: Path | Sequence[Path],
    output: Path,
    overlays: bool = False,
    probabilities: bool = False,
    batch_size: int = 4,
    device: str = "auto",
    overwrite: bool = False,
    engine: str = "torch",
    postprocessing: bool = True,
    recursive: bool = False,
    uncertainty: bool = False,
    formats: Sequence[str] = (),
    frame_step: int = 1,
    tiles: float | None = None,
    devices: int = 1,
) -> tuple[int, list[str]]:
    """Write a mask `<stem>.png` at the picture's own size for every picture.

    Masks are 0 and 255. A run for categories writes ids, and `categories.json` with their names.
    If it is interrupted, or the disk is full, the next call with the same arguments and the same
    pictures continues: masks that were written are not made again.

    `predictions.csv` has a row for each mask: see `ovseg.inference.table.COLUMNS`. `flag` is `yes`
    where the confidence is at most the `flag_confidence` of the run's post-processing, `no` where
    it is higher, and empty without one. How many pictures are flagged is printed.

    Args:
        run: see `source` of `Predictor.load`.
        images: picture or folder of pictures, or several of them.
        output: folder to make; it appears when all masks are written.
        overlays: also write `overlays/<stem>.png`, the labels over the picture; for categories with
            a legend below it.
        probabilities: also write `probabilities/<stem>.png`, the probability of lesion (see
            `Prediction`) in 16 bits, 65535 is 1.
        batch_size: pictures at a time.
        device: see `Predictor.load`.
        overwrite: replace masks that this function wrote before.
        engine: see `Predictor`.
        postprocessing: see `Predictor.load`; what it changes is printed.
        recursive: also take the folders in folders; masks and all else keep their structure.
        uncertainty: also write `overlays/<stem>_uncertainty.png`, where flips and members disagree
            (see `Prediction.uncertainty` and `Predictor.predict`).
        formats: names in `ovseg.inference.results.FORMATS`; masks are written in any case.
        frame_step: of a DICOM file with several frames, predict every n-th.
        tiles: see `Predictor.predict`.
        devices: how many processes share the pictures, each on a device of its own, or on the CPU;
            what is written does not depend on it.

    Returns:
        How many masks were written, and a message for every picture that could not be read, whose
        mask has a name that the file system refuses, or that gets no DICOM-SEG.

    Raises:
        InputError: run, images or output can't be used, or no picture can be read.
        WriteError: the disk is full, or the output can't be written for another reason.
        ChildProcessError: one of several processes was killed.
    """
    sources = [Path(images)] if isinstance(images, str | Path) else [Path(path) for path in images]
    check_formats(formats, frame_step)
    segs = DICOMSEG in formats
    pictures = find_pictures(
        sources, recursive, overlays, probabilities, uncertainty, frame_step, segs
    )
    check_pictures(formats, pictures)
    check_batch_size(batch_size)
    check_engine(engine)
    check_overlap(tiles)
    names_of_devices = name_devices(device, devices)
    if devices > 1 and engine == "auto":
        raise InputError(
            "--engine auto times engines while nothing else computes, which --devices excludes. "
            "Name the engine."
        )
    check_output_dir(output, overwrite, MARKER)  # before the network is loaded
    if recursive:
        _refuse_output_in(sources, output)

    # Of several, each process loads it again on its own device.
    own_device = device if devices == 1 else "cpu"
    predictor = Predictor.load(run, own_device, postprocessing, engine)
    if predictor.postprocessing.changes:
        print(f"Post-processing of the run: {predictor.postprocessing}")
    flips = predictor.postprocessing.flips
    if uncertainty and map_flips(flips, len(predictor.members)) != flips:
        print(
            "The run has one network and no flips: the uncertainty compares the prediction of "
            "each picture with that of its mirror image."
        )
    if tiles is not None:
        sides = sorted({member.image_size for member in predictor.members})
        print(
            f"--tiles: pictures larger than {sides[0]} x {sides[0]} pixels are predicted in tiles. "
            "A network that was trained on whole pictures has never seen a part of one; "
            "compare some of the masks with those without --tiles.",
            file=sys.stderr,
        )
    folders = dict.fromkeys(picture.path.parent for picture in pictures)
    for fit in {member.fit for member in predictor.members}:
        for folder in folders:
            refuse_borders(folder, fit)

    settings = [device, engine, batch_size, overlays, probabilities, uncertainty, tiles]
    settings += sorted(formats)
    work = _describe_work(run, predictor.postprocessing, pictures, settings)
    with atomic_dir(output, overwrite, MARKER, inputs=(run or BOX, *sources), work=work) as folder:
        (folder / MARKER).touch()
        if predictor.categories:
            names = ["background", *predictor.categories]
            write_json(folder / "categories.json", dict(enumerate(names)))
        table = PredictionTable(folder)
        # Whole batches, because in another batch a probability can differ in its last digit.
        starts = range(0, len(pictures), batch_size)
        batches = [pictures[start : start + batch_size] for start in starts]
        missing = [batch for batch in batches if not all(map(table.has, batch))]
        predictor.pictures = sum(len(batch) for batch in missing)
        done = len(pictures) - predictor.pictures
        if done:
            print(f"Continuing: {done} of {len(pictures)} masks were written before.")
        problems: dict[Path, str] = {}
        options = InferOptions(run, engine, postprocessing, batch_size, uncertainty, tiles)
        if devices == 1:
            inferring = _infer_batches(predictor, missing, table, options)
        else:
            inferring = _share_batches(names_of_devices, missing, table, options)
        try:
            with closing(inferring) as batches_done:
                for found in progress_bar(batches_done, "Predicting", len(missing)):
                    problems.update(found)
            failures = [problems[picture.mask] for picture in pictures if picture.mask in problems]
            if not any(map(table.has, pictures)):
                names_of_sources = first_five(sources)
                raise InputError(
                    f"None of the {len(pictures)} pictures in {names_of_sources} can be read: "
                    f"{failures[0]}"
                )
            digest = _digest_of(predictor, run) if segs else ""
            failures += write_results(
                table, pictures, formats, output, predictor.categories, digest
            )
            rows = table.finish(pictures)
        except WriteError as error:
            message = f"{error} The same command continues with the masks that are written."
            raise WriteError(message) from error
        except ChildProcessError as error:
            message = f"{error}. The same command continues with the masks that are written"
            raise ChildProcessError(message) from None
    print(printable(_describe_flags(rows, predictor.postprocessing, run or BOX, output)))
    return len(rows), failures


def _describe_work(
    run: Path | None,
    postprocessing: Postprocessing,
    pictures: Sequence[InferPicture],
    settings: Sequence[object],
) -> str:
    """A digest of all that decides what `infer_folder` writes.

    A file counts by its path, size and time of change, so that none is read for this.
    """
    files = [*_files_of(run or BOX), *(picture.path for picture in pictures)]
    stamps = []
    for path in files:
        try:
            state = path.stat()
        except OSError:  # it is reported when it is read
            continue
        stamps.append([str(path.resolve()), state.st_size, state.st_mtime_ns])
    masks = [str(picture.mask) for picture in pictures]
    content = [__version__, to_dict(postprocessing), list(settings), stamps, masks]
    return content_digest(content)


def _digest_of(predictor: Predictor, run: Path | None) -> str:
    """SHA-256 of the checkpoint that a predictor has its weights from."""
    if predictor.description is not None:
        return predictor.description["checkpoint_sha256"]
    return checkpoint_digest(*_files_of(run or BOX))


def _files_of(run: Path) -> list[Path]:
    """The checkpoints of a run, or an exported file."""
    if is_model(run):
        return [find_model_file(run)]
    return find_checkpoints(run)


def _refuse_output_in(sources: Sequence[Path], output: Path) -> None:
    """Raise InputError where masks would be pictures of the next call."""
    for source in sources:
        if source.is_dir() and Path(output).resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"{output} lies in {source}, so its masks would be taken for pictures with "
                "--recursive. Choose another --output."
            )


def _describe_flags(
    rows: Sequence[Row], postprocessing: Postprocessing, run: Path, output: Path
) -> str:
    """How many pictures are flagged and where, or how to let them be flagged."""
    threshold = postprocessing.flag_confidence
    if threshold is None and is_model(run):
        return (
            "No picture is flagged: the model has no confidence to flag by, or "
            "--no_postprocessing left it out."
        )
    if threshold is None:
        return (
            "No picture is flagged, since no confidence to flag by is used. ovseg postprocess "
            f"--run {RunFolder.of(Path(run)).path} chooses one on validation images, where some "
            "fail; infer takes it from the run folder, without --no_postprocessing."
        )
    flagged = []
    for row in rows:
        if row["flag"] == FLAGS[True]:
            frame = f" (frame {row['frame']})" if row["frame"] else ""
            flagged.append(f"{row['picture']}{frame}")
    message = f"{len(flagged)} of {len(rows)} pictures are flagged (confidence {threshold:g} or"
    if not flagged:
        return f"{message} less)."
    return f"{message} less): look at {first_five(flagged)}. {Path(output) / TABLE} lists all."


def _infer_batches(
    predictor: Predictor,
    batches: Sequence[Sequence[InferPicture]],
    table: PredictionTable | RowSender,
    options: InferOptions,
) -> Generator[list[Problem]]:
    """Predict batches of pictures and write what is made of them into the folder of the table.

    Yields:
        Of each batch, when it is written, the pictures that failed.
    """
    with ThreadPoolExecutor(THREADS) as pool:

        def begin_to_write() -> Iterator[tuple[list[Problem], list[Future[Problem | None]]]]:
            for images, problems in compute_ahead(pool, read_pictures, batches):
                pixels = [image for _, image in images]
                predictions = predictor.predict(
                    pixels, options.batch_size, options.uncertainty, options.tiles
                )
                writing = []
                for (picture, image), prediction in zip(images, predictions, strict=True):
                    writing.append(
                        pool.submit(
                            _write_files,
                            table,
                            picture,
                            image,
                            prediction,
                            predictor.postprocessing,
                        )
                    )
                yield problems, writing

        # One batch is written, the next one predicted, and a third one read.
        for problems, writing in one_late(begin_to_write()):
            refusals = [future.result() for future in writing]
            yield [*problems, *(refusal for refusal in refusals if refusal is not None)]


def _share_batches(
    devices: Sequence[str],
    batches: Sequence[Sequence[InferPicture]],
    table: PredictionTable,
    options: InferOptions,
) -> Generator[list[Problem]]:
    """`_infer_batches` in a process for each device, which takes every n-th batch.

    The processes share the threads of this one. A batch stays whole, because in another batch a
    probability can differ in its last digit.
    """
    count = min(len(devices), len(batches))
    threads = max(1, torch.get_num_threads() // max(1, count))
    calls = {}
    for number, device in enumerate(devices[:count]):
        share = batches[number::count]
        name = f"Process {number + 1} of {count} ({device})"
        calls[name] = (device, threads, share, table.folder, options)
    with processes_that_send(_infer_share, calls) as messages:
        for message in messages:
            if isinstance(message, list):
                yield message
            else:
                table.add(message)


def _infer_share(
    send: Callable[[list[Problem] | Row], None],
    device: str,
    threads: int,
    batches: Sequence[Sequence[InferPicture]],
    folder: Path,
    options: InferOptions,
) -> None:
    """What a process of `_share_batches` does: it sends rows, and the problems of each batch."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    predictor = Predictor.load(options.run, device, options.postprocessing, options.engine)
    for problems in _infer_batches(predictor, batches, RowSender(folder, send), options):
        send(problems)


def _describe_row(
    picture: InferPicture, prediction: Prediction, postprocessing: Postprocessing
) -> Row:
    """The row of a picture in `predictions.csv`."""
    confidence = prediction.confidence
    return {
        "picture": str(picture.path),
        "frame": None if picture.frame is None else picture.frame + 1,
        "mask": picture.mask.as_posix(),
        "area_pixels": prediction.area,
        "area_percent": round(100 * prediction.area / prediction.labels.size, 4),
        "components": len(prediction.contours),
        "confidence": round(confidence, 4),
        "flag": FLAGS[postprocessing.is_flagged(confidence)],
        "largest_probability": round(float(prediction.probs.max()), 4),
        **measure_area(picture, prediction.labels > 0),
    }


def _write_files(
    table: PredictionTable | RowSender,
    picture: InferPicture,
    image: np.ndarray,
    prediction: Prediction,
    postprocessing: Postprocessing,
) -> Problem | None:
    """Write what is made of a picture, and its row into the table.

    Returns:
        Why the file system refuses the name of the mask; None where all is written.
    """
    folder = table.folder
    try:
        if picture.overlay is not None:
            write_image(folder / picture.overlay, _overlay_with_legend(image, prediction))
        if picture.uncertainty is not None and prediction.uncertainty is not None:
            drawn = draw_uncertainty(image, prediction.uncertainty)
            write_image(folder / picture.uncertainty, drawn)
        if picture.probabilities is not None:
            _write_probs(folder / picture.probabilities, prediction)
        write_image(folder / picture.mask, prediction.grey)
    except WriteError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in REFUSED_NAMES:
            for path in picture.files:
                with suppress(OSError):
                    (folder / path).unlink(missing_ok=True)
            reason = system_reason(cause)
            return picture.mask, f"{picture.path}: no file {picture.mask} can be made: {reason}."
        raise
    table.add(_describe_row(picture, prediction, postprocessing))
    return None


def _write_probs(path: Path, prediction: Prediction) -> None:
    """Write probabilities of lesion in 16 bits."""
    scaled = np.round(prediction.probs.clip(0, 1) * 65535)
    write_image(path, scaled.astype(np.uint16))


def _overlay_with_legend(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The overlay; below it, for categories, a legend of those that it shows."""
    overlay = prediction.overlay(image)
    if not prediction.categories:
        return overlay
    shown = np.unique(prediction.labels).tolist()
    return np.concatenate([overlay, legend(prediction.categories, overlay.shape[1], shown)])
