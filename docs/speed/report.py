"""From results.json to Markdown: every function takes plain results and gives text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from tpcli.cli.columns import Column, markdown

Result = Mapping[str, Any]
NONE = "—"
PARTS = {"forward": "forward", "backward": "backward", "optimiser": "clipping and AdamW"}


def render(results: Result) -> str:
    """The whole page; parts that were not run are left out."""
    sections = {"side": side, "curves": curves, "profile": profile}
    blocks = ["# Speed, as measured"]
    for name, write in sections.items():
        if name in results:
            title, _, rest = write(results[name]).partition("\n")
            blocks += [title, _origin(results[name]["origin"]), rest.strip("\n")]
    return "\n\n".join(blocks) + "\n"


def _origin(origin: Result) -> str:
    machine = origin["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in origin["versions"].items())
    return "\n".join(
        (
            f"`{origin['command']}`, {origin['date']}, {origin['seconds'] / 60:.0f} minutes.  ",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['memory_gib']:.0f} GiB; load {machine['load']} before.  ",
            f"{versions}.",
        )
    )


def side(found: Result) -> str:
    """Ours beside TRL."""
    rounds, sizes = found["rounds"], found["sizes"]
    return "\n".join(
        (
            "## Side by side",
            "",
            f"{found['model']}, float32; {sizes['prompts']} prompts of {sizes['prompt_length']} "
            f"tokens ({sizes['shared']} of them the same in all), {sizes['group_size']} responses "
            f"each, of {sizes['shortest']} to {sizes['longest']} tokens, the same for both sides "
            f"and new in each of {len(rounds)} rounds; one AdamW step. Medians; a ratio is the "
            "median of the rounds' own, with the lowest and the highest. TRL: beta = 0, no vLLM, "
            "one micro-batch, no gradient checkpointing, no bf16. Ours: no reference model, "
            f"micro-batches of {sizes['micro_batch_tokens']} tokens, in the environment that "
            "`tpcli train` gives its training process. Both measure the entropy of all tokens; "
            "TRL's generation includes its rewards, which cost nothing here.",
            "",
            markdown(_side_columns(rounds)),
            "",
            markdown(_memory_columns(rounds)),
            "",
            markdown(_peak_columns(rounds)),
        )
    )


def seconds(answer: Result, what: str, update: int = 0) -> float:
    """Of one side in one round; ``what`` is "step", "generation", "update" or a part of it."""
    learning: float = answer["updates"][update]["seconds"].get(what, 0.0)
    if what in PARTS:
        return learning
    whole: float = answer["updates"][update]["seconds"]["whole"]
    generation: float = answer["generation"]["seconds"]["whole"]
    return {"step": generation + whole, "generation": generation, "update": whole}[what]


def _side_columns(rounds: Sequence[Result]) -> list[Column]:
    rows: list[tuple[str, str, int]] = [
        ("whole step", "step", 0),
        ("generation", "generation", 0),
        ("update", "update", 0),
        *((f"— {title}", name, 0) for name, title in PARTS.items()),
    ]
    for place, update in enumerate(rounds[0]["updates"]):
        if place:
            rows.append((f"update, {credited(*update)}", "update", place))
    theirs = [[seconds(one["trl"], what) for one in rounds] for _, what, _ in rows]
    ours = [[seconds(one["ours"], what, place) for one in rounds] for _, what, place in rows]
    return [
        Column("", [title for title, _, _ in rows], 0),
        Column("TRL, s", [f"{median(one):.3g}" for one in theirs], 1, right=True),
        Column("ours, s", [f"{median(one):.3g}" for one in ours], 1, right=True),
        Column("times faster", list(map(ratio, theirs, ours)), 1, right=True),
    ]


def credited(magnitude: float, measure_all: bool) -> str:
    """The share of each response that a magnitude leaves, and what becomes of the rest."""
    rest = "" if measure_all else ", the rest not measured"
    return f"{100 * (1 - magnitude):.3g}% credited{rest}"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median, lowest and highest of the quotients of pairs."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


def _memory_columns(rounds: Sequence[Result]) -> list[Column]:
    def peaks(name: str, of: Callable[[Result], Result]) -> list[float | None]:
        return [of(one[name])["peak"] for one in rounds]

    rows: dict[str, Callable[[Result], Result]] = {
        "generation": lambda answer: answer["generation"],
        "update": lambda answer: answer["updates"][0],
    }
    theirs = [peaks("trl", of) for of in rows.values()]
    ours = [peaks("ours", of) for of in rows.values()]
    return [
        Column("peak memory", list(rows), 0),
        Column("TRL, GiB", [_gib(one) for one in theirs], 1, right=True),
        Column("ours, GiB", [_gib(one) for one in ours], 1, right=True),
        Column("ours / TRL", list(map(_quotient, ours, theirs)), 1, right=True),
    ]


def _gib(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.2f}" if known else NONE


def _quotient(above: Sequence[float | None], below: Sequence[float | None]) -> str:
    pairs = [(a, b) for a, b in zip(above, below, strict=True) if a is not None and b is not None]
    return f"{median(a / b for a, b in pairs):.2f}" if pairs else NONE


def _peak_columns(rounds: Sequence[Result]) -> list[Column]:
    """How near the update comes to what a plain matrix product reaches beside it."""
    sides = [("TRL", [one["trl"] for one in rounds]), ("ours", [one["ours"] for one in rounds])]
    names = [f"update, {credited(*update)}" for update in rounds[0]["updates"]]
    ours = sides[1][1]
    speeds = [[_speed(answer, place) for answer in ours] for place in range(len(names))]
    reached = [
        [speed / _best(answer) for speed, answer in zip(one, ours, strict=True)] for one in speeds
    ]
    probes = [f"{median(map(_best, answers)):.3g}" for _, answers in sides]
    return [
        Column("ours", names, 0),
        Column(
            "GFLOP",
            [f"{median(_flops(a, k) for a in ours):.3g}" for k in range(len(names))],
            1,
            right=True,
        ),
        Column("GFLOP/s", [f"{median(one):.3g}" for one in speeds], 1, right=True),
        Column(
            f"of the probe ({probes[1]} GFLOP/s; beside TRL {probes[0]})",
            [f"{median(one):.0%}" for one in reached],
            1,
            right=True,
        ),
    ]


def _best(answer: Result) -> float:
    best: float = max(answer["probe"].values())
    return best


def _flops(answer: Result, place: int) -> float:
    flops: float = answer["updates"][place]["flops"]
    return flops / 1e9


def _speed(answer: Result, place: int) -> float:
    spent: float = answer["updates"][place]["seconds"]["whole"]
    return _flops(answer, place) / spent


def curves(found: Result) -> str:
    """One table a question."""
    lines = ["## What the update costs against ..."]
    for name, title in (
        ("length", "the length of the responses: 1 prompt, 2 responses"),
        ("group", f"the group size: 1 prompt, responses of {found['group_length']} tokens"),
        ("share", "the credited share, as above"),
        ("vocabulary", "the vocabulary: a random model with the same body"),
    ):
        if name in found:
            lines += ["", f"### {title}", "", markdown(_curve_columns(found[name]))]
    lines += [
        "",
        "Above the state: the peak without weights, gradients and the two moments of AdamW, and "
        "without what the process itself takes.",
    ]
    return "\n".join(lines)


def _curve_columns(points: Sequence[Result]) -> list[Column]:
    """A row a point; ``at`` is what the curve is against."""
    columns = [
        Column("", [point["at"] for point in points], 0, right=True),
        Column("tokens", [f"{point['tokens']:,}" for point in points], 1, right=True),
        Column("s", [f"{point['seconds']:.3g}" for point in points], 1, right=True),
        Column("peak, GiB", [_gib([point["peak"]]) for point in points], 1, right=True),
        Column("above the state, GiB", [_gib([p["above"]]) for p in points], 1, right=True),
        Column("of the probe", [_percent(point["reached"]) for point in points], 1, right=True),
    ]
    if any("trl" in point for point in points):
        theirs = [point.get("trl") for point in points]
        columns += [
            Column("TRL, s", [f"{p['seconds']:.3g}" if p else NONE for p in theirs], 1, right=True),
            Column("TRL, peak", [_gib([p["peak"]]) if p else NONE for p in theirs], 1, right=True),
        ]
    return columns


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def profile(found: Result) -> str:
    """Parts of a step, largest first, and what the tool costs beside it."""
    loop, steps = found["loop"], found["loop"]["steps"]
    whole = loop["whole"]
    rest = loop["parts"]["not accounted"]
    # Largest first, and last what has no name.
    parts = sorted(loop["parts"].items(), key=lambda part: (part[1] == rest, -part[1]))
    lines = [
        "## One step of `tpcli train`, by part",
        "",
        f"{found['what']}; mean of {steps} steps after the first, {whole / steps:.3g} s each. The "
        f"named parts are {1 - rest / whole:.2%} of it: {_sums(loop)}.",
        "",
        markdown(
            [
                Column("part", [name for name, _ in parts], 0),
                Column("s a step", [f"{value / steps:.4f}" for _, value in parts], 1, right=True),
                Column("share", [f"{value / whole:.2%}" for _, value in parts], 1, right=True),
            ]
        ),
    ]
    for name, one in loop["occasions"].items():
        each = one["seconds"] / one["calls"]
        lines += ["", f"Beside the steps: {name}, {each:.3g} s each time ({one['calls']} times)."]
    if "tool" in found:
        lines += ["", _tool(found["tool"])]
    return "\n".join(lines)


def _sums(loop: Result) -> str:
    """Shares of what the names of the parts begin with."""
    sums: dict[str, float] = {}
    for name, value in loop["parts"].items():
        stem = name.partition(":")[0]
        sums[stem] = sums.get(stem, 0.0) + value
    del sums["not accounted"]
    largest = sorted(sums.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {value / loop['whole']:.1%}" for name, value in largest)


def _tool(tool: Result) -> str:
    return (
        f"The tool beside the training process (command, registry, MLflow, launcher), over "
        f"{tool['steps']} steps of a real run: {tool['tool']:.2f} s of processor time against "
        f"{tool['worker']:.1f} s, {tool['tool'] / tool['worker']:.2%}; "
        f"{tool['tool'] / tool['wall']:.2%} of one core. Once a run: {tool['start']:.1f} s to "
        f"start, {tool['end']:.1f} s to end (figures, last synchronisation)."
    )
