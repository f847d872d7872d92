import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from tests.cli import smooth

from tpcli.cli.live import live_panel
from tpcli.cli.view import RunView

RAMP = {"curve": "linear", "start": 0.1, "end": 0.8}
ADAPTIVE = {"curve": "adaptive", "target": 0.3}
ALL = ["expert_prefix", "trajectory_percentile", "forking_tokens", "entropy_advantage", "shuffled"]
CREDITS: list[dict[str, Any]] = [
    {"schedule": ADAPTIVE},
    {"trajectory_percentile": {"focus": "early"}},
    {"trajectory_percentile": {"focus": [0.2, 0.4]}, "schedule": {"reverse": True}},
    {"allocation": "low_probability", "schedule": 0.3},
    {"allocation": "random_tokens", "schedule": {"curve": "exponential"}},
    {"allocation": "expert_prefix", "schedule": {"curve": "stairs"}},
    {"allocation": ALL, "forking_tokens": {"magnitude": ADAPTIVE}},
]
FORKING = {"allocation": "forking_tokens", "schedule": {"curve": "cosine"}}


def draw(view: RunView, width: int, *, no_color: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=no_color, no_color=no_color)
    console.print(live_panel(view, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"│ {label}"))


def scenes() -> Iterator[RunView]:
    yield smooth.view()
    yield smooth.view(0)
    yield smooth.view(1000)
    yield smooth.view(-1, progress={})
    yield smooth.view(-1, progress=smooth.progress("weights", 0, done=1e8, total=2.7e8))
    yield smooth.view(450, progress=smooth.progress("eval", 450, done=29, total=64))
    yield smooth.view(12, 20, recipe=smooth.recipe(20, credit=FORKING), stopping=True)
    yield smooth.view(12, 20, recipe=smooth.recipe(20, credit={"schedule": 0.8}))
    yield smooth.view(12, 20, recipe=smooth.recipe(20, credit={"allocation": "uniform"}))
    yield smooth.view(12, 20, recipe=smooth.recipe(20, credit={"allocation": "entropy_advantage"}))
    for credit in CREDITS:
        yield smooth.view(12, recipe=smooth.recipe(credit=credit, fresh=True))
    yield smooth.view(12, warnings=("a mirror cannot be reached: " + "very long reason " * 12,))
    yield smooth.view(3, metrics=[{"step": s} for s in range(4)], progress={"phase": "update"})
    yield smooth.view(run={"id": "k7m2xqd", "name": "n" * 200})


@pytest.mark.parametrize("width", [30, 60, 79, 80, 100, 140])
def test_no_line_breaks_the_border(width: int) -> None:
    for view in scenes():
        lines = draw(view, width).splitlines()
        assert {len(line) for line in lines} == {width}
        assert {line[0] + line[-1] for line in lines[1:-1]} == {"││"}


def test_grows_no_wider_than_140() -> None:
    assert len(draw(smooth.view(), 200).splitlines()[0]) == 140


def test_no_color() -> None:
    """Attributes such as bold may stay; no colour is sent, and the text is the same."""
    text = draw(smooth.view(), 80, no_color=True)
    codes = {int(n) for found in re.findall(r"\x1b\[([\d;]*)m", text) for n in found.split(";")}
    assert codes <= {0, 1, 2}
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == draw(smooth.view(), 80)


def test_header_and_footer() -> None:
    lines = draw(smooth.view(), 80).splitlines()
    assert "math-linear-s3 · k7m2xqd · SmolLM2-135M-Instruct · 3f2c1a9+dirty" in lines[0]
    assert lines[-1].endswith(" Ctrl-C stops after this step ─╯")
    assert "Ctrl-C again stops now" in draw(smooth.view(stopping=True), 80).splitlines()[-1]
    ended = smooth.view(1000, state={"status": "finished"})
    assert draw(ended, 80).splitlines()[-1].endswith(" finished ─╯")


def test_narrow_header_keeps_the_id() -> None:
    header = draw(smooth.view(), 40).splitlines()[0]
    assert "math-linear-s3 · k7m2xqd" in header
    assert "3f2c1a9" not in header


def test_step_line() -> None:
    """588 steps of 18.5 s and 12 evaluations of 60 s, five seconds into the step: 3h13m."""
    line = row(draw(smooth.view(), 80), "step")
    assert "412/1000 ━" in line
    assert line.endswith("41%  2h09m · eta 3h13m │")


