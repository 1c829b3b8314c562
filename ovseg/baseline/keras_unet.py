"""The flexible UNet, its loss and its training in Keras 3, for comparisons.

This is the only module that imports TensorFlow.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.baseline.keras_settings import NEEDS_TENSORFLOW
from ovseg.core.errors import InputError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up messages
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

try:
    import keras
    import tensorflow as tf
    from keras import layers
except ImportError as error:
    raise InputError(NEEDS_TENSORFLOW) from error


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
    """The baseline's flexible UNet without dropout; see `ovseg.models.unet`.

    Returns:
        A model from float pixels (N, image_size, image_size, 3), 0..255, to probabilities
        (N, image_size, image_size, 1).
    """

    def convolve_twice(features: Any, level: int) -> Any:
        for _ in range(2):
            convolution = layers.Conv2D(
                base_filters * 2**level,
                max(3, base_kernel - 2 * level),
                activation=activation,
                padding="same",
                dilation_rate=max(1, dilation - level),
                kernel_initializer="he_normal",
            )
            features = convolution(features)
            if normalization:
                features = layers.BatchNormalization()(features)
        return features

    inputs = keras.Input((image_size, image_size, 3))
    features = layers.Rescaling(input_scale)(inputs)
    bridge = num_layers - 1
    skips = []
    for level in range(bridge):
        features = convolve_twice(features, level)
        skips.append(features)
        features = layers.MaxPooling2D(2)(features)
    features = convolve_twice(features, bridge)
    for level in reversed(range(bridge)):
        features = layers.Conv2DTranspose(base_filters * 2**level, 2, strides=2)(features)
        features = layers.Concatenate()([features, skips[level]])
        features = convolve_twice(features, level)
    probs = layers.Conv2D(1, 1, activation="sigmoid")(features)
    return keras.Model(inputs, probs)


def dice_coef(mask: Any, probs: Any) -> Any:
    """The baseline's soft Dice over a batch."""
    mask = keras.ops.reshape(mask, (-1,))
    probs = keras.ops.reshape(probs, (-1,))
    overlap = keras.ops.sum(mask * probs)
    return (2 * overlap + 1) / (keras.ops.sum(mask) + keras.ops.sum(probs) + 1)


def bce_dice_loss(mask: Any, probs: Any) -> Any:
    """The baseline's loss as Keras trains with it.

    Keras finds the logits from which the sigmoid made `probs` and does not clip them.
    """
    cross_entropy = keras.ops.mean(keras.losses.binary_crossentropy(mask, probs))
    return (cross_entropy + 1 - dice_coef(mask, probs)) / 2


def clipped_loss(mask: Any, probs: Any) -> Any:
    """The baseline's loss of probabilities that are clipped to 1e-7 .. 1 - 1e-7.

    Keras clips because it cannot find the logits of a reshaped tensor.
    """
    return bce_dice_loss(keras.ops.reshape(mask, (-1,)), keras.ops.reshape(probs, (-1,)))


def save_initial_weights(network: dict[str, Any], path: Path, seed: int, threads: int) -> None:
    """Draw Keras' initial weights and save them as `.weights.h5`."""
    _start(seed, threads)
    build_keras_unet(**network).save_weights(path)


class KerasTraining:
    """The flexible UNet in training with Keras.

    Args:
        network: arguments of `build_keras_unet`.
        weights: initial weights.
        optimizer: `lr`, `eps` and `clip_value` of Adam.
        threads: CPU threads.
    """

    def __init__(
        self, network: dict[str, Any], weights: Path, optimizer: dict[str, float], threads: int
    ) -> None:
        _start(0, threads)
        self.model = build_keras_unet(**network)
        self.model.load_weights(weights)
        self.model.compile(_build_adam(optimizer), bce_dice_loss, metrics=[clipped_loss, dice_coef])

    def step(self, image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
        """Train on one batch.

        Args:
            image: uint8, (N, H, W, 3).
            mask: 0 or 1, (N, H, W, 1).

        Returns:
            Loss and dice_coef before the step, as Keras reports them.
        """
        scores = self.model.train_on_batch(
            image.astype(np.float32), mask.astype(np.float32), return_dict=True
        )
        self.model.reset_metrics()
        return float(scores["clipped_loss"]), float(scores["dice_coef"])

    def evaluate(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
        """Mean loss over images and mean dice_coef over batches, as the baseline evaluates."""
        losses = []
        scores = []
        counts = []
        for image, mask in batches:
            probs = self.model(image.astype(np.float32), training=False)
            reference = mask.astype(np.float32)
            losses.append(float(clipped_loss(reference, probs)))
            scores.append(float(dice_coef(reference, probs)))
            counts.append(len(image))
        return float(np.average(losses, weights=counts)), float(np.mean(scores))


def keras_training_step(
    network: dict[str, Any],
    weights: Path | None,
    optimizer: dict[str, float],
    threads: int,
    image: np.ndarray,
    mask: np.ndarray,
) -> Callable[[], float]:
    """A function that trains on one batch and returns the loss.

    Args:
        network: arguments of `build_keras_unet`.
        weights: a Keras file, or None to keep the weights that Keras draws.
        optimizer: `lr`, `eps` and `clip_value` of Adam.
        threads: CPU threads.
        image: uint8, (N, H, W, 3).
        mask: 0 or 1, (N, H, W, 1).
    """
    _start(0, threads)
    model = build_keras_unet(**network)
    if weights is not None:
        model.load_weights(weights)
    model.compile(_build_adam(optimizer), bce_dice_loss)
    pixels = image.astype(np.float32)
    reference = mask.astype(np.float32)
    return lambda: float(model.train_on_batch(pixels, reference))


def keras_inference(
    network: dict[str, Any], weights: Path | None, threads: int, image: np.ndarray
) -> Callable[[], np.ndarray]:
    """A function that returns the probabilities of one batch, computed by a compiled graph.

    Args:
        network: arguments of `build_keras_unet`.
        weights: a Keras file, or None to keep the weights that Keras draws.
        threads: CPU threads.
        image: uint8, (N, H, W, 3).

    Returns:
        A function that returns float32 (N, H, W, 1).
    """
    _start(0, threads)
    model = build_keras_unet(**network)
    if weights is not None:
        model.load_weights(weights)
    pixels = image.astype(np.float32)
    return lambda: model.predict_on_batch(pixels)


def _build_adam(optimizer: dict[str, float]) -> keras.optimizers.Adam:
    return keras.optimizers.Adam(
        optimizer["lr"], epsilon=optimizer["eps"], clipvalue=optimizer["clip_value"]
    )


def _start(seed: int, threads: int) -> None:
    keras.utils.set_random_seed(seed)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
