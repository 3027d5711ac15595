"""Fitting laws of loss against learning rate to the curves of runs."""

from analysis.fit.joint import MIXTURE, Fit, Prediction, RunSummary, as_rates, fit

__all__ = ["MIXTURE", "Fit", "Prediction", "RunSummary", "as_rates", "fit"]
