import math

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.training.schedules import (
    SCHEDULERS,
    STEPWISE,
    Length,
    build_scheduler,
    check_length,
    keras_plateau,
)


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates], lr=1.0
    )


def rates_of(name: str, length: Length, *rates: float, **arguments) -> list[list[float]]:
    """The rate of each group before every step."""
    optimizer, found = optimizer_of(*rates), []
    schedule = build_scheduler(name, optimizer, "min", length, **arguments)
    for _ in range(length.steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [list(column) for column in zip(*found, strict=True)]


def test_keras_plateau_falls_at_the_patience_th_bad_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule, rates = keras_plateau(optimizer, factor=0.4, patience=4), []
    for value in (1.0, 0.99995, 1.0, 1.0, 1.0, 1.0):  # the first gain is below min_delta
        schedule.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 1, 0.4, 0.4]


def test_plateau_is_torchs_and_falls_one_epoch_later():
    optimizer = optimizer_of(1.0)
    schedule, rates = build_scheduler("plateau", optimizer, factor=0.5, patience=2), []
    for value in (1.0, 1.0, 1.0, 1.0, 1.0):
        schedule.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("name", ["plateau", "keras_plateau"])
def test_plateau_watches_a_score_for_higher(name):
    for mode, falls in (("max", False), ("min", True)):
        optimizer = optimizer_of(1.0)
        schedule = build_scheduler(name, optimizer, mode, patience=1)
        for value in (0.1, 0.2, 0.3, 0.4):
            schedule.step(value)
        assert (optimizer.param_groups[0]["lr"] < 1) == falls


def test_cosine_rises_over_the_warmup_and_falls_to_the_factor():
    whole, tenth = rates_of("cosine", Length(12, 4), 1.0, 0.1, warmup_epochs=1, min_factor=0.2)
    assert whole[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert whole[8] == pytest.approx(0.6)  # half-way down: (1 + 0.2) / 2
    assert whole[11] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert tenth == pytest.approx([value / 10 for value in whole])


def test_cosine_without_warmup_begins_at_the_rate():
    (whole,) = rates_of("cosine", Length(10, 2), 1.0)
    assert (
        whole[0] == 1
        and whole[5] == pytest.approx(0.5)
        and whole[9] == pytest.approx(0.0245, abs=1e-4)
    )


def test_one_cycle_peaks_at_each_groups_rate():
    whole, tenth = rates_of(
        "one_cycle", Length(20, 5), 1.0, 0.1, pct_start=0.25, div_factor=10, final_div_factor=100
    )
    assert (
        whole[0] == pytest.approx(0.1)
        and whole[4] == pytest.approx(1.0)
        and whole[19] == pytest.approx(0.001)
    )
    assert tenth == pytest.approx([value / 10 for value in whole])


def test_polynomial_falls_with_the_power_of_what_is_left():
    whole, tenth = rates_of("polynomial", Length(10, 2), 1.0, 0.1, power=2.0, min_lr=0.01)
    assert whole[0] == 1.0
    assert whole[5] == pytest.approx(0.01 + 0.99 * 0.25)
    assert tenth[5] == pytest.approx(0.01 + 0.09 * 0.25)  # both end at the same rate


def test_polynomial_rises_to_the_fall_over_the_warmup():
    (whole,) = rates_of("polynomial", Length(10, 2), 1.0, power=1.0, warmup_steps=3)
    assert whole[:5] == pytest.approx([1 / 4, 0.9 * 2 / 4, 0.8 * 3 / 4, 0.7, 0.6])


@pytest.mark.parametrize("name", STEPWISE)
def test_a_training_of_one_step_has_a_schedule(name):
    assert math.isfinite(rates_of(name, Length(1, 1), 1.0)[0][0])


@pytest.mark.parametrize("name", STEPWISE)
def test_stepwise_schedule_resumes(name):
    length, states = Length(9, 3), []
    for pause in (False, True):
        optimizer = optimizer_of(1.0, 0.1)
        schedule = build_scheduler(name, optimizer, "min", length)
        for step in range(9):
            if pause and step == 4:
                saved, optimizer_state = schedule.state_dict(), optimizer.state_dict()
                optimizer = optimizer_of(1.0, 0.1)
                schedule = build_scheduler(name, optimizer, "min", length)
                optimizer.load_state_dict(optimizer_state)
                schedule.load_state_dict(saved)
            states.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
    assert states[:9] == states[9:]


@pytest.mark.parametrize("name", STEPWISE)
def test_schedule_of_another_length_is_an_error(name):
    schedule = build_scheduler(name, optimizer_of(1.0), "min", Length(9, 3))
    check_length(schedule, 9)
    with pytest.raises(
        InputError, match="schedule was made for 9 optimiser steps, but this training has 12"
    ):
        check_length(schedule, 12)


def test_plateau_has_no_length():
    check_length(build_scheduler("plateau", optimizer_of(1.0)), 12)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "cliff",
            {},
            "Unknown scheduler 'cliff'. Choose one of: cosine, keras_plateau, one_cycle, plateau, "
            "polynomial",
        ),
        ("keras_plateau", {"factor": 2.0}, "scheduler keras_plateau refuses"),
        ("keras_plateau", {"patience": 0}, "patience is 0, expected at least 1"),
        (
            "keras_plateau",
            {"mode": "max"},
            "scheduler keras_plateau does not take mode. Its arguments are: factor",
        ),
        ("plateau", {"patience": -1}, "patience is -1, expected at least 0"),
        ("plateau", {"threshold_mode": "odd"}, "scheduler plateau refuses"),
        ("cosine", {"warmup_epochs": 3}, "warmup_epochs 3 is not inside the 3 epochs"),
        ("cosine", {"warmup_epochs": -1}, "warmup_epochs -1 is not inside"),
        ("cosine", {"min_factor": 1.5}, "min_factor is 1.5, expected 0..1"),
        ("cosine", {"length": 3}, "scheduler cosine does not take length"),
        ("polynomial", {"power": 0.0}, "power 0.0 is expected above 0"),
        ("polynomial", {"warmup_steps": 12}, "warmup_steps 12 is not inside the 12 steps"),
        ("polynomial", {"min_lr": 2.0}, "min_lr 2.0 is above the rate 1.0"),
        ("one_cycle", {"pct_start": 2.0}, "scheduler one_cycle refuses"),
        ("one_cycle", {"div_factor": 0.0}, "div_factor and final_div_factor are expected above 0"),
    ],
)
def test_mistakes_are_errors(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build_scheduler(name, optimizer_of(1.0), "min", Length(12, 4), **arguments)


def test_every_schedule_builds_before_the_length_is_known():
    for name in SCHEDULERS:
        build_scheduler(name, optimizer_of(1.0))
