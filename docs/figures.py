"""Draws docs/figures/*.svg: python docs/figures.py

Every number is computed by the functions that train. The response and its entropies are made up.
The files are the same bytes each time, under one version of matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from tpcli.analysis.canvas import BLUE, GREY, ORANGE
from tpcli.credit.allocation import (
    FOCI,
    entropy_advantage,
    focus_weight,
    forking_weight,
    low_probability,
    random_tokens,
    shuffled,
)
from tpcli.credit.schedule import adapt, smooth, value
from tpcli.data.prompts import with_prefix
from tpcli.names import CurveName, FocusName
from tpcli.types import Prompt, Question

# A made-up response. Token, entropy of the old policy in nats, its probability of the token.
STORY = """
Let 1.60 0.45; the 0.90 0.62; price 0.70 0.58; be 0.10 0.96; x 0.30 0.88; . 0.20 0.93;
Two 1.30 0.31; pens 0.06 0.98; and 0.15 0.95; a 0.12 0.96; book 0.05 0.99; cost 0.40 0.84;
11 0.03 0.99; , 0.35 0.86; so 1.40 0.36; 2 0.55 0.72; x 0.03 0.99; + 0.08 0.97; 5 0.05 0.98;
= 0.02 0.99; 11 0.02 0.99; . 0.50 0.80; Wait 2.10 0.07; , 0.10 0.97; check 1.50 0.22;
: 0.60 0.70; 2 0.45 0.82; · 0.25 0.90; 3 0.18 0.94; + 0.04 0.99; 5 0.02 0.99; = 0.01 0.99;
11 0.02 0.99; . 0.65 0.66; So 1.10 0.42; x 0.80 0.55; is 0.22 0.92; boxed 0.28 0.90;
3 0.07 0.98; end 0.01 0.99
"""
RESPONSE = [
    (word, float(entropy), float(p)) for word, entropy, p in map(str.split, STORY.split(";"))
]
WORDS = [word for word, _, _ in RESPONSE]
TOKENS = len(RESPONSE)
MASK_BT = torch.ones(1, TOKENS, dtype=torch.bool)
ENTROPY_BT = torch.tensor([[entropy for _, entropy, _ in RESPONSE]])
LOGPROB_BT = torch.tensor([[p for _, _, p in RESPONSE]]).log()
MAGNITUDES = (0.99, 0.75, 0.5, 0.25, 0.0)
SEED = 3

PALE, GREEN, INK = "#E4E7EB", "#009E73", "#24292F"
WEIGHT, MEASURED, GIVEN = (PALE, BLUE), ("#FFF4E6", ORANGE), (GREEN, BLUE)
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "svg.hashsalt": "tpcli",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": GREY,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows of token cells under a title.

    Attributes:
        rows_RT: values of the cells, from 0 to ``top``.
        left, right: a label a row on either side.
        colours: of 0 and of ``top``.
    """

    title: str
    rows_RT: Tensor
    left: Sequence[str]
    right: Sequence[str]
    colours: tuple[str, str] = WEIGHT
    top: float = 1.0


def strips(panels: Sequence[Panel]) -> Figure:
    """Panels below one another over the tokens of the response."""
    row, gap, foot, width = 0.22, 0.36, 0.62, 9.2
    height = foot + sum(gap + row * len(panel.rows_RT) for panel in panels)
    figure = Figure(figsize=(width, height), facecolor="white")
    at = height
    for panel in panels:
        tall = row * len(panel.rows_RT)
        at -= gap + tall
        axis = figure.add_axes((0.095, at / height, 0.815, tall / height))
        _cells(axis, panel)
        if panel is panels[-1]:
            axis.set_xticks(range(TOKENS), WORDS, rotation=90, fontsize=8)
    return figure


