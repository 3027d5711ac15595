"""The registry: what is found, what is refused, and components that other packages add."""

import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import describe, instance, validate
from rwkv_lab.config.kinds import Component

CONFIGS = [
    (kind, name)
    for kind in registry.KINDS
    for name, member in registry.members(kind).items()
    if isinstance(member, type)
]


@pytest.mark.parametrize(("kind", "name"), CONFIGS)
def test_every_config_describes_itself(kind: str, name: str) -> None:
    owner = registry.get(kind, name)
    assert issubclass(owner, Component)
    assert (owner.__doc__ or "").strip()
    rows = describe(owner)
    assert rows[0].name == "name"
    assert all(row.comment for row in rows), [row.name for row in rows if not row.comment]


@pytest.mark.parametrize(("kind", "name"), CONFIGS)
def test_every_group_has_its_option(kind: str, name: str, repository: Path) -> None:
    file = repository / "conf" / kind / f"{name}.yaml"
    assert file.is_file()
    assert file.read_text().splitlines()[0].startswith("# ")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"model\.name=rwkv_v5 .*rwkv_v4"):
        registry.get("model", "rwkv_v5", "model.name")


def test_a_name_has_one_owner() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("schedule", "cosine")(type("Another", (), {"__module__": "elsewhere"}))
    with pytest.raises(ValueError, match="unknown kind"):
        registry.register("flavour", "sweet")


def test_components_import_no_torch() -> None:
    code = (
        "import sys\nfrom rwkv_lab.config import registry\n"
        "for kind in registry.KINDS: registry.members(kind)\nsys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rwkv_lab.components]\nit = broken\n")
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom rwkv_lab.config import registry\nregistry.names('model')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "UserError" in done.stderr and "broken" in done.stderr


def test_values_become_their_types() -> None:
    wsd = instance(registry.get("schedule", "wsd"), {"lr_init": 1, "warmup_steps": 3.0, "lr_final": "1e-5"})
    assert (wsd.lr_init, wsd.warmup_steps, wsd.lr_final) == (1.0, 3, 1e-5)
    assert isinstance(wsd.lr_init, float) and isinstance(wsd.warmup_steps, int)


@pytest.mark.parametrize(
    ("value", "words"),
    [({"decay_fraction": 1.5}, "at most 1"), ({"decay_shape": "round"}, "linear"), ({"lr_init": float("inf")}, "inf")],
)
def test_bounds_and_choices(value: dict, words: str) -> None:
    with pytest.raises(UserError, match=rf"schedule\.{next(iter(value))}.*{words}"):
        validate(instance(registry.get("schedule", "wsd"), value), "schedule.")
