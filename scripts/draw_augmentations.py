"""The same as `ovseg draw_augmentations`."""

from ovseg.cli.main import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("draw_augmentations"))
