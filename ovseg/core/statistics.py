"""Intervals of means by bootstrap."""

import numpy as np
from scipy.stats import bootstrap


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> list[float] | None:
    """95 % percentile interval of the mean, resampling 9,999 times with a fixed seed.

    Args:
        values: float (N,), without NaN.
        groups: the group of each value, (N,); whole groups are resampled, because their members are
            not independent. None resamples the values.

    Returns:
        Lower and upper bound; None for fewer than two values or groups.
    """
    if groups is not None:
        members = np.unique(groups, return_inverse=True)[1]
        return ratio_interval(np.bincount(members, weights=values), np.bincount(members))
    if len(values) < 2:
        return None
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    interval = found.confidence_interval
    return [float(interval.low), float(interval.high)]


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> list[float] | None:
    """95 % percentile interval of sum(numerators) / sum(denominators), resampling both together.

    With the sum and the count of each group it is the interval of a mean that resamples whole
    groups, whose members are not independent.

    Args:
        numerators: (N,).
        denominators: (N,); units with the denominator 0 are left out.

    Returns:
        Lower and upper bound; None for fewer than two units.
    """
    kept = denominators > 0
    if kept.sum() < 2:
        return None
    found = bootstrap(
        (numerators[kept].astype(float), denominators[kept].astype(float)),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        method="percentile",
        batch=1000,  # bounds the memory
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return [float(interval.low), float(interval.high)]


def _ratio_of_sums(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
    return numerators.sum(axis) / denominators.sum(axis)
