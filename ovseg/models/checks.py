"""Checks of the settings that several architectures share."""

from collections.abc import Sequence

from ovseg.core.errors import InputError

MAX_LAYERS = 10  # at which the bridge sees 1/512 of the image's sides


def check_at_least(arch: str, minimum: int, **settings: int) -> None:
    """Refuse settings below a minimum.

    Raises:
        InputError: names the architecture and the first setting that is too small.
    """
    for name, value in settings.items():
        if value < minimum:
            raise InputError(f"{arch}: {name} is {value}, expected at least {minimum}.")


def check_num_layers(arch: str, num_layers: int) -> None:
    """Refuse a number of levels that is not 1..10.

    Raises:
        InputError: names the architecture and the number.
    """
    if not 1 <= num_layers <= MAX_LAYERS:
        raise InputError(f"{arch}: num_layers is {num_layers}, expected 1..{MAX_LAYERS}.")


def check_rate(arch: str, **rates: float) -> None:
    """Refuse dropout probabilities that are not in [0, 1).

    Raises:
        InputError: names the architecture and the first such rate.
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"{arch}: {name} is {rate}, expected 0 to below 1.")


def check_filters(arch: str, **lists: Sequence[int]) -> None:
    """Refuse lists of filters that are empty or hold a number below 1.

    Raises:
        InputError: names the architecture and the first such list.
    """
    for name, filters in lists.items():
        if isinstance(filters, int) or not filters or min(filters) < 1:
            raise InputError(
                f"{arch}: {name} is {filters}, expected a list of numbers, at least 1, one a level."
            )


def read_image_size(arch: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or of a pair.

    Raises:
        InputError: neither, or a number below 1; names the architecture.
    """
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(
            f"{arch}: image_size is {value}, expected one number or (height, width), at least 1."
        )
    return sides
