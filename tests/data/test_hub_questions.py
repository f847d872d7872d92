"""Data sets of the hub, read by the real library from a hub on this machine."""

import json
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.hub import FakeHub

from tpcli.data.hub import GatedError, hub_split, read_hub
from tpcli.data.rows import Fields, Row
from tpcli.errors import OfflineError, UsageError

FIELDS = Fields("question", "answer", None)
TRAIN = [{"question": "1+1", "answer": "2"}, {"question": "2+2", "answer": "4"}]
TEST = [{"question": "3+3", "answer": "6"}]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(name: str, config: dict[str, Any] | None = None, revision: str | None = None) -> list[Row]:
    return list(read_hub(name, config or {}, revision=revision, fields=FIELDS))


def publish(hub: FakeHub, name: str, *, gated: bool = False) -> None:
    files = {"train.jsonl": jsonl(TRAIN), "test.jsonl": jsonl(TEST)}
    hub.add("datasets", name, files, gated=gated)


def test_train_is_the_default_split(hub: FakeHub) -> None:
    publish(hub, "them/sums")
    assert read("them/sums") == [Row("1+1", "2"), Row("2+2", "4")]
    assert read("them/sums", {"split": "test"}, "main") == [Row("3+3", "6")]


def test_a_cached_set_needs_no_network(hub: FakeHub) -> None:
    publish(hub, "them/kept")
    before = read("them/kept")
    hub.stop()
    assert read("them/kept") == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split": "validation"}, "cannot be loaded: .*validation"),
        ({"name": "hard"}, "cannot be loaded: .*hard"),
        ({"splt": "test"}, r"\[data.config\].splt: a hub set has no such setting"),
        ({"split": 5}, "split is not text"),
    ],
)
def test_wrong_settings(hub: FakeHub, config: dict[str, Any], message: str) -> None:
    publish(hub, "them/sums")
    with pytest.raises(UsageError, match=message):
        read("them/sums", config)


def test_missing_column(hub: FakeHub) -> None:
    hub.add("datasets", "them/odd", {"train.jsonl": jsonl([{"q": "1", "answer": "2"}])})
    with pytest.raises(UsageError, match='hf:them/odd has no column "question"'):
        read("them/odd")


def test_missing_set_and_revision(hub: FakeHub) -> None:
    publish(hub, "them/sums")
    with pytest.raises(UsageError, match="'them/none' doesn't exist"):
        read("them/none")
    with pytest.raises(UsageError, match="Revision 'v9' doesn't exist"):
        read("them/sums", revision="v9")


def test_gated_set(hub: FakeHub) -> None:
    publish(hub, "them/closed", gated=True)
    with pytest.raises(UsageError, match="only to those whom its owner has let in") as caught:
        read("them/closed")
    assert "hf auth login" in caught.value.hint


def test_a_set_built_by_a_script_is_refused(hub: FakeHub) -> None:
    hub.add("datasets", "them/coded", {"coded.py": b"raise SystemExit", "README.md": b""})
    with pytest.raises(UsageError, match="built by a script"):
        read("them/coded")


def test_offline(hub: FakeHub) -> None:
    hub.stop()
    with pytest.raises(OfflineError, match="not in its cache") as caught:
        read("them/never-seen")
    assert "HF_HOME" in caught.value.hint


# Rows as they stand: what benchmarks are made of

OLD, NEW = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: {0}
  data_files:
  - split: test
    path: {0}/part-*
