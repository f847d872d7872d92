import dataclasses
import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType
from tests.cli import smooth

from tpcli.cli.render import Display, RunView, live_panel, plain_line, summary, summary_json

FINISHED = {"status": "finished", "finished": smooth.STARTED + 20_000}


def printed(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Screen:
    """A Display on a console in memory, with a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
        self.now, self.file = 1000.0, io.StringIO()
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("tpcli.cli.render.time", clock)
        environ = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        console = Console(file=self.file, force_terminal=terminal, width=100, _environ=environ)
        self.display = Display(console)
        self.display.start()

    def show(self, view: RunView, *, after: float = 0.5) -> str:
        """What an update ``after`` seconds later writes."""
        self.now += after
        before = len(self.file.getvalue())
        self.display.update(view)
        return self.file.getvalue()[before:]


def test_plain_line() -> None:
    assert plain_line(smooth.view()) == (
        "k7m2xqd · step 412/1000 41% · 2h09m, eta 3h13m · reward .494 · entropy .373 · kl .0066 · "
        "held-out sampled .382, greedy .458"
    )


def test_what_no_verifier_judged_is_shown_apart_from_wrong() -> None:
    """Mean shares over the steps, in the panel, the summary and its JSON; silent where all were."""
    view = smooth.view(1000, state=FINISHED)
    assert "verifier" not in printed(summary(view)) + printed(live_panel(smooth.view(), 100))
    assert summary_json(view)["unjudged"] == {}
    lost = {"verdict/timeout": 0.02, "verdict/crash": 0.0}
    metrics = [{**line, **lost} for line in view.metrics]
    view = dataclasses.replace(view, metrics=metrics)
    assert "timeout 2% of responses, counted as wrong" in printed(summary(view))
    assert summary_json(view)["unjudged"] == {"timeout": pytest.approx(0.02)}
    running = dataclasses.replace(smooth.view(), metrics=metrics[:413])
    assert "timeout 2% of responses" in printed(live_panel(running, 100))


def test_plain_line_before_step_1() -> None:
    progress = smooth.progress("weights", 0, done=1, total=4, note="model.safetensors")
    view = smooth.view(-1, progress=progress)
    assert plain_line(view) == "k7m2xqd · weights 25% · 5s · model.safetensors"
    assert plain_line(smooth.view(-1, progress={})) == "k7m2xqd · starting · 5s"


def test_plain_line_at_the_end() -> None:
    line = plain_line(smooth.view(1000, state=FINISHED))
    assert line.startswith("k7m2xqd · finished · step 1000/1000 100% · 5h33m · reward")
    assert "eta" not in line


def test_pipe_prints_phase_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, terminal=False)
    weights = smooth.view(-1, progress=smooth.progress("weights", 0, done=1, total=4))
    further = smooth.view(-1, progress=smooth.progress("weights", 0, done=2, total=4))
    data = smooth.view(-1, progress=smooth.progress("data", 0))
    assert "weights 25%" in screen.show(weights)
    assert screen.show(further) == ""
    assert "data" in screen.show(data)


def test_pipe_prints_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, terminal=False)
    assert screen.show(smooth.view(401)).count("\n") == 1
    assert screen.show(smooth.view(402), after=30) == ""
    assert "step 404/1000" in screen.show(smooth.view(404), after=31)
    assert screen.show(smooth.view(405), after=30) == ""


def test_pipe_prints_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of phase within a step is no event; the evaluation after step 450 is."""
    screen = Screen(monkeypatch, terminal=False)
    screen.show(smooth.view(448))
    assert screen.show(smooth.view(449, progress=smooth.progress("update", 450))) == ""
    assert "step 450/1000" in screen.show(smooth.view(450))


def test_pipe_prints_a_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, terminal=False)
    view = smooth.view(401, warnings=("MLflow cannot be reached: [Errno 13]",))
    assert screen.show(view).startswith("warning: MLflow cannot be reached: [Errno 13]\n")
    assert screen.show(view) == ""


