"""The same as `ovseg compare_baseline`."""

import sys

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["compare_baseline", *sys.argv[1:]]))