- config_name: hard
  data_files:
  - split: test
    path: hard/*.csv
  - split: exam
    path: exam.csv
---
"""


def foldered() -> dict[str, bytes]:
    """A set with two configurations, in folders that its card maps to splits."""
    return {
        "README.md": CARD.format("easy").encode(),
        "easy/part-0.csv": b"question,answer\n1+1,2\n2+2,4\n",
        "easy/part-1.csv": b"question,answer\n3+3,6\n",
        "hard/odd.csv": b'question,answer\n"5, ""five""\n",5\n',
        "exam.csv": b"question,answer\n7,7\n",
    }


def answers(name: str, revision: str | None, config: str | None = None) -> list[str]:
    table = hub_split(name, config=config, split="train", revision=revision)
    return [record["answer"] for _, record in table.records]


def test_configurations_in_folders(hub: FakeHub) -> None:
    hub.add("datasets", "them/parts", foldered(), commit=OLD)
    easy = hub_split("them/parts", config="easy", split="test", revision=OLD)
    assert easy.columns == ["question", "answer"]
    assert [*easy.records] == [
        (f"hf:them/parts, row {i} of test", {"question": f"{i}+{i}", "answer": 2 * i})
        for i in (1, 2, 3)
    ]
    hard = hub_split("them/parts", config="hard", split="test", revision=OLD)
    assert [row for _, row in hard.records] == [{"question": '5, "five"\n', "answer": 5}]
    exam = hub_split("them/parts", config="hard", split="exam", revision=OLD)
    assert [row for _, row in exam.records] == [{"question": "7", "answer": 7}]
    with pytest.raises(UsageError, match="Config name is missing"):
        hub_split("them/parts", config=None, split="test", revision=OLD)


def test_the_commit_decides_which_edition(hub: FakeHub) -> None:
    """Online and from the cache, in either order; an edition never stands in for another."""
    hub.add("datasets", "them/moving", {"train.jsonl": jsonl(TRAIN)}, commit=OLD)
    assert answers("them/moving", OLD) == ["2", "4"]
    with pytest.raises(UsageError, match=f"Revision '{NEW}' doesn't exist"):
        answers("them/moving", NEW)
    hub.stop()
    with pytest.raises(OfflineError, match="not in its cache"):
        answers("them/moving", NEW)
    hub.start()
    hub.add("datasets", "them/moving", {"train.jsonl": jsonl(TEST)}, commit=NEW)
    assert answers("them/moving", NEW) == ["6"]
    hub.stop()
    assert answers("them/moving", OLD) == ["2", "4"]
    assert answers("them/moving", NEW) == ["6"]
    assert answers("them/moving", None) == ["6"]  # nothing was pinned: the last one


def test_splits_with_names_alike_are_not_mixed_offline(hub: FakeHub) -> None:
    card = CARD.format("easy").replace("easy/part-*", "*.jsonl").partition("- config_name: hard")[0]
    card = card.replace("*.jsonl", "test.jsonl") + (
        "  - split: test_train\n    path: test_train.jsonl\n"
        "  - split: train\n    path: train.jsonl\n---\n"
    )
    for commit, rows in ((OLD, TRAIN), (NEW, TEST)):
        files = {"test.jsonl": rows, "test_train.jsonl": rows[:1], "train.jsonl": rows[-1:]}
        published = {"README.md": card.encode(), **{n: jsonl(r) for n, r in files.items()}}
        hub.add("datasets", "them/alike", published, commit=commit)
        hub_split("them/alike", config="easy", split="test", revision=commit)
    hub.stop()
    for split, kept in (("test", TRAIN), ("test_train", TRAIN[:1]), ("train", TRAIN[1:])):
        table = hub_split("them/alike", config="easy", split=split, revision=OLD)
        assert [row for _, row in table.records] == kept


def test_part_of_a_split(hub: FakeHub) -> None:
    hub.add("datasets", "them/part", {"train.jsonl": jsonl(TRAIN)}, commit=OLD)
    for _ in range(2):
        table = hub_split("them/part", config=None, split="train[1:]", revision=OLD)
        assert [row for _, row in table.records] == TRAIN[1:]
        if hub.requests:
            hub.requests.clear()
            hub.stop()


def test_offline_is_told_at_once_and_the_library_is_left_as_it_was(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "them/sums")
    hub.stop()
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)  # between the client's retries
    bars = datasets.is_progress_bar_enabled()
    before = time.monotonic()
    with pytest.raises(OfflineError) as caught:
        hub_split("them/sums", config="main", split="test", revision=OLD)
    assert time.monotonic() - before + sum(waits) < 10
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "offline"
    assert not datasets.config.HF_HUB_OFFLINE
    assert datasets.is_progress_bar_enabled() == bars
    hub.start()
    assert read("them/sums", {"split": "test"}) == [Row("3+3", "6")]


def test_a_gated_set_opens_when_its_owner_lets_one_in(hub: FakeHub) -> None:
    """Then its cache serves offline, as any set's."""
    hub.add("datasets", "them/closed", foldered(), gated=True, commit=OLD)
    with pytest.raises(GatedError) as caught:
        hub_split("them/closed", config="hard", split="exam", revision=OLD)
    assert (caught.value.kind, caught.value.exit_code) == ("gated", 2)
    hub.gated.clear()
    for _ in range(2):
        table = hub_split("them/closed", config="hard", split="exam", revision=OLD)
        assert [row for _, row in table.records] == [{"question": "7", "answer": 7}]
        if hub.requests:
            hub.requests.clear()
            hub.stop()


def test_code_of_a_set_is_never_run(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = b"open('ran', 'w')"
    hub.add("datasets", "them/both", {"both.py": code, "train.jsonl": jsonl(TRAIN)}, commit=OLD)
    with pytest.raises(UsageError, match="built by a script") as caught:
        answers("them/both", OLD)
    assert "plain files" in caught.value.hint
    assert not Path("ran").exists()
