"""The flexible UNet, its loss and its training in Keras 3: the other side of `compare`. Only module with TensorFlow."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.core.errors import InputError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up messages
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

try:
    import keras
    import tensorflow as tf
    from keras import layers
except ImportError as error:
    raise InputError("The comparison needs TensorFlow: pip install 'ovseg[tensorflow]'.") from error


def build_keras_unet(
    image_size: int,
    base_filters: int,
    base_kernel: int,
    num_layers: int,
    dilation: int,
    activation: str,
    normalization: bool,
    input_scale: float,
) -> keras.Model:
    """The baseline's flexible UNet without dropout, with a sigmoid at its end; see `ovseg.models.unet`.

    Takes float pixels (N, image_size, image_size, 3), gives probabilities (N, image_size, image_size, 1).
    """

    def block(features: Any, level: int) -> Any:
        kernel, rate = max(3, base_kernel - 2 * level), max(1, dilation - level)
        for _ in range(2):
            options = {"padding": "same", "dilation_rate": rate, "kernel_initializer": "he_normal"}
            features = layers.Conv2D(
                base_filters * 2**level, kernel, activation=activation, **options
            )(features)
            features = layers.BatchNormalization()(features) if normalization else features
        return features

    inputs = keras.Input((image_size, image_size, 3))
    features, skips = layers.Rescaling(input_scale)(inputs), []
    for level in range(num_layers):
        features = block(features, level)
        skips.append(features)
        features = layers.MaxPooling2D(2)(features) if level < num_layers - 1 else features
    for level in reversed(range(num_layers - 1)):
        features = layers.Conv2DTranspose(base_filters * 2**level, 2, strides=2)(features)
        features = block(layers.Concatenate()([features, skips[level]]), level)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(features))


def dice_coef(mask: Any, probs: Any) -> Any:
    """The baseline's soft Dice over a batch."""
    mask, probs = keras.ops.reshape(mask, (-1,)), keras.ops.reshape(probs, (-1,))
    overlap = keras.ops.sum(mask * probs)
    return (2 * overlap + 1) / (keras.ops.sum(mask) + keras.ops.sum(probs) + 1)


def bce_dice_loss(mask: Any, probs: Any) -> Any:
    """The baseline's loss as Keras trains with it: it finds the logits behind `probs` and does not clip them."""
    return (
        keras.ops.mean(keras.losses.binary_crossentropy(mask, probs)) + 1 - dice_coef(mask, probs)
    ) / 2


def clipped_loss(mask: Any, probs: Any) -> Any:
    """The baseline's loss of probabilities clipped to 1e-7 .. 1 - 1e-7: reshaped ones have no logits behind them."""
    return bce_dice_loss(keras.ops.reshape(mask, (-1,)), keras.ops.reshape(probs, (-1,)))


def save_initial_weights(network: dict[str, Any], path: Path, seed: int, threads: int) -> None:
    """Draw Keras' initial weights and save them as `.weights.h5`."""
    _start(seed, threads)
    build_keras_unet(**network).save_weights(path)


def train_keras(
    network: dict[str, Any],
    weights: Path,
    optimizer: dict[str, float],
    threads: int,
    batches: list[np.ndarray],
) -> Iterator[tuple[float, float]]:
    """Loss and dice_coef of each training step, as Keras reports them.

    Args:
        network: arguments of `build_keras_unet`.
        weights: initial weights.
        optimizer: `lr`, `eps` and `clip_value`.
        threads: CPU threads.
        batches: pairs of images uint8 (N, H, W, 3) and masks 0/1 (N, H, W, 1), one a step.

    Yields:
        (loss, dice_coef); the generator returns the trained model.
    """
    _start(0, threads)
    model = build_keras_unet(**network)
    model.load_weights(weights)
    adam = keras.optimizers.Adam(
        optimizer["lr"], epsilon=optimizer["eps"], clipvalue=optimizer["clip_value"]
    )
    model.compile(adam, bce_dice_loss, metrics=[clipped_loss, dice_coef])
    for image, mask in batches:
        scores = model.train_on_batch(
            image.astype(np.float32), mask.astype(np.float32), return_dict=True
        )
        model.reset_metrics()
        yield float(scores["clipped_loss"]), float(scores["dice_coef"])
    return model


def keras_training_step(
    network: dict[str, Any],
    optimizer: dict[str, float],
    threads: int,
    image: np.ndarray,
    mask: np.ndarray,
) -> Callable[[], float]:
    """A function that trains on one batch, image uint8 and mask 0/1 (N, H, W, C), and returns the loss."""
    _start(0, threads)
    model = build_keras_unet(**network)
    adam = keras.optimizers.Adam(
        optimizer["lr"], epsilon=optimizer["eps"], clipvalue=optimizer["clip_value"]
    )
    model.compile(adam, bce_dice_loss)
    image, mask = image.astype(np.float32), mask.astype(np.float32)
    return lambda: float(model.train_on_batch(image, mask))


def keras_inference(
    network: dict[str, Any], weights: Path, threads: int, image: np.ndarray
) -> Callable[[], np.ndarray]:
    """A function that gives the probabilities of one batch, (N, H, W, 1), as a compiled graph."""
    _start(0, threads)
    model = build_keras_unet(**network)
    model.load_weights(weights)
    image = image.astype(np.float32)
    return lambda: model.predict_on_batch(image)


def evaluate_keras(model: keras.Model, batches: list[np.ndarray]) -> tuple[float, float]:
    """Mean loss over images and mean dice_coef over batches, as the baseline's evaluation."""
    losses, scores, counts = [], [], []
    for image, mask in batches:
        probs, mask = model(image.astype(np.float32), training=False), mask.astype(np.float32)
        losses.append(float(clipped_loss(mask, probs)))
        scores.append(float(dice_coef(mask, probs)))
        counts.append(len(image))
    return float(np.average(losses, weights=counts)), float(np.mean(scores))


def _start(seed: int, threads: int) -> None:
    keras.utils.set_random_seed(seed)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
