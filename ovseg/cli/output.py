"""What commands print, and which of Lightning's messages they leave out."""

import logging
import sys
import warnings
from collections.abc import Sequence

from ovseg.core.errors import split_advice
from ovseg.core.text import printable


def conclude(text: str, failures: Sequence[str] = ()) -> int:
    """Print the result on standard output and the files that failed on standard error.

    Advice that follows for one file after the other is printed once.

    Returns:
        The exit code: 0, or 1 where files failed.
    """
    print(text)
    told = ""
    for failure in failures:
        fault, advice = split_advice(failure)
        shown = fault if advice == told else failure
        told = advice
        print(f"failed: {printable(shown)}", file=sys.stderr)
    if not failures:
        return 0
    print(f"{len(failures)} files failed.", file=sys.stderr)
    return 1


def quiet_lightning() -> None:
    """Leave out messages of Lightning that a user can do nothing about.

    To be called before Lightning is imported.
    """
    advertisement = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    advertisement.addFilter(lambda record: "litlogger" not in record.getMessage())
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
    # Lightning's own use of torch's pytree.
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", module="pytorch_lightning")
