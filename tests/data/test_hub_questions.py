"""Data sets of the hub, read by the real library from a hub on this machine."""

import json
from typing import Any

import pytest
from tests.hub import FakeHub

from tpcli.data.hub import read_hub
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
