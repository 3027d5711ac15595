"""Weights of time that a run learned, by layer and channel or head, and what its head-QK copies from a text.

RWKV v2 to v4 learn a decay for each channel: a token ``t`` positions back counts ``exp(-(t - 1) d)`` with
``d = exp(time_decay)``, the token at hand ``exp(time_first)`` (Peng, RWKV-LM). RWKV v1 and MHA_pro learn a curve for
each head, ``time_w`` against distance, and factors ``time_alpha``, ``time_beta``, ``time_gamma`` of the position. A
learned token shift has a share m of the token at hand for each channel, ``time_mix``, by what the mixed input is for.
Reads model.safetensors without torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.plots.style import plain_numbers, style
from rwkv_lab.config.errors import UserError

NAME = re.compile(
    r"(?:^|\.)blocks\.(\d+)\.(att|ffn)\.(?:\w+\.)*(time_(?:decay|first|w|alpha|beta|gamma|mix(?:_[a-z])?))$"
)
SIDES = {"att": "time mix or attention", "ffn": "channel mix"}
ROLES = {"q": "query", "k": "key", "v": "value", "r": "receptance", "mix": "all of them"}
MOST_TOKENS = 64  # of a text whose copies are drawn
CHANNELS = 48  # curves drawn in a layer's panel; more are even quantiles of them
Layers = dict[int, np.ndarray]


def by_layer(tensors: Mapping[str, np.ndarray]) -> dict[str, Layers]:
    """Return ``{"time_decay": {0: [C], ...}, "time_w": {0: [H, ctx_len], ...}, ...}`` from a model's weights.

    The shares of a learned token shift are called ``att.time_mix_k`` and so on, by sublayer and role.
    """
    found: dict[str, Layers] = {}
    for name, tensor in tensors.items():
        match = NAME.search(name)
        if match:
            values = np.asarray(tensor, dtype=np.float64)
            layer, side, name = int(match[1]), match[2], match[3]
            kind = f"{side}.{name}" if name.startswith("time_mix") else name
            heads = len(values) if name in ("time_w", "time_alpha", "time_beta") and values.ndim > 1 else None
            found.setdefault(kind, {})[layer] = values.reshape(heads, -1) if heads else values.ravel()
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


def read(path: Path, any_weights: bool = False) -> dict[str, Layers]:
    """Read the weights of time of a run directory or a .safetensors file.

    UserError if it has none, unless ``any_weights``.
    """
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
    if not any_weights and not shares(layers) and "time_decay" not in layers and "time_w" not in layers:
        raise UserError(
            f"{file} has neither time_decay nor time_w, the time weights that RWKV and MHA_pro learn, nor a learned "
            "token shift"
        )
    return layers


def shares(layers: Mapping[str, Layers]) -> dict[tuple[str, str], Layers]:
    """Return the shares of the previous token, 1 - m, by sublayer (att, ffn) and role (q, k, v, r; mix: one)."""
    kinds = [kind.partition(".time_mix") for kind in layers if ".time_mix" in kind]
    return {
        (side, role.lstrip("_") or "mix"): {layer: 1.0 - m for layer, m in layers[side + mark + role].items()}
        for side, mark, role in kinds
    }


def shift_figure(found: Mapping[tuple[str, str], Layers]) -> Any:
    """Return the figure of the learned shares by layer: a panel a sublayer, a line a role, its middle 80 % shaded."""
    from matplotlib.figure import Figure

    sides = [side for side in SIDES if any(side == each for each, _ in found)]
    figure = Figure(figsize=(3.6 * len(sides) + 0.4, 3.2))
    axes = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
    for ax, side in zip(axes, sides, strict=True):
        roles = {role: layers for (each, role), layers in found.items() if each == side}
        for look, (role, layers) in zip(map(style, range(len(roles))), roles.items(), strict=True):
            low, high = (np.array([np.quantile(values, q) for values in layers.values()]) for q in (0.1, 0.9))
            mean = [values.mean() for values in layers.values()]
            ax.plot(list(layers), mean, marker=look.mpl_marker, color=look.colour, label=ROLES.get(role, role))
            ax.fill_between(list(layers), low, high, color=look.colour, alpha=0.12, linewidth=0)
        ax.set(title=SIDES[side], xlabel="layer", xticks=list(next(iter(roles.values()))))
        ax.legend()
    axes[0].set_ylabel("share of the previous token")
    return figure


def copying_figure(tokens: list[str], scores: np.ndarray) -> Any:
    """Return the figure of head-QK's scores [T,T] for a text's last tokens: red copies, blue avoids."""
    from matplotlib.figure import Figure

    first = max(0, len(tokens) - MOST_TOKENS)
    shown = [token.replace("\n", "⏎").replace(" ", "␣") if not token.strip() else token for token in tokens[first:]]
    values = scores[first:, first:]
    side = 1.6 + 0.14 * len(shown)
    figure = Figure(figsize=(side + 0.9, side))
    ax = figure.subplots()
    largest = float(np.nanmax(np.abs(values))) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    ax.set_xticks(range(len(shown)), shown, rotation=90, fontsize=6)
    ax.set_yticks(range(len(shown)), shown, fontsize=6)
    ax.grid(visible=False)
    ax.set(xlabel="earlier token", ylabel="last token read")
    figure.colorbar(image, label="added to the logit of the earlier token", shrink=0.7)
    return figure


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
        plain_numbers(ax.xaxis)
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
    if learned := shares(layers):
        made["token_shift"] = shift_figure(learned)
    for kind in ("time_alpha", "time_beta", "time_gamma"):
        if kind in layers:
            made[kind] = factors_figure(kind, layers[kind])
    return made
