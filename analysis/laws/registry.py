"""The laws by name. ``NAMED`` may be fitted alone; ``LAWS`` has all that a mixture may hold."""

from analysis.laws import annealing, functional, level, multi_power, power_time, variational, vplus
from analysis.laws.law import Law

NAMED: dict[str, Law] = {
    "variational": variational.LAW,
    "vplus": vplus.LAW,
    "annealing": annealing.LAW,
    "multi_power": multi_power.LAW,
    "functional": functional.LAW,
    "level": level.LAW,
}

LAWS: dict[str, Law] = {
    **NAMED,
    "vplus_own_time": power_time.LAW,
}