def _cells(axis: Axes, panel: Panel) -> None:
    rows = len(panel.rows_RT)
    axis.imshow(
        panel.rows_RT.tolist(),
        aspect="auto",
        interpolation="none",
        cmap=LinearSegmentedColormap.from_list("cells", panel.colours),
        vmin=0.0,
        vmax=panel.top,
    )
    for edge in range(1, TOKENS):
        axis.axvline(edge - 0.5, color="white", lw=1.2)
    for edge in range(1, rows):
        axis.axhline(edge - 0.5, color="white", lw=2.0)
    axis.set_title(panel.title, loc="left", fontsize=9, pad=4)
    axis.set_yticks(range(rows), panel.left)
    for place, text in enumerate(panel.right):
        axis.text(TOKENS - 0.1, place, text, va="center", fontsize=8)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def weights(
    title: str,
    rule: Callable[[float], Tensor],
    magnitudes: Sequence[float] = MAGNITUDES,
) -> Panel:
    """What ``rule`` gives the response at each magnitude."""
    rows_RT = torch.cat([rule(magnitude) for magnitude in magnitudes])
    return Panel(title, rows_RT, [_m(magnitude) for magnitude in magnitudes], _credited(rows_RT))


def _m(magnitude: float) -> str:
    return f"m = {magnitude:g}"


def _credited(rows_RT: Tensor) -> list[str]:
    return [f"{int((row_T != 0).sum())} of {TOKENS}" for row_T in rows_RT]


def entropies() -> Panel:
    """The entropies of the response."""
    top = float(ENTROPY_BT.max())
    title = f"Entropy of a made-up response, 0 (pale) to {top:g} nats"
    return Panel(title, ENTROPY_BT, ["H"], [""], MEASURED, top)


def uniform() -> Figure:
    """Every token alike."""
    title = "Weight: blue learns as much as any other (a made-up response)"
    return strips([Panel(title, MASK_BT.float(), ["any m"], _credited(MASK_BT))])


def trajectory_percentile() -> Figure:
    """The three named foci."""
    titles: dict[FocusName, str] = {
        "late": 'focus = "late": blue learns, pale is context only (a made-up response)',
        "early": 'focus = "early"',
        "middle": 'focus = "middle"',
    }

    def rule(name: FocusName, magnitude: float) -> Tensor:
        return focus_weight(MASK_BT, magnitude=magnitude, focus=FOCI[name])

    return strips([weights(title, partial(rule, name)) for name, title in titles.items()])


def forking_tokens() -> Figure:
    """The most uncertain tokens."""

    def rule(magnitude: float) -> Tensor:
        return forking_weight(MASK_BT, ENTROPY_BT, magnitude=magnitude)

    return strips([entropies(), weights("Weight: blue learns", rule, (0.99, 0.8, 0.5, 0.25, 0.0))])


def low_probability_strip() -> Figure:
    """Weights between 0 and 1."""

    def rule(magnitude: float) -> Tensor:
        return low_probability(LOGPROB_BT, MASK_BT, magnitude=magnitude)

    title = "Probability of the sampled token, made up: 0 (pale) to 1"
    probability = Panel(title, LOGPROB_BT.exp(), ["p"], [""], MEASURED)
    lighter = weights("Weight: 0 (pale) to 1 (blue)", rule, (0.99, 0.5, 0.3, 0.1, 0.0))
    smallest = [f"≥ {float(row_T.min()):.2f}" for row_T in lighter.rows_RT]
    return strips([probability, Panel(lighter.title, lighter.rows_RT, lighter.left, smallest)])


def random_tokens_strip() -> Figure:
    """As many tokens as the suffix has, anywhere."""
    title = "Weight: blue learns (a made-up response; one seed, so the rows are nested)"
    return strips(
        [weights(title, lambda m: random_tokens(MASK_BT, magnitude=m, seeds=[SEED]))],
    )