def test_phase_line_drops_bars_where_narrow() -> None:
    wide, narrow = draw(smooth.view(), 80), draw(smooth.view(), 60)
    assert "rollout 61% ▕██████▏ update 35% ▕████▏" in row(wide, "phase")
    assert "rollout 61%  update 35%" in row(narrow, "phase")
    assert row(narrow, "phase").endswith("18.5 s/step │")


def test_evaluation_shows_its_progress() -> None:
    view = smooth.view(450, progress=smooth.progress("eval", 450, done=29, total=64))
    assert "45% 29/64" in row(draw(view, 80), "phase")


def test_schedule_line() -> None:
    """Step 412 of the window 100 to 800 is at 45%; the marker stands 41% along the strip."""
    line = row(draw(smooth.view(), 100), "schedule")
    assert "tp·linear  0▕█" in line
    assert "ramp 100→800, at 45%" in line
    strip = line.split("▕")[1].split("▏")[0]
    assert strip.index("┃") == 412 * len(strip) // 1000
    assert strip.endswith("▁")


def test_credit_line() -> None:
    """Before step 1 nearly all is context, but never everything; -99 points over 700 steps."""
    assert "context 99% ▕░" in row(draw(smooth.view(0), 80), "credit")
    assert "░█▏ learning" in row(draw(smooth.view(0), 80), "credit")
    moving = row(draw(smooth.view(), 80), "credit")
    assert "context 55%" in moving  # step 413: .99 * (800 - 413) / 700
    assert "−14.1 pt/100 steps" in moving
    assert "standing still" in row(draw(smooth.view(900), 80), "credit")


def test_other_allocations() -> None:
    uniform = smooth.view(recipe=smooth.recipe(credit={"allocation": "uniform"}))
    assert "all tokens learn ▕██" in row(draw(uniform, 80), "credit")
    assert row(draw(uniform, 80), "schedule").split()[2] == "off"
    forking = smooth.view(12, 20, recipe=smooth.recipe(20, credit=FORKING))
    assert "learning top 92% by entropy" in row(draw(forking, 80), "credit")
    fixed = smooth.view(12, 20, recipe=smooth.recipe(20, credit={"schedule": 0.8}))
    assert "tp·constant  magnitude .800 throughout" in row(draw(fixed, 80), "schedule")


def credit_of(done: int = 412, width: int = 100, **credit: Any) -> str:
    view = smooth.view(done, recipe=smooth.recipe(credit=credit, fresh=True))
    return row(draw(view, width), "credit")


def test_the_strip_shows_the_side_that_learns() -> None:
    """Halfway, m = .5: of 24 cells 12 are context, before, after, or 6 and 6.

    The stretch .2 to .4 has .5 * .2 of the response before it and .5 * .6 after it: 2 and 7 cells.
    """

    def focused(focus: Any) -> str:
        return credit_of(schedule=0.5, trajectory_percentile={"focus": focus})

    assert f"context 50% ▕{'░' * 12}{'█' * 12}▏ learning " in focused("late")
    assert f"learning 50% ▕{'█' * 12}{'░' * 12}▏ context" in focused("early")
    assert f"context 50% ▕{'░' * 6}{'█' * 12}{'░' * 6}▏ learning inside" in focused("middle")
    assert f"context 40% ▕{'░' * 2}{'█' * 15}{'░' * 7}▏ learning inside" in focused([0.2, 0.4])


@pytest.mark.parametrize(
    ("credit", "words"),
    [
        ({"allocation": "random_tokens", "schedule": 0.75}, "learning a random 25% ▕"),
        (
            {"allocation": "low_probability", "schedule": 0.3},
            "all tokens learn, unlikely ones × .7",
        ),
        (
            {"allocation": "entropy_advantage", "schedule": 1},
            "all tokens learn, entropy term × 1.0",
        ),
        ({"allocation": "expert_prefix", "schedule": 0.25}, "learn, 25% of a solution given"),
        (
            {
                "allocation": ["trajectory_percentile", "forking_tokens", "shuffled"],
                "forking_tokens": {"magnitude": 0.8},
                "schedule": 0.4,
            },
            "context 40%, top 20% by entropy, shuffled ▕",
        ),
    ],
)
def test_credit_in_a_few_words(credit: dict[str, Any], words: str) -> None:
    line = credit_of(**credit)
    assert words in line
    assert "standing still" in line


def test_several_allocations_are_named_and_the_one_that_moves_is_drawn() -> None:
    credit = {
        "allocation": ["forking_tokens", "trajectory_percentile"],
        "forking_tokens": {"magnitude": 0.8},
        "schedule": RAMP,
    }
    text = draw(smooth.view(recipe=smooth.recipe(credit=credit, fresh=True)), 100)
    assert "forking+tp·linear  0▕█" in row(text, "schedule")
    assert "−14.1 pt/100 steps" in row(text, "credit")


