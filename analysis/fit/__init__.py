"""Fitting laws of loss against learning rate to the curves of runs."""

from analysis.fit.joint import Fit, fit
from analysis.fit.model import FittedModel, Prediction

__all__ = ["Fit", "FittedModel", "Prediction", "fit"]
