"""Packages and data of the wheel; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

# Folders of the checkout that an installed copy has inside rwkv_lab; rwkv_lab/util/paths.py finds them in both.
DATA = {
    "conf": ["**/*.yaml"],
    "csrc": ["*"],
    "experiments": ["*.yaml"],
}

setup(
    packages=[
        *find_packages(include=["rwkv_lab", "rwkv_lab.*", "analysis", "analysis.*"]),
        "hydra_plugins",
        *(f"rwkv_lab.{folder}" for folder in DATA),
    ],
    package_dir={f"rwkv_lab.{folder}": folder for folder in DATA},
    package_data={
        "": ["py.typed", "constants.json", "*.css", "*.html", "*.js"],
        "rwkv_lab.ops": ["prebuilt/*/kernels.so", "prebuilt/*/record.json"],
        **{f"rwkv_lab.{folder}": patterns for folder, patterns in DATA.items()},
    },
)
