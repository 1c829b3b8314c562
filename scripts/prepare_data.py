"""The same as `ovseg prepare_data`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("prepare_data"))
