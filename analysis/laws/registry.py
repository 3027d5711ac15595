"""The registered laws and their roles.

A law is one module with ``LAW = register("law", NAME)(Law(...))``, in this folder or in another package.
"""

from analysis.laws.law import Law
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, nearest


def laws() -> tuple[Law, ...]:
    """Return every law, by name."""
    return tuple(registry.members("law").values())


def get(name: str) -> Law:
    """Return the law called ``name``, now or formerly; UserError if there is none."""
    formerly = {old: law for law in laws() for old in law.formerly}
    return formerly[name] if name in formerly else registry.get("law", name)


def fittable() -> tuple[str, ...]:
    """Return what a user can fit: ``auto``, the level law with a prior over families, and every law."""
    return ("auto", *(law.name for law in laws()))


def check_fittable(name: str) -> None:
    """Raise UserError for a ``name`` that is not one of ``fittable()``."""
    known = fittable()
    if name not in known:
        raise UserError(f"law '{name}' is unknown{nearest(name, known)}; choose one of {', '.join(known)}")


def rivals(name: str) -> tuple[str, ...]:
    """Return the names of the laws whose spread widens the intervals of the law ``name`` fitted alone."""
    return tuple(law.name for law in laws() if law.rival and law.name != name)
