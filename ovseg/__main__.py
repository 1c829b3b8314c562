"""`python -m ovseg NAME ...` is the console command `ovseg`."""

from ovseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
