"""What several tests call: the folders of the checkout, and a command line in this process."""

import sys
from pathlib import Path

from ovseg.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def train(*arguments: str) -> int:
    """`ovseg train --config tiny.yaml ...` in this process, whose own arguments stay as they are."""
    before = sys.argv[:]
    try:
        return main(["train", "--config", "tiny.yaml", *arguments])
    finally:
        sys.argv = before
