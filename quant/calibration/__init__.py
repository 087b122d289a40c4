"""Activation statistics of a model on real requests."""

from quant.calibration.statistics import Calibration, load_calibration, save_calibration

__all__ = ["Calibration", "load_calibration", "save_calibration"]
