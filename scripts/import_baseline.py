"""The same as `ovseg import_baseline`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("import_baseline"))
