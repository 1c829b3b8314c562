"""The same as `ovseg evaluate`."""

import sys

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
