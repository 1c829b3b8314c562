"""The same as `ovseg infer`."""

import sys

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["infer", *sys.argv[1:]]))
