"""What the commands share: a parser whose mistakes are one line, and how a command ends."""

import argparse
import difflib
import logging
import os
import sys
import warnings
from typing import NoReturn

from ovseg.core.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError in place of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. `{self.prog} --help` tells the options.")


def build_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `ovseg COMMAND`; options are written out in full."""
    return Parser(prog=f"ovseg {command}", description=description, allow_abbrev=False)


def parse_own(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The parser's own options, and what is left for `train`.

    Raises:
        InputError: what is left has an option that is nearly an own one; keys of `train` have a section and a dot.
    """
    own = [option for action in parser._actions for option in action.option_strings]
    options, rest = parser.parse_known_args(arguments)
    for name in (argument.partition("=")[0] for argument in rest if argument.startswith("--")):
        near = difflib.get_close_matches(name, own, 1, 0.85)
        if near and "." not in name:
            raise InputError(
                f"There is no option {name}. Did you mean {near[0]}? Keys of train have a section."
            )
    return options, rest


def conclude(text: str, failures: list[str]) -> int:
    """Print the result; name the files that failed, and exit with 1 for them."""
    print(text)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} files failed.", file=sys.stderr)
    return 1 if failures else 0


def quiet_lightning() -> None:
    """Leave out Lightning's messages that a user can do nothing about; to be called before it is imported."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's own calls
    advertisement = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    advertisement.addFilter(lambda record: "litlogger" not in record.getMessage())
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
    warnings.filterwarnings(
        "ignore", ".*LeafSpec.* is deprecated", module="pytorch_lightning"
    )  # its own code
