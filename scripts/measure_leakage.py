"""The same as `ovseg measure_leakage`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("measure_leakage"))
