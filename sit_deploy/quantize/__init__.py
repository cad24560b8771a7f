"""Calibrating a graph on images and writing 8 bits into it."""
