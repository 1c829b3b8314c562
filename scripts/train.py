"""The same as `ovseg train`."""

import sys

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
