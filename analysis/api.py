"""What a notebook needs: ``from analysis.api import load, fit, forecast, best, predict``.

>>> curves = [load("runs/probe/a"), load("runs/probe/b")]
>>> law = fit(curves)
>>> law                                       # prints in ten lines; a table in Jupyter
>>> predict(law, "wsd", steps=20000).final_loss
>>> best(law, steps=20000).schedule
>>> forecast(running, running.lr, curves).interval()
"""

from analysis.curves import LossCurve, load
from analysis.fit import Fit, FittedModel, Prediction, fit
from analysis.forecast import forecast
from analysis.schedules.recommended import Optimum, best

__all__ = ["Fit", "FittedModel", "LossCurve", "Optimum", "Prediction", "best", "fit", "forecast", "load", "predict"]


def predict(law: Fit | FittedModel, lr: object, steps: int | None = None, **parameters: object) -> Prediction:
    """Predict the losses of a schedule: an array of rates, or a name with its length ``steps`` and ``parameters``."""
    return law.predict(lr, steps, **parameters)  # type: ignore[arg-type]
