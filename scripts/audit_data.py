"""The same as `ovseg audit_data`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("audit_data"))
