"""reasoning-gym: which tasks are allowed, and that their scorer is never called."""

from typing import Any

import pytest
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from tpcli.data.reasoning import _ONE_ANSWER, allowed_tasks, read_reasoning
from tpcli.errors import UsageError
from tpcli.reward.extract import last_boxed

# Each of these runs the answer as code, or takes any of several right answers.
UNSAFE = {
    "composite",
    "countdown",
    "graph_color",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "rush_hour",
    "simple_integration",
    "sokoban",
    "word_ladder",
}


def test_the_list_names_tasks_that_exist_and_need_it() -> None:
    default = ProceduralDataset.score_answer
    for name in _ONE_ANSWER:
        assert DATASETS[name][0].score_answer is not default


def test_tasks_with_several_right_answers_are_refused() -> None:
    assert set(DATASETS) >= UNSAFE
    assert not UNSAFE & set(allowed_tasks())
    with pytest.raises(UsageError, match="no comparison of text can score") as caught:
        list(read_reasoning("countdown", {}, size=1, seed=0))
    assert "chain_sum" in caught.value.hint


@pytest.mark.parametrize("task", allowed_tasks())
def test_every_allowed_task_gives_an_answer_that_fits_in_a_box(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints nothing on stdout, where results go."""
    for row in read_reasoning(task, {}, size=2, seed=7):
        assert row.question
        assert last_boxed(f"\\boxed{{{row.answer}}}") == row.answer
    assert capsys.readouterr().out == ""


def test_scorers_are_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("score_answer was called")

    monkeypatch.setattr(DATASETS["chain_sum"][0], "score_answer", refuse)
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    rows = list(read_reasoning("chain_sum", config, size=5, seed=0))
    for row in rows:
        left, sign, right = row.question.split(":")[-1].split("=")[0].split()
        assert int(row.answer) == int(left) + int(right) * {"+": 1, "-": -1}[sign]


@pytest.mark.parametrize(
    ("task", "config", "message", "hint"),
    [
        ("chain_sums", {}, "has no task chain_sums", "did you mean chain_sum"),
        ("qqqqqq", {}, "has no task qqqqqq", "it has ab, "),
        ("chain_sum", {"min_term": 2}, r"\[data.config\].min_term", "did you mean min_terms"),
        ("chain_sum", {"seed": 2}, r"\[data.config\].seed", "min_terms"),
        ("chain_sum", {"min_terms": -2}, "refuses .*min_terms must be positive", "max_terms"),
        ("chain_sum", {"min_terms": "x"}, "refuses", "max_terms"),
    ],
)
def test_mistakes_are_named(task: str, config: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        list(read_reasoning(task, config, size=1, seed=0))
    assert hint in caught.value.hint
