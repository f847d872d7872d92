"""``tpcli replay``: run folders in, tables and marked tokens out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.registry.folders import FINISHED, make_run

from tpcli import errors
from tpcli.analysis.replay import Example, sample_of
from tpcli.cli import replay as cli
from tpcli.cli.app import main
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import to_toml
from tpcli.registry import folder

RECIPE = """\
[model]
source = "m"
[data]
source = "running_sum"
[credit]
allocation = "trajectory_percentile"
schedule = { initial = 0.8, end = 1.0 }
[train]
steps = 4
"""
MAGNITUDES = (0.6, 0.4, 0.2, 0.0)
"""0.8 (1 - t / 4)."""


def line(step: int, **changed: Any) -> dict[str, Any]:
    """A response of ten tokens, "a" to "j", at the run's magnitude of that step.

    int(10 * .6) = 6 tokens of context at step 1, then 4, 2 and 0.
    """
    context = (6, 4, 2, 0)[step - 1]
    return {
        "step": step,
        "question": "1+1?",
        "tokens": list("abcdefghij"),
        "weight": [0.0] * context + [1.0] * (10 - context),
        "advantage": [0.5] * 10,
        "group_advantage": 0.5,
        "entropy": [0.1 * i for i in range(10)],
        "old_logprob": [-0.1] * 10,
        "seed": step,
        "learns": True,
    } | changed


def record(
    runs: Path, lines: list[dict[str, Any]], run_id: str = "k7m2xqd", recipe: str = RECIPE
) -> Path:
    """A run folder with these responses, and metrics as the trainer writes them."""
    metrics = [
        {"step": t, "schedule/magnitude": m, "entropy/all": 0.5}
        for t, m in enumerate(MAGNITUDES, start=1)
    ]
    run_dir = make_run(runs, run_id, lines=metrics, state=FINISHED, steps=4, horizon=4)
    source = runs.parent / f"{run_id}.toml"
    source.write_text(recipe)
    (run_dir / folder.RESOLVED).write_text(to_toml(load_recipe(source).recipe))
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (run_dir / folder.RESPONSES).write_text(text)
    return run_dir


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    monkeypatch.setenv("COLUMNS", "100")
    return path


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["replay", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def changed(*sets: str) -> list[str]:
    return ["k7m2xqd", *(word for text in sets for word in ("--set", text))]


def test_a_constant_schedule_in_place_of_a_ramp(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At magnitude .5 the last five of ten tokens learn; token-mean makes each count 10 / 5."""
    record(runs, [line(t) for t in (1, 2, 3, 4)])
    assert run(*changed("credit.schedule=0.5")) == errors.OK
    out, err = capsys.readouterr()
    assert err == ""
    table = [text.split() for text in out.splitlines()]
    head = table.index(["step", "credited", "gradient", "scale", "gained", "lost", "of", "tokens"])
    assert table[head + 1 : head + 5] == [
        ["1", "40%", "→", "50%", "2.50", "→", "2.00", "1", "0", "10"],
        ["2", "60%", "→", "50%", "1.67", "→", "2.00", "0", "1", "10"],
        ["3", "80%", "→", "50%", "1.25", "→", "2.00", "0", "3", "10"],
        ["4", "100%", "→", "50%", "1.00", "→", "2.00", "0", "5", "10"],
    ]
    assert "of the stored responses as if they were the whole step" in " ".join(out.split())
    assert out.splitlines()[-3:] == [
        "step 4, the response that changes most, 5 of 10 tokens: 1+1?",
        "[credited by both]  [-only then-]  {+only now+}  by neither",
        "[-abcde-][fghij]",
    ]


def test_a_table_that_gives_way_to_a_number_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(runs, [line(1)])
    run(*changed("credit.schedule=0.5", 'loss.denominator="all"'))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" · 1 response")
    assert lines[1 : lines.index("")] == [
        "credit.schedule   linear → 0.5",
        'loss.denominator  "selected" → "all"',
    ]


