"""The laws by name."""

from analysis.laws import annealing, functional, multi_power, variational, vplus
from analysis.laws.law import Law

LAWS: dict[str, Law] = {
    "variational": variational.LAW,
    "vplus": vplus.LAW,
    "annealing": annealing.LAW,
    "multi_power": multi_power.LAW,
    "functional": functional.LAW,
}