def shuffled_strip() -> Figure:
    """Three allocations, and the same weights elsewhere."""
    before = {
        "trajectory_percentile at m = 0.5": focus_weight(
            MASK_BT, magnitude=0.5, focus=FOCI["late"]
        ),
        "forking_tokens at m = 0.8": forking_weight(MASK_BT, ENTROPY_BT, magnitude=0.8),
        "low_probability at m = 0.99": low_probability(LOGPROB_BT, MASK_BT, magnitude=0.99),
    }
    panels = []
    for place, (title, weight_BT) in enumerate(before.items()):
        after_BT = shuffled(weight_BT, MASK_BT.float(), MASK_BT, seeds=[SEED])[0]
        rows_RT = torch.cat([weight_BT, after_BT])
        areas = [f"sum {float(row_T.sum()):.1f}" for row_T in rows_RT]
        made_up = "" if place else " (a made-up response)"
        panels.append(Panel(title + made_up, rows_RT, ["as it is", "shuffled"], areas))
    return strips(panels)


def expert_prefix() -> Figure:
    """How much of a solution is given."""
    prompt = Prompt(Question("q", "", ""), ())
    given = [with_prefix(prompt, range(TOKENS), magnitude=m).prefix for m in MAGNITUDES]
    rows_RT = torch.stack([(torch.arange(TOKENS) >= n).float() for n in given])
    panel = Panel(
        "Green is given as context, blue is sampled and learns (a made-up solution)",
        rows_RT,
        [_m(magnitude) for magnitude in MAGNITUDES],
        [f"{n} given" for n in given],
        GIVEN,
    )
    return strips([panel])


def entropy_advantage_strip() -> Figure:
    """Advantages of a right and of a wrong response."""
    width, height, left, tall = 9.2, 4.8, 0.095, 1.4
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(bottom: float, tall: float) -> Axes:
        return figure.add_axes((left, bottom / height, 0.815, tall / height))

    _cells(axes(height - 0.58, 0.22), entropies())
    for sign, bottom in ((1.0, 2.42), (-1.0, 0.62)):
        axis = axes(bottom, tall)
        given_BT = torch.full((1, TOKENS), sign)
        for magnitude, colour, style in ((0.0, GREY, ":"), (0.5, BLUE, "--"), (1.0, ORANGE, "-")):
            shaped_BT = entropy_advantage(given_BT, ENTROPY_BT, MASK_BT, magnitude=magnitude)
            axis.stairs(
                shaped_BT[0].tolist(),
                [t - 0.5 for t in range(TOKENS + 1)],
                baseline=None,
                color=colour,
                ls=style,
                lw=1.6,
                label=_m(magnitude),
            )
        kind = "right response, A = 1" if sign > 0 else "wrong response, A = −1"
        axis.set_title(f"Advantage of a {kind}", loc="left", fontsize=9)
        axis.set_xlim(-0.5, TOKENS - 0.5)
        axis.set_ylim(sign - 0.06, sign + 0.62)
        axis.set_yticks([sign, sign + 0.25, sign + 0.5])
        axis.set_xticks([])
        _bare(axis)
        if sign > 0:
            axis.legend(frameon=False, fontsize=8, loc="upper right", ncols=3)
    axis.set_xticks(range(TOKENS), WORDS, rotation=90, fontsize=8)
    axis.tick_params(axis="x", length=0)
    return figure


def _bare(axis: Axes) -> None:
    axis.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


POINTS = [(0.0, 0.99), (0.3, 0.9), (0.6, 0.2), (1.0, 0.0)]
CURVES: list[tuple[CurveName, str]] = [
    ("constant", ""),
    ("linear", ""),
    ("cosine", ""),
    ("sigmoid", ""),
    ("gamma", "gamma = 2"),
    ("exponential", "rate = 5"),
    ("stairs", "stairs = 4"),
    ("piecewise", "4 points"),
]
"""Every curve that has a formula, and what the figure says of its own setting."""


