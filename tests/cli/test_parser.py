"""Options from signatures: what a command line becomes, and what is refused."""

from pathlib import Path

import pytest

from ovseg.cli.parser import build_parser, call_command, summarise
from ovseg.core.errors import InputError

CALLS: list[tuple] = []


def measure(
    what: str,
    /,
    *,
    run: Path,
    batch_size: int = 4,
    names: list[str] | None = None,
    fast: bool = False,
    checks: bool = True,
) -> int:
    """Measure a thing.

    Args:
        what: the thing
        run: run folder
        batch_size: images at a time
        names: names of peers
        fast: measure once
        checks: leave the checks out
    """
    CALLS.append((what, run, batch_size, names, fast, checks))
    return 0


def repeat(*train_arguments: str, trials: int = 3) -> int:
    """Train many times.

    Args:
        train_arguments: passed on
        trials: how often
    """
    CALLS.append((trials, train_arguments))
    return 0


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_defaults_are_those_of_the_signature():
    assert call_command(measure, ["train", "--run", "r"]) == 0
    assert [("train", Path("r"), 4, None, False, True)] == CALLS


def test_every_kind_of_option_reaches_the_function():
    arguments = "x --run=r --batch_size 8 --names a b --fast --no_checks"
    call_command(measure, arguments.split())
    assert [("x", Path("r"), 8, ["a", "b"], True, False)] == CALLS


def test_options_may_be_written_with_dashes():
    call_command(measure, ["x", "--run", "r", "--batch-size=8", "--no-checks"])
    assert [("x", Path("r"), 8, None, False, False)] == CALLS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x", "required: run"),
        ("--run r", "required: what"),
        ("x --run r --batch_size many", "batch_size.*many.*`ovseg measure --help`"),
        ("x --run r --bach_size 3", "no option --bach_size. Did you mean --batch_size"),
        ("x --run r --batch 3", "no option --batch. "),
        ("x y --run r", "unrecognized arguments: y"),
    ],
)
def test_mistakes_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        call_command(measure, arguments.split())
    assert CALLS == []


def test_other_arguments_are_passed_on_in_their_order():
    call_command(
        repeat, ["--trainer.max_epochs", "3", "--trials", "5", "--data.cache=false", "-c", "x"]
    )
    assert CALLS == [(5, ("--trainer.max_epochs", "3", "--data.cache=false", "-c", "x"))]


def test_misspelt_own_option_is_not_passed_on():
    with pytest.raises(InputError, match="no option --trails. Did you mean --trials"):
        call_command(repeat, ["--trails", "5"])


def test_help_has_the_words_of_the_docstring_and_the_defaults():
    text = " ".join(build_parser(measure).format_help().split())
    assert "Measure a thing." in text
    assert "--batch_size BATCH_SIZE images at a time (default: 4)" in text
    assert "--no_checks leave the checks out" in text
    assert summarise(measure) == "Measure a thing."
