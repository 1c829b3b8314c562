"""Segmentation of ovarian tumours in ultrasound images."""

__version__ = "0.1.0"