def test_of_a_table_that_stays_one_every_setting_that_differs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(runs, [line(1)])
    run(*changed('credit.schedule.curve="cosine"', "credit.schedule.initial=0.6"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1 : lines.index("")] == [
        'credit.schedule.curve    "linear" → "cosine"',
        "credit.schedule.initial  0.8 → 0.6",
    ]


def test_lines_of_words_fit_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    record(runs, [line(t) for t in (1, 2, 3, 4)])
    run(*changed("credit.schedule=0.5"))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 70


def test_another_allocation_gains_and_loses(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Entropy falls here, so forking_tokens at .6 takes the first four where TP takes the last."""
    record(runs, [line(1, entropy=[1.0 - 0.1 * i for i in range(10)])])
    run(*changed('credit.allocation="forking_tokens"'), "--json")
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["changed"] == [
        {"key": "credit.allocation", "then": "trajectory_percentile", "now": "forking_tokens"}
    ]
    (step,) = found["steps"]
    assert (step["gained"], step["lost"], step["differ"]) == (4, 4, 0)
    assert step["now"]["magnitudes"] == {"forking_tokens": pytest.approx(0.6)}
    assert step["then"]["gradient_scale"] == pytest.approx(2.5)
    assert found["example"]["now"] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_weights_that_its_own_recipe_does_not_give_are_told(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(runs, [line(1, weight=[1.0] * 10)])
    run(*changed("credit.schedule=0.5"))
    out, err = capsys.readouterr()
    assert "gives other weights than it stored for 6 of 10 tokens" in err
    assert "100% →  50%" in out  # then is as stored


def test_another_reduction_changes_the_scale_and_no_token(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 of 10 tokens credited: 2.5 of the selected, 1 of all."""
    record(runs, [line(1)])
    run(*changed('loss.denominator="all"'))
    out = capsys.readouterr().out
    assert "2.50 → 1.00" in out
    assert "step 1, no response has other tokens credited; the first one: 1+1?" in out
    assert out.splitlines()[-1] == "abcdef[ghij]"


def test_entropy_advantage_shows_the_advantage(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """|A| = .5 and H = 1: .5 + m min(.4, .25), .75 at magnitude 1; no token is left out."""
    record(runs, [line(4, entropy=[1.0] * 10)])
    run(*changed('credit.allocation="entropy_advantage"', "credit.schedule=1.0"))
    out = capsys.readouterr().out
    assert "mean |A|" in out
    assert ".500 → .750" in out


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ([], "needs something to change"),
        (["credit"], "--set credit: a replay needs KEY=VALUE"),
        (["optim.lr=1.0"], "optim.lr cannot be replayed"),
        (["loss.objective='gspo'"], "loss.objective cannot be replayed"),
        (["credit.advantage='group_mean'"], "needs the rewards of whole groups"),
        (["credit.allocation='expert_prefix'"], "other responses would have been sampled"),
        (["credit.schedule.curv='cosine'"], "did you mean curve?"),
    ],
)
def test_what_cannot_be_replayed(
    runs: Path, capsys: pytest.CaptureFixture[str], sets: list[str], told: str
) -> None:
    record(runs, [line(1)])
    assert run(*changed(*sets)) == errors.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


def test_an_older_run_is_replayed_as_far_as_it_goes(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines lack seed and old_logprob: a window needs neither, random tokens do."""
    old = line(1)
    for key in ("seed", "old_logprob", "group_advantage", "learns"):
        del old[key]
    record(runs, [old])
    assert run(*changed("credit.schedule=0.5")) == errors.OK
    capsys.readouterr()
    random = 'credit.allocation=["random_tokens", "low_probability"]'
    assert run(*changed(random)) == errors.USAGE
    err = capsys.readouterr().err
    assert "lack old_logprob, which low_probability reads; seed, which random_tokens reads" in err


def test_no_stored_responses(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(runs, [])
    assert run(*changed("credit.schedule=0.5")) == errors.NOT_FOUND
    assert "has stored no responses" in capsys.readouterr().err


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(runs, [line(1)]) / folder.RESPONSES
    path.write_text(path.read_text() + '{"step": 2, "to')
    assert run(*changed("credit.schedule=0.5"), "--json") == errors.OK
    assert [s["step"] for s in json.loads(capsys.readouterr().out)["steps"]] == [1]
    path.write_text(path.read_text() + "\n")
    assert run(*changed("credit.schedule=0.5")) == errors.USAGE
    assert "responses.jsonl, line 2" in capsys.readouterr().err


def test_a_response_of_no_tokens_counts_for_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = line(1, tokens=[], weight=[], advantage=[], entropy=[], old_logprob=[])
    record(runs, [empty, line(1)])
    run(*changed("credit.schedule=0.5"), "--json")
    assert json.loads(capsys.readouterr().out)["steps"][0]["responses"] == 1


def test_many_steps_are_thinned_and_said_so() -> None:
    steps: Any = list(range(117))
    shown: Any = cli._spread(steps, 20)
    assert shown[:3] + shown[-1:] == [0, 6, 12, 116]
    assert len(shown) == 20
    few: Any = cli._spread(steps[:20], 20)
    assert few == steps[:20]


def example(tokens: list[str], weight: list[float], now: list[float]) -> Example:
    raw = line(1, tokens=tokens, weight=weight, advantage=[1.0] * len(tokens))
    return Example(sample_of(raw), tuple(now))


def test_a_terminal_gets_colours_in_place_of_brackets() -> None:
    console = Console(force_terminal=True, color_system="standard", width=80)
    body = cli._example(example(list("abcd"), [0, 1, 1, 0], [0, 0, 1, 1]), console)[-1]
    assert (body.plain, body.style) == ("abcd", "")
    marks = [(body.plain[s.start : s.end], s.style) for s in body.spans]
    assert marks == [("a", "dim"), ("b", "red strike"), ("c", "cyan"), ("d", "bold green")]


def test_a_long_response_is_shown_around_its_first_change() -> None:
    """1000 tokens, the first change at 500: 480 before are left out, and 1000 - 480 - 240 after."""
    tokens = [f"{i} " for i in range(1000)]
    then, now = [0.0] * 500 + [1.0] * 500, [0.0] * 600 + [1.0] * 400
    body = cli._example(example(tokens, then, now), Console(no_color=True))[-1].plain
    assert body.startswith("… 480 tokens … 480 481")
    assert "[-500 501" in body
    assert body.endswith("719 ] … 280 tokens …")


def test_a_response_cannot_steer_the_terminal() -> None:
    assert cli.plain("a\nb\x1b[2Jé\t") == "a↵b\\x1b[2Jé\\t"
