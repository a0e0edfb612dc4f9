"""Figures of every ensemble size: accuracy, calibration, cost, early stopping."""
