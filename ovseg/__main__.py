"""`python -m ovseg NAME ...` is the console command `ovseg`."""

from ovseg.core.trust import forget_current_folder

if __name__ == "__main__":
    forget_current_folder()
    from ovseg.cli.main import main

    raise SystemExit(main())
