"""The JSON schema, and what it says of each key in words."""

import json
import typing
from pathlib import Path

import pytest

from tpcli import names
from tpcli.recipe import spec
from tpcli.recipe.positions import KeyPath, dotted

COMMITTED = Path(__file__).parents[2] / "recipes" / "schema.json"


def test_the_committed_schema_is_true() -> None:
    """After a change of the models: tpcli recipe schema > recipes/schema.json"""
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == spec.json_schema()


def test_every_key_is_documented_and_none_takes_null() -> None:
    for path, table in spec.tables():
        for key, node in table["properties"].items():
            documented = "description" in node or spec.table_of(node)
            assert documented, dotted((*path, key))
    assert "null" not in json.dumps(spec.json_schema())


def test_the_schema_is_for_files_that_extend_others() -> None:
    schema = spec.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in schema
    assert next(iter(schema["properties"])) == "extends"
    assert schema["additionalProperties"] is False
    assert not any("required" in table for table in (schema, *schema["$defs"].values()))
    assert "required" in spec.spec()  # the copy that faults are read from keeps it


def test_tables_are_those_of_the_models() -> None:
    found = {dotted(path) for path, _ in spec.tables()}
    assert found >= {"", "model", "model.scratch", "credit.schedule", "loss.clip_high", "warmup"}
    assert "data.examples" not in found  # an array of tables


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("optim", "lr"), "a number above 0 or a table"),
        (("optim", "eps"), "a number above 0"),
        (("data", "held_out"), "a number above 0 and below 1"),
        (("credit", "schedule", "end"), "a number from 0 to 1"),
        (("credit", "schedule"), "a number or a table"),
        (("credit", "schedule", "initial"), "a number"),
        (("train", "seed"), "a whole number of at least 0"),
        (("launch", "cpu"), "true or false"),
        (("loss", "dual_clip"), "a number above 1 or false"),
        (("model", "source"), "text of at least one character"),
        (("model", "sha256"), "text that matches ^[0-9a-f]{64}$ or false"),
        (("model", "scratch"), "a table or false"),
        (("data", "thinking"), "true or false"),
        (("data", "config"), "a table"),
        (("data", "examples"), "an array of tables"),
        (("data", "examples", 4, "question"), "text"),
        (("model", "scratch", "pieces"), "an array of text"),
        (("optim", "betas"), "an array of 2, each a number of at least 0 and below 1"),
        (("optim", "betas", 0), "a number of at least 0 and below 1"),
        (("optim", "betas", 1), "a number of at least 0 and below 1"),
        (("loss", "correction", "level"), 'one of "token", "sequence", "geometric"'),
        (
            ("credit", "trajectory_percentile", "focus"),
            'one of "late", "early", "middle" or an array of 2, each a number from 0 to 1',
        ),
        (
            ("credit", "schedule", "points"),
            "an array of an array of 2: a number from 0 to 1 and a number",
        ),
        (("credit", "schedule", "points", 3, 1), "a number"),
        (("credit", "forking_tokens", "magnitude"), "a number or a table or false"),
        (("launch", "mixed_precision"), 'one of "no", "bf16"'),
        (("rollout", "engine"), 'one of "transformers", "vllm", "vllm-server"'),
    ],
)
def test_describe(path: KeyPath, words: str) -> None:
    node = spec.find(path)
    assert node is not None
    assert spec.describe(node) == words


@pytest.mark.parametrize(
    "path", [("x",), ("optim", "x"), ("optim", "lr", "x"), ("data", 0), ("optim", "betas", 2)]
)
def test_find_nothing(path: KeyPath) -> None:
    assert spec.find(path) is None


def test_choices_are_the_names() -> None:
    node = spec.find(("credit", "allocation"))
    assert node is not None
    assert spec.choices(node) == list(typing.get_args(names.AllocationName))


def test_homes() -> None:
    assert spec.homes("lr", near=("train",), is_table=False) == [("warmup",), ("optim",)]
    assert spec.homes("curve", near=("credit",), is_table=False) == [("credit", "schedule")]
    assert spec.homes("curve", near=("credit", "forking_tokens"), is_table=False) == [
        ("credit", "forking_tokens", "magnitude")
    ]
    assert spec.homes("schedule", near=(), is_table=True) == [("credit",)]
    assert spec.homes("nonsense", near=(), is_table=False) == []


def test_false_stands_for_null_and_for_nothing_else() -> None:
    """Every optional key takes false; so does a key that is true or false, as a value."""
    seen = set()
    for path, table in spec.tables():
        for key in table["properties"]:
            node = spec.find((*path, key))
            assert node is not None
            if {"const": False} in node.get("anyOf", ()):
                seen.add(dotted((*path, key)))
    assert seen >= {"loss.dual_clip", "track.mlflow", "warmup", "model.scratch", "credit.k"}
    assert seen >= {"credit.schedule.target", "rollout.dynamic_sampling", "train.horizon"}
    assert not seen & {"data.thinking", "launch.cpu", "credit.schedule", "data.source"}