def test_a_reversed_schedule_rises() -> None:
    view = smooth.view(recipe=smooth.recipe(credit={"schedule": RAMP | {"reverse": True}}))
    text = draw(view, 100)
    strip = row(text, "schedule").split("▕")[1].split("▏")[0]
    assert (strip[0], strip[-1]) == ("▁", "█")
    assert "+14.1 pt/100 steps" in row(text, "credit")


def test_an_adaptive_schedule_shows_what_it_has_done_and_what_it_follows() -> None:
    """The magnitude of step 412 is .99 * 388 / 700, that of 411 is .141 points above it."""
    recipe = smooth.recipe(credit={"schedule": ADAPTIVE})
    text = draw(smooth.view(recipe=recipe), 100)
    line = row(text, "schedule")
    strip = line.split("▕")[1].split("▏")[0]
    assert "tp·adaptive" in line
    assert "entropy .373, target .300" in line
    assert strip.split("┃")[0].rstrip("▁▂▃▄▅▆▇█") == ""
    assert strip.split("┃")[1].strip() == ""  # nobody knows what comes
    assert "context 55%" in row(text, "credit")
    assert "−14.1 pt/100 steps" in row(text, "credit")
    before = draw(smooth.view(0, recipe=recipe), 100)
    assert "entropy –, target .300" in row(before, "schedule")
    assert "standing still" in row(before, "credit")


def test_other_scalars_that_move_have_a_line() -> None:
    """Step 413 of a window to 800: 1.2 - .4 * 413 / 800; the adaptive one as it was measured."""
    warm = {"initial": 1.2, "final": 0.8}
    kl = ADAPTIVE | {"initial": 0.1, "final": 0.0}
    recipe = smooth.recipe(rollout={"temperature": warm}, loss={"kl_coef": kl})
    metrics = [*smooth.lines(411), smooth.line(412) | {"schedule/kl_coef": 0.03}]
    line = row(draw(smooth.view(recipe=recipe, metrics=metrics), 80), "moving")
    assert "temperature .994 · kl_coef .030" in line


def test_all_same_warns_above_the_limit() -> None:
    """Share of groups without signal: .25 at step 412, .42 at the end."""
    assert "⚠" not in draw(smooth.view(), 80)
    assert "⚠ > .30" in row(draw(smooth.view(1000), 80), "all-same")


def test_what_is_not_measured_is_not_shown() -> None:
    recipe = smooth.recipe(track={"kl": False}, eval={"questions": 0})
    text = draw(smooth.view(recipe=recipe), 80)
    assert "│ kl" not in text
    assert "held-out" not in text


def test_held_out_line() -> None:
    wide = row(draw(smooth.view(), 80), "held-out")
    assert "sampled .230 → .382 (+.152)   greedy .310 → .458 (+.148)  step 400" in wide
    narrow = row(draw(smooth.view(), 60), "held-out")
    assert "sampled .230 → .382   greedy .310 → .458" in narrow
    assert "before step 1" in row(draw(smooth.view(0), 80), "held-out")


def test_gpu_memory_where_there_is_one() -> None:
    assert "cpu 4.10 GB" in row(draw(smooth.view(), 80), "device")
    line = smooth.line(1) | {"memory/gpu_gb": 71.2}
    assert "gpu 71.2 GB · host 4.10 GB" in row(draw(smooth.view(1, metrics=[line]), 80), "device")


def test_preparation_lists_its_phases() -> None:
    """Warm-up only where the recipe has one; what is done, what is being done, what is to come."""
    progress = smooth.progress("warmup", 0, done=172, total=420)
    text = draw(smooth.view(-1, recipe=smooth.recipe(warmup={"steps": 420}), progress=progress), 80)
    assert "✓ weights" in text
    assert "✓ data" in text
    assert "▸ warmup  ━" in text
    assert "41% 172/420" in text
    assert "· eval" in text
    assert "warmup" not in draw(smooth.view(-1, progress={}), 80)


def test_resume_prepares_for_the_next_step() -> None:
    view = smooth.view(412, progress=smooth.progress("weights", 412))
    assert "getting ready for step 413" in draw(view, 80)
    assert "· eval" not in draw(view, 80)


def test_brackets_are_not_markup() -> None:
    view = smooth.view(12, warnings=("lower [train].micro_batch_tokens",))
    assert "lower [train].micro_batch_tokens" in draw(view, 80)
