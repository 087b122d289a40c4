"""Activation statistics of a model on real requests."""

from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import Calibration

__all__ = ["Calibration", "load_calibration", "save_calibration"]
