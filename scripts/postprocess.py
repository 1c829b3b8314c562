"""The same as `ovseg postprocess`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("postprocess"))
