"""A user's own verifier: found, imported and called in processes, and told in one line if not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpcli.errors import UsageError
from tpcli.reward.own import GROUP
from tpcli.reward.verify import Grader
from tpcli.types import Answered, Question

ROOT = Path(__file__).parents[2]


def whole(*texts: str, finished: bool = True) -> list[Answered]:
    return [Answered(text, "7", finished) for text in texts]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader("tests.reward.jobs:told", deadline=0.5, folders=[ROOT]) as made:
        yield made


def test_the_reward_is_what_it_returns() -> None:
    with Grader("tests.reward.jobs:half", folders=[ROOT]) as grader:
        right, close, wrong = grader.grade(whole(r"it is 7", r"close, \boxed{ 6  a}", "no"))
    assert (right.reward, right.status, right.extracted) == (1.0, "correct", None)
    assert (close.reward, close.status) == (0.5, "wrong")
    assert (close.extracted, close.canonical) == (" 6  a", "6 a")
    assert (wrong.reward, wrong.status) == (0.0, "wrong")
    assert right.ms > 0


def test_true_and_false_are_rewards() -> None:
    with Grader("tests.reward.jobs:right", folders=[ROOT]) as grader:
        assert [v.reward for v in grader.grade(whole("7", "8"))] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("return:text", "crash"),
        ("return:two", "crash"),
        ("return:nan", "crash"),
        ("return:none", "crash"),
        ("raise:me", "crash"),
        ("die:3", "crash"),
        ("hang", "timeout"),
        ("7", "correct"),
        ("8", "wrong"),
    ],
)
def test_every_end(grader: Grader, text: str, status: str) -> None:
    first, second = grader.grade(whole(text, "7"))
    assert (first.status, first.reward) == (status, float(status == "correct"))
    assert second.status == "correct"


def test_a_full_process_is_replaced() -> None:
    """What it hoarded dies with it, so the answers after a crash are right again."""
    kind = "tests.reward.jobs:hoard"
    with Grader(kind, workers=1, memory_gib=0.25, folders=[ROOT]) as grader:
        statuses = [v.status for v in grader.grade(whole(*"abcdefghijkl"))]
    assert set(statuses) == {"correct", "crash"}
    assert "correct" in statuses[statuses.index("crash") :]
    assert statuses.count("crash") <= 4


def test_it_sees_the_whole_response_and_no_unfinished_one(grader: Grader, tmp_path: Path) -> None:
    """Thinking included; what was cut off is not handed over (the file is never written)."""
    file = tmp_path / "seen"
    (given,) = grader.grade(whole("<think>7</think> 8"))
    assert given.status == "correct"
    cut = grader.grade(whole(f"write:{file}", finished=False))
    thinking = grader.grade(whole(f"write:{file} <think>"))
    opened = grader.grade([Answered(f"write:{file}", "7", True, opened=True)])
    assert [v.status for v in (*cut, *thinking, *opened)] == ["unfinished"] * 3
    assert not file.exists()
    grader.grade(whole(f"write:{file}"))
    assert "math_verify" in file.read_text().split()
    assert "torch" not in file.read_text().split()


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("no_such:f", 'there is no module "no_such"', "current folder"),
        ("tests.no_such:f", 'there is no module "tests.no_such"', "current folder"),
        ("tests.reward.jobs:no_such", 'has no function "no_such"', "MODULE:FUNCTION"),
        ("tests.reward.jobs:NOT_A_FUNCTION", "is no function", "function"),
        ("plugin:no_such", 'no installed package has a verifier called "no_such"', GROUP),
        ("broken:f", "fails: NameError: name 'nothing' is not defined", "mend"),
        ("needs:f", "fails: ModuleNotFoundError: No module named 'no_such_thing'", "mend"),
        ("dying:f", "the process that imports it dies", "import it"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    kind: str, message: str, hint: str, tmp_path: Path
) -> None:
    """By ``check`` before training, and by the first answers where nobody checked."""
    (tmp_path / "broken.py").write_text("nothing\n")
    (tmp_path / "needs.py").write_text("import no_such_thing\n")
    (tmp_path / "dying.py").write_text("import os\nos._exit(1)\n")
    with Grader(kind, folders=[ROOT, tmp_path], workers=1) as grader:
        with pytest.raises(UsageError) as caught:
            grader.check([Question("q", "q", "7")])
        with pytest.raises(UsageError):
            grader.grade(whole("7"))
    assert str(caught.value).startswith(f'[reward].kind = "{kind}": ')
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_module_of_the_current_folder_and_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package is a folder on the path with entry points."""
    (tmp_path / "mine.py").write_text("def judge(response, gold):\n    return gold in response\n")
    facts = tmp_path / "mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\nmine-too = mine:judge\n")
    monkeypatch.chdir(tmp_path)
    for kind in ("mine:judge", "plugin:mine-too"):
        with Grader(kind) as grader:
            grader.check([])
            assert [v.reward for v in grader.grade(whole("7", "8"))] == [1.0, 0.0]
    assert "mine" not in sys.modules


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """Its module and the program that tries it out run as they stand there."""
    text = (ROOT / "docs" / "verifiers.md").read_text()
    module, program = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    (tmp_path / "longest_word.py").write_text(module)
    (tmp_path / "try_it.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "try_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = text.split("```python\n")[2].split("```text\n")[1].split("```")[0]
    assert done.stdout == shown