def curves() -> Figure:
    """Each curve over 100 steps, forwards and reversed."""
    figure = Figure(figsize=(9.2, 4.3), facecolor="white")
    figure.subplots_adjust(0.055, 0.10, 0.985, 0.87, wspace=0.18, hspace=0.38)
    for place, (curve, setting) in enumerate(CURVES):
        axis = figure.add_subplot(2, 4, place + 1)
        if curve != "constant":  # which has no window and no way back
            axis.axvspan(0, 80, color=PALE, alpha=0.5, lw=0)
        for reverse, colour, style in ((False, BLUE, "-"), (True, ORANGE, "--")):
            if reverse and curve == "constant":
                continue
            # Every fourth step shows a smooth curve and its corners, in a smaller file.
            steps = range(0, 101, 1 if curve == "stairs" else 4)
            course = [value(t, 100, curve=curve, points=POINTS, reverse=reverse) for t in steps]
            drawn = "steps-post" if curve == "stairs" else "default"
            axis.plot(steps, course, style, color=colour, lw=1.6, drawstyle=drawn)
        axis.set_title(f"{curve}, {setting}" if setting else curve, loc="left", fontsize=9)
        axis.set_xlim(0, 100)
        axis.set_ylim(-0.03, 1.05)
        axis.set_yticks([0.0, 0.5, 1.0])
        if place % 4:
            axis.set_yticklabels([])
        if place < 4:
            axis.set_xticklabels([])
        _bare(axis)
    figure.text(0.055, 0.95, "Magnitude over 100 steps, initial = 0.99, window to end = 0.8 (grey)")
    figure.legend(
        figure.axes[1].lines,
        ["as it is", "reverse = true"],
        loc="upper right",
        bbox_to_anchor=(0.99, 1.0),
        ncols=2,
        frameon=False,
    )
    return figure


def adaptive() -> Figure:
    """The closed loop against a made-up policy, whose entropy is disturbed once."""
    target, steps, upset = 0.55, 200, 130
    share, average, entropy = 1.0, None, 0.85
    measured, smoothed, magnitude = [], [], []
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(SEED)).tolist()
    for step in range(steps):
        entropy += 0.08 * (0.35 + 0.5 * 0.99 * share - entropy) - (0.2 if step == upset else 0.0)
        measured.append(entropy + 0.02 * noise[step])
        magnitude.append(0.99 * share)
        average = smooth(average, measured[-1], decay=0.9)
        smoothed.append(average)
        share = adapt(share, average, target=target)
    figure = Figure(figsize=(9.2, 3.9), facecolor="white")
    figure.subplots_adjust(0.065, 0.12, 0.985, 0.93, hspace=0.32)
    above, below = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    above.plot(measured, color=GREY, lw=0.8, label="measured at each step")
    above.plot(smoothed, color=BLUE, lw=1.8, label="moving average, smoothing = 0.9")
    above.axhline(target, color=ORANGE, ls="--", lw=1.4, label=f"target = {target:g}")
    upper = f"Entropy, nats (simulated: a made-up policy, disturbed at step {upset})"
    above.set_title(upper, loc="left", fontsize=9)
    above.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    above.set_ylim(0.28, 1.0)
    below.plot(magnitude, color=BLUE, lw=1.8)
    below.set_title("Magnitude (simulated)", loc="left", fontsize=9)
    below.set_ylim(-0.03, 1.05)
    below.set_xlabel("step")
    for axis in (above, below):
        axis.set_xlim(0, steps)
        _bare(axis)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "uniform": uniform,
    "trajectory-percentile": trajectory_percentile,
    "forking-tokens": forking_tokens,
    "entropy-advantage": entropy_advantage_strip,
    "low-probability": low_probability_strip,
    "random-tokens": random_tokens_strip,
    "shuffled": shuffled_strip,
    "expert-prefix": expert_prefix,
    "curves": curves,
    "adaptive": adaptive,
}


def draw(folder: Path, form: str = "svg") -> list[Path]:
    """Write every figure into ``folder``; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            path = folder / f"{name}.{form}"
            figure().savefig(path, format=form, metadata={"Date": None} if form == "svg" else {})
            written.append(path)
    return written


if __name__ == "__main__":
    for path in draw(Path(__file__).parent / "figures"):
        print(path)
