"""The panel that a running training shows: a pure function of a RunView and a width.

Every line is built to its width here, so nothing wraps; what does not fit is dropped by priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from tpcli.analysis.schedules import (
    adaptive,
    credited_stretch,
    curve,
    focus,
    moving,
    scalar_at,
    window,
)
from tpcli.cli import view as facts
from tpcli.cli.glyphs import (
    allocation_name,
    bar,
    duration,
    model_name,
    number,
    percent,
    shades,
    signed,
    sparkline,
    whole,
)
from tpcli.cli.view import RunView

if TYPE_CHECKING:
    from tpcli.names import AllocationName
    from tpcli.recipe.scalar import Schedule

WIDEST = 140
NARROW = 70
"""Below so many characters inside the panel, one column and short forms."""
LABEL = 10
PICKING = {"trajectory_percentile", "forking_tokens", "random_tokens"}
"""Allocations that leave tokens out."""
TREND = 8
ALL_SAME_LIMIT, ALL_SAME_MARK = 0.30, "⚠ > .30"
Part = str | tuple[str, str]


def live_panel(view: RunView, width: int) -> Panel:
    """Everything about a running run in ``width`` columns (60 or more look right)."""
    width = min(width, WIDEST)
    inner = width - 4
    lines: list[Text] = []
    if view.preparing and not view.ended:
        lines += [*_preparation(view, inner), _line(), _schedule(view, inner), _credit(view, inner)]
    else:
        lines += [_step(view, inner), _phase(view, inner), _line()]
        lines += [_schedule(view, inner), _credit(view, inner), *_scalars(view), _line()]
        lines += [*_curves(view, inner), *_unjudged(view), *_held_out(view, inner), _device(view)]
    lines += [Text(f"⚠ {warning}", "yellow") for warning in view.warnings]
    return Panel(
        Group(*lines),
        box=ROUNDED,
        width=width,
        border_style="yellow" if view.warnings else "none",
        title=_title(view, width - 6),
        title_align="left",
        subtitle=Text(_subtitle(view), style="dim default"),
        subtitle_align="right",
    )


def _line(*parts: Part) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _spread(left: Sequence[Part], right: Sequence[Part], width: int) -> Text:
    """Left part, right part flush right; the right one goes where both do not fit."""
    start, end = _line(*left), _line(*right)
    gap = width - start.cell_len - end.cell_len
    return start if gap < 1 else _line(*left, " " * gap, *right)


def _label(name: str) -> Part:
    return (f"{name:<{LABEL}}", "dim")


def _title(view: RunView, room: int) -> Text:
    run = view.run
    names = [
        (str(run.get("name") or ""), "bold default"),
        (str(run.get("id") or ""), "bold cyan"),
        (model_name(view.recipe.model.source), "default"),
        (str(run.get("git") or ""), "dim default"),
    ]
    names = [n for n in names if n[0]]
    while len(names) > 2 and sum(len(n) + 3 for n, _ in names) > room:
        names.pop()
    separated = [part for name in names for part in ((" · ", "dim default"), name)]
    title = Text.assemble(*separated[1:])
    title.truncate(room, overflow="ellipsis")
    return title


def _subtitle(view: RunView) -> str:
    if view.ended:
        return view.status
    if view.stopping:
        return "stopping after this step · Ctrl-C again stops now"
    return "Ctrl-C stops after this step"


def _bar(share: float, width: int) -> list[Part]:
    done, left = bar(share, width)
    return [(done, "green"), (left, "dim")]


def _preparation(view: RunView, width: int) -> list[Text]:
    recipe, now = view.recipe, view.phase
    phases = [
        phase
        for phase in facts.SETUP
        if (phase != "warmup" or recipe.warmup)
        and (phase != "eval" or (recipe.eval.questions and not view.step))
    ]
    reached = phases.index(now) if now in phases else -1
    text = f"getting ready for step {view.step + 1}" if now else "starting the training process"
    lines = [_spread([text], [(f"{duration(view.elapsed)} since the start", "dim")], width)]
    for i, phase in enumerate(phases):
        if i < reached:
            lines.append(_line(("✓ ", "green"), f"{phase:<{LABEL - 2}}"))
        elif i > reached:
            lines.append(_line(("· ", "dim"), (phase, "dim")))
        else:
            lines.append(
                _line(("▸ ", "cyan"), (f"{phase:<{LABEL - 2}}", "bold"), *_inside(view, width))
            )
    return lines


def _inside(view: RunView, width: int) -> list[Part]:
    """How far the current phase is: a bar where its size is known, its time and its note."""
    since = facts.finite(view.progress.get("since"))
    time = duration(view.now - since) if since is not None else ""
    note = str(view.progress.get("note") or "")
    share = view.phase_share
    if share is None:
        return [(" · ".join(filter(None, (time, note))), "dim")]
    done, total = float(view.progress["done"]), float(view.progress["total"])
    count = f"{whole(done)}/{whole(total)}" if total > 1 else ""
    text = f" {percent(share)} " + " · ".join(filter(None, (count, time, note)))
    return [*_bar(share, max(10, min(40, width // 3))), text]


def _step(view: RunView, width: int) -> Text:
    count = f"{view.step}/{view.steps} "
    left = facts.eta(view)
    ahead = "" if view.ended else f" · eta {duration(left) if left is not None else '–'}"
    share = view.step / view.steps
    right = f" {percent(share)}  {duration(view.elapsed)}{ahead}"
    room = max(4, width - LABEL - len(count) - len(right))
    return _line(_label("step"), (count, "bold"), *_bar(share, room), right)


def _phase(view: RunView, width: int) -> Text:
    shares = facts.phase_shares(view)
    if not view.ended and (not shares or view.phase in ("eval", "checkpoint")):
        return _line(_label("phase"), (f"{view.phase} ", "bold"), *_inside(view, width))
    pace = facts.seconds_a_step(view)
    right = f"{number(pace)} s/step" if pace is not None else ""
    room = width - LABEL - len(right) - 1
    for bars, fewest in ((True, 0.01), (False, 0.01), (False, 0.05), (False, 0.1)):
        parts = _share_parts(shares, "" if view.ended else view.phase, bars=bars, fewest=fewest)
        if _line(*parts).cell_len <= room:
            break
    return _spread([_label("phase"), *parts], [right], width)


def _share_parts(shares: dict[str, float], now: str, *, bars: bool, fewest: float) -> list[Part]:
    parts: list[Part] = []
    for phase, share in shares.items():
        if share < fewest:
            continue
        parts.append((f"{phase} {percent(round(share, 2))}", "bold" if phase == now else "none"))
        parts.append((f" ▕{'█' * max(1, round(share * 10))}▏", "cyan") if bars else "")
        parts.append(" " if bars else "  ")
    return parts[:-1]


def _schedule(view: RunView, width: int) -> Text:
    """The leading magnitude over the whole horizon, and how far it has come."""
    recipe, horizon, lead = view.recipe, view.recipe.horizon, facts.lead(view)
    if lead is None:
        return _line(_label("schedule"), "off")
    key = lead[1]
    name = f"{allocation_name(recipe.credit.label)}·{curve(recipe, key)}"
    moves = window(recipe, key)
    if moves is None:
        fixed = number(scalar_at(recipe, key, 0))
        return _line(_label("schedule"), f"{name}  magnitude {fixed} throughout")
    rule = adaptive(recipe, key)
    where = f"  {_following(view, rule)}" if rule else _ramp(view, moves, width)
    before, end = f"{name}  0▕", f"▏{horizon}"
    room = max(4, width - LABEL - len(before) - len(end) - len(where))
    return _line(_label("schedule"), before, *_strip(view, lead, room), end, where)


def _ramp(view: RunView, moves: tuple[int, int], width: int) -> str:
    first, last = moves
    share = min(max((view.step - first) / (last - first), 0.0), 1.0)
    where = f"at {percent(round(share, 2))}"
    return f"  ramp {first}→{last}, {where}" if width >= NARROW else f"  {where}"


def _following(view: RunView, rule: Schedule) -> str:
    """What an adaptive schedule follows, and what it should be."""
    now = number(facts.followed_signal(view, rule.signal))
    return f"{rule.signal} {now}, target {number(rule.target)}"


def _strip(view: RunView, lead: tuple[AllocationName, str], width: int) -> list[Part]:
    """The magnitude over the whole horizon, with a marker for now.

    What an adaptive schedule will do is not known: its strip is drawn up to now.
    """
    (name, key), horizon = lead, view.recipe.horizon
    steps = [round((i + 0.5) / width * horizon) for i in range(width)]
    values: list[float | None] = [scalar_at(view.recipe, key, step) for step in steps]
    if adaptive(view.recipe, key):
        seen = facts.series(view, f"schedule/{facts.logged_as(view, name)}")
        values = [seen[step - 1] if 1 <= step <= len(seen) else None for step in steps]
    drawn = sparkline(values, width, low=0.0, high=1.0).ljust(width)
    now = min(width - 1, view.step * width // horizon)
    return [(drawn[:now], "cyan"), ("┃", "bold"), (drawn[now + 1 :], "dim")]


def _credit(view: RunView, width: int) -> Text:
    """Which part of a response learns at the coming step."""
    names = view.recipe.credit.allocations
    sizes = facts.magnitudes(view)
    label, room = _label("credit"), max(8, min(40, width // 4))
    if names == ("uniform",):
        return _line(label, "all tokens learn ▕", ("█" * room, "cyan"), "▏")
    motion = [(_motion(view), "dim")]
    if names == ("trajectory_percentile",):
        return _spread([label, *_stretch(view, sizes[names[0]], room)], motion, width)
    words = ", ".join(_effect(view, name, sizes.get(name, 0.0)) for name in names)
    if len(names) == 1:
        words = f"{'learning' if names[0] in PICKING else 'all tokens learn,'} {words}"
    drawn = shades(_newest_curve(view, "credit/percentile"), room) if PICKING & {*names} else ""
    strip: list[Part] = [" ▕", (drawn, "cyan"), "▏"] if drawn else []
    whole_line = _spread([label, words, *strip], motion, width)
    return whole_line if whole_line.cell_len <= width else _line(label, words)


def _stretch(view: RunView, size: float, room: int) -> list[Part]:
    """Context and credit along the response, as trajectory_percentile divides it."""
    start, end = focus(view.recipe)
    first, last = credited_stretch(room, size, (start, end))
    outside = size * (start + 1.0 - end)
    context, learning = percent(round(outside, 2)), percent(round(1 - outside, 2))
    left = f"learning {learning}" if start == 0 else f"context {context}"
    right = "learning" if end == 1 else "context" if start == 0 else "learning inside"
    parts: list[Part] = [f"{left} ▕", ("░" * first, "dim"), ("█" * (last - first), "cyan")]
    return [*parts, ("░" * (room - last), "dim"), f"▏ {right}"]


def _effect(view: RunView, name: AllocationName, size: float) -> str:
    """What an allocation does at magnitude ``size``, in a few words."""
    left = percent(round(1 - size, 2))
    match name:
        case "trajectory_percentile":
            start, end = focus(view.recipe)
            return f"context {percent(round(size * (start + 1.0 - end), 2))}"
        case "forking_tokens":
            return f"top {left} by entropy"
        case "random_tokens":
            return f"a random {left}"
        case "entropy_advantage":
            return f"entropy term × {number(size)}"
        case "low_probability":
            return f"unlikely ones × {number(1 - size)}"
        case "expert_prefix":
            return f"{percent(round(size, 2))} of a solution given"
        case _:
            return name


def _newest_curve(view: RunView, key: str) -> list[float | None]:
    for line in reversed(view.metrics):
        if isinstance(line.get(key), list):
            return [facts.finite(v) for v in line[key]]
    return []


def _motion(view: RunView) -> str:
    """How fast the leading magnitude moves now, in points a step or in 100 steps."""
    recipe, lead, step = view.recipe, facts.lead(view), facts.coming(view)
    assert lead is not None  # uniform credit has no motion to show
    name, key = lead
    if adaptive(recipe, key):
        metric = f"schedule/{facts.logged_as(view, name)}"
        seen = [v for v in facts.series(view, metric) if v is not None]
        points = 100 * (seen[-1] - seen[-2]) if len(seen) > 1 else 0.0
    else:
        ahead = scalar_at(recipe, key, min(step + 1, recipe.horizon))
        points = 100 * (ahead - scalar_at(recipe, key, step))
    if abs(points) < 1e-9:
        return "standing still"
    if abs(points) >= 1:
        return f"{signed(points)} pt/step"
    return f"{signed(100 * points)} pt/100 steps"


def _scalars(view: RunView) -> list[Text]:
    """One line for the other scalars that move, where there are any."""
    found = [
        f"{key.rsplit('.', 1)[-1]} {number(facts.scalar_now(view, key))}"
        for key in moving(view.recipe)
    ]
    return [_line(_label("moving"), " · ".join(found))] if found else []


def _curves(view: RunView, width: int) -> list[Text]:
    keys = [("reward", "reward/mean"), ("entropy", "entropy/all")]
    keys += [("kl", "kl/all")] if view.recipe.track.kl else []
    keys += [("length", "length/mean"), ("all-same", "reward/groups_without_signal")]
    keys += [("truncated", "length/truncated")]
    if width < NARROW:
        return [_line(*_curve(view, name, key, width)) for name, key in keys]
    half = (width - 3) // 2
    cells = [_curve(view, name, key, half) for name, key in keys]
    pairs = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    return [_line(*pair[0], *(["   ", *pair[1]] if pair[1:] else [])) for pair in pairs]


def _curve(view: RunView, name: str, key: str, width: int) -> list[Part]:
    """Label, newest value, curve and trend in exactly ``width`` cells."""
    values = facts.series(view, key)
    newest = facts.latest(view, key)
    write = percent if name == "truncated" else number
    room = width - LABEL - 6 - TREND
    drawn = sparkline(values, room)
    found = facts.trend(values)
    after = f"{found[0]}{write(abs(found[1])) if found[0] != '→' else ''}" if found else ""
    style = "none"
    if name == "all-same" and newest is not None and newest > ALL_SAME_LIMIT:
        after, style = ALL_SAME_MARK, "yellow"
    tail = f" {after}".ljust(TREND + room - len(drawn))
    shown = "–" if newest is None else write(newest)
    return [_label(name), (f"{shown:>5} ", "bold"), (drawn, "cyan"), (tail, style)]


def _held_out(view: RunView, width: int) -> list[Text]:
    if not view.recipe.eval.questions:
        return []
    at = next((int(m["step"]) for m in reversed(view.metrics) if "eval/sampled" in m), None)
    when = "" if at is None else f"step {at}" if at else "before step 1"
    label = _label("held-out")
    for changes in (True, False):
        parts = [label, *_accuracies(view, changes=changes)]
        if _line(*parts).cell_len + 1 + len(when) <= width:
            break
    return [_spread(parts, [(when, "dim")], width)]


def _accuracies(view: RunView, *, changes: bool) -> list[Part]:
    """Sampled and greedy accuracy, before training and at the latest evaluation."""
    parts: list[Part] = []
    for name in ("sampled", "greedy"):
        found = facts.held_out(view, f"eval/{name}")
        if found is None:
            continue
        first, last, step = found
        parts += ["   " if parts else "", f"{name} {number(first)}"]
        parts += [" → ", (number(last), "bold")] if step else []
        parts += [f" ({signed(last - first)})"] if step and changes else []
    return parts or ["–"]


def _unjudged(view: RunView) -> list[Text]:
    """Responses that the verifier could not judge; they count as wrong."""
    found = facts.unjudged(view)
    if not found:
        return []
    shares = ", ".join(f"{status} {percent(share)}" for status, share in found.items())
    return [_line(_label("verifier"), (f"{shares} of responses", "yellow"))]


def _device(view: RunView) -> Text:
    gpu, host = facts.latest(view, "memory/gpu_gb"), facts.peak(view, "memory/peak_gb")
    speed = facts.latest(view, "speed/tokens_per_s")
    found = [
        f"gpu {number(gpu)} GB" if gpu else "",
        f"{'host' if gpu else 'cpu'} {number(host)} GB" if host else "",
        f"{number(speed)} tok/s" if speed else "",
        f"checkpoint {view.checkpoint} ✓" if view.checkpoint else "no checkpoint yet",
    ]
    return _line(_label("device"), " · ".join(filter(None, found)))
