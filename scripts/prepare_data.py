"""The same as `ovseg prepare_data`."""

import sys

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare_data", *sys.argv[1:]]))
