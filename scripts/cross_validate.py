"""The same as `ovseg cross_validate`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("cross_validate"))