def test_pipe_prints_the_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line however wide, no control characters."""
    screen = Screen(monkeypatch, terminal=False)
    screen.show(smooth.view(999))
    screen.show(smooth.view(1000, state=FINISHED))
    screen.display.stop()
    text = screen.file.getvalue()
    assert text.count("finished") == 1
    assert text.splitlines()[-1].startswith("k7m2xqd · finished · step 1000/1000")
    assert "\x1b" not in text


def test_terminal_draws_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, terminal=True)
    assert "401/1000" in screen.show(smooth.view(401))
    assert screen.show(smooth.view(402), after=0.1) == ""
    assert "403/1000" in screen.show(smooth.view(403), after=0.2)
    screen.show(smooth.view(1000, state=FINISHED), after=0.0)
    screen.display.stop()
    assert "1000/1000" in screen.file.getvalue()


def test_stop_without_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        Screen(monkeypatch, terminal=terminal).display.stop()


def test_summary_of_a_finished_run() -> None:
    text = printed(summary(smooth.view(1000, state=FINISHED)))
    assert text.startswith("✓ finished  math-linear-s3 · k7m2xqd · 1000 steps · 5h33m\n")
    rows = {line[:16].strip(): line.split() for line in text.splitlines()}
    assert rows["held-out sampled"][2:5] == [".230", ".610", "+.380"]
    assert rows["held-out greedy"][2:5] == [".310", ".680", "+.370"]
    assert rows["reward"][1:4] == [".143", ".612", "+.469"]
    assert "18.5 s/step; rollout 57%" in text
    assert "runs/k7m2xqd" in text
    assert "tpcli runs show k7m2xqd" in text
    assert "tpcli resume" not in text


def test_a_magnitude_that_follows_a_measurement_is_reported() -> None:
    """From .99 at step 1 to 0 at the end; of other schedules it is known beforehand."""
    recipe = smooth.recipe(credit={"schedule": {"curve": "adaptive", "target": 0.3}})
    view = smooth.view(1000, recipe=recipe, state=FINISHED)
    rows = {line[:16].strip(): line.split() for line in printed(summary(view)).splitlines()}
    assert rows["magnitude"][1:4] == [".990", "0", "−.990"]
    assert summary_json(view)["magnitude"]["last"] == 0
    assert "· magnitude .549 ·" in plain_line(smooth.view(recipe=recipe))
    assert "magnitude" not in printed(summary(smooth.view(1000, state=FINISHED)))


def test_summary_of_a_stopped_run() -> None:
    state = {"status": "stopped", "finished": smooth.STARTED + 420}
    text = printed(summary(smooth.view(12, 20, state=state)))
    assert text.startswith("■ stopped  math-linear-s3 · k7m2xqd · after step 12 of 20 · 7m00s\n")
    assert "tpcli resume k7m2xqd" in text
    assert "log.txt" not in text


def test_summary_of_a_failed_run() -> None:
    """Also before the first line of metrics; the hint's brackets are no markup."""
    state = {"status": "failed", "error": "out of memory", "hint": "lower [rollout].max_rows"}
    for done in (-1, 12):
        text = printed(summary(smooth.view(done, 20, state=state)))
        assert text.startswith("✗ failed")
        assert "\nout of memory\nlower [rollout].max_rows\n" in text
        assert "runs/k7m2xqd/log.txt" in text
        assert "tpcli resume k7m2xqd" in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_summary_fits(width: int) -> None:
    text = printed(summary(smooth.view(1000, state=FINISHED)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_summary_json() -> None:
    found = summary_json(smooth.view(1000, state=FINISHED))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["held_out"]["sampled"] == {"before": 0.23, "after": 0.61, "step": 1000}
    assert (found["id"], found["status"], found["seconds"]) == ("k7m2xqd", "finished", 20_000)
    assert found["seconds_per_step"] == pytest.approx(18.5)
    assert found["peak_gpu_gb"] is None


def test_summary_json_of_nothing() -> None:
    """A run that failed at once: every figure is None, nothing raises."""
    view = dataclasses.replace(smooth.view(-1), state={"status": "failed", "error": "no weights"})
    found: dict[str, Any] = summary_json(view)
    assert found["held_out"] == {"sampled": None, "greedy": None}
    assert found["reward"] is None
    assert (found["step"], found["error"]) == (0, "no weights")
