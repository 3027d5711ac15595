"""Time weights that a run learned, by layer and channel or head.

RWKV v2 to v4 learn a decay for each channel: a token ``t`` positions back counts ``exp(-(t - 1) d)`` with
``d = exp(time_decay)``, the token at hand ``exp(time_first)`` (Peng, RWKV-LM). RWKV v1 and MHA_pro learn a curve for
each head, ``time_w`` against distance, and factors ``time_alpha``, ``time_beta``, ``time_gamma`` of the position. Reads
model.safetensors without torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError

NAME = re.compile(r"(?:^|\.)blocks\.(\d+)\.(?:\w+\.)*(time_(?:decay|first|w|alpha|beta|gamma))$")
CHANNELS = 48  # curves drawn in a layer's panel; more are even quantiles of them
Layers = dict[int, np.ndarray]


def by_layer(tensors: Mapping[str, np.ndarray]) -> dict[str, Layers]:
    """Return ``{"time_decay": {0: [C], ...}, "time_w": {0: [H, ctx_len], ...}, ...}`` from a model's weights."""
    found: dict[str, Layers] = {}
    for name, tensor in tensors.items():
        match = NAME.search(name)
        if match:
            values = np.asarray(tensor, dtype=np.float64)
            heads = len(values) if match[2] in ("time_w", "time_alpha", "time_beta") and values.ndim > 1 else None
            found.setdefault(match[2], {})[int(match[1])] = values.reshape(heads, -1) if heads else values.ravel()
    return {kind: dict(sorted(layers.items())) for kind, layers in found.items()}


def half_life(time_decay: np.ndarray) -> np.ndarray:
    """Return the tokens after which a channel's weight has halved, ln 2 / exp(time_decay)."""
    return np.log(2.0) / np.exp(time_decay)


def weight_at(time_decay: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return the weight ``[C, T]``, ``exp(-(t - 1) exp(time_decay))`` of tokens ``distance`` [T] >= 1 back."""
    return np.exp(-(distance[None, :] - 1) * np.exp(time_decay)[:, None])


def against_distance(time_w: np.ndarray) -> np.ndarray:
    """Return ``[H, T]`` with distance 0 first; the model stores it last."""
    return time_w[:, ::-1]


def read(path: Path) -> dict[str, Layers]:
    """Read the time weights of a run directory or a .safetensors file; UserError if it has none."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        study = next(path.glob("*/run.json"), None)
        what = (
            "does not exist"
            if not path.is_dir()
            else f"is a folder of runs: give one of them, e.g. {study.parent}"
            if study
            else "has no model.safetensors: the run has not finished"
        )
        raise UserError(f"{path} {what}")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    layers = by_layer(tensors)
    if "time_decay" not in layers and "time_w" not in layers:
        raise UserError(f"{file} has neither time_decay nor time_w, the time weights that RWKV and MHA_pro learn")
    return layers


def _grid(count: int, x_label: str, y_label: str) -> tuple[Any, list[Any]]:
    """Return a figure with a panel for each of ``count`` layers, labelled at its left and lower edge."""
    from matplotlib.figure import Figure

    columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns + 0.4, 2.3 * rows + 0.5))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    for place, ax in enumerate(axes[:count]):
        if place % columns == 0:
            ax.set_ylabel(y_label)
        if place + columns >= count:
            ax.set_xlabel(x_label)
            ax.tick_params(labelbottom=True)
    return figure, list(axes[:count])


def _shades(count: int) -> list[Any]:
    """Return ``count`` colours from dark to light, in order for every kind of colour vision and in grey."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0.0, 0.88, max(1, count))]


def decay_figure(decay: Layers, first: Layers) -> Any:
    """Return the figure of time_decay, the sorted half-lives, and time_first if learned, against the channel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2 if first else 6.8, 3.4))
    axes = figure.subplots(1, 3 if first else 2)
    for colour, (layer, values) in zip(_shades(len(decay)), decay.items(), strict=True):
        axes[0].plot(values, color=colour, linewidth=1.1, label=f"layer {layer}")
        axes[1].semilogy(np.sort(half_life(values)), color=colour, linewidth=1.1)
    for colour, values in zip(_shades(len(first)), first.values(), strict=True):
        axes[2].plot(values, ".", color=colour, markersize=2.5)
    names = (("channel", "time_decay"), ("channel, sorted", "half-life (tokens)"), ("channel", "time_first"))
    for ax, (x_label, y_label) in zip(axes, names, strict=False):
        ax.set(xlabel=x_label, ylabel=y_label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(handles)))
    return figure


def curves_figure(decay: Layers, longest: int) -> Any:
    """Return the figure of a token's weight against its distance: a panel a layer, a line a channel."""
    figure, axes = _grid(len(decay), "distance (tokens)", "weight of a token")
    distance = np.unique(np.geomspace(1, longest, 200).astype(int))
    for ax, (layer, values) in zip(axes, decay.items(), strict=True):
        channels = np.sort(values)
        if len(channels) > CHANNELS:
            channels = np.quantile(channels, np.linspace(0, 1, CHANNELS))
        for colour, curve in zip(_shades(len(channels)), weight_at(channels, distance), strict=True):
            ax.plot(distance, curve, color=colour, linewidth=0.8)
        ax.set_title(f"layer {layer}", fontsize=9)
        ax.set_xscale("log")
    return figure


def heads_figure(time_w: Layers) -> Any:
    """Return the figure of time_w against the distance: a panel a layer, a line a head."""
    figure, axes = _grid(len(time_w), "distance (tokens)", "time_w")
    for ax, (layer, values) in zip(axes, time_w.items(), strict=True):
        for head, (colour, curve) in enumerate(zip(_shades(len(values)), against_distance(values), strict=True)):
            ax.plot(curve, color=colour, linewidth=1.0, label=f"head {head}")
        ax.set_title(f"layer {layer}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(handles)))
    return figure


def factors_figure(kind: str, layers: Layers) -> Any:
    """Return the figure of time_alpha, time_beta or time_gamma against the position: a panel a layer, a line a head."""
    figure, axes = _grid(len(layers), "position (tokens)", kind)
    for ax, (layer, values) in zip(axes, layers.items(), strict=True):
        curves = np.atleast_2d(values)
        for head, (colour, curve) in enumerate(zip(_shades(len(curves)), curves, strict=True)):
            ax.plot(curve, color=colour, linewidth=1.0, label=f"head {head}")
        ax.set_title(f"layer {layer}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(handles)))
    return figure


def figures(layers: dict[str, Layers], longest: int) -> dict[str, Any]:
    """Return every figure of the weights by file name; ``longest``: distance of the decay curves in tokens."""
    made = {}
    if "time_decay" in layers:
        made["time_decay"] = decay_figure(layers["time_decay"], layers.get("time_first", {}))
        made["decay_curves"] = curves_figure(layers["time_decay"], longest)
    if "time_w" in layers:
        made["time_w"] = heads_figure(layers["time_w"])
    for kind in ("time_alpha", "time_beta", "time_gamma"):
        if kind in layers:
            made[kind] = factors_figure(kind, layers[kind])
    return made
