"""Segmentation of ovarian tumours in ultrasound images."""

import os

__version__ = "0.1.0"

# Huge pages for torch's large tensors on Linux, read at its first one: fresh memory is filled 5 times as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
