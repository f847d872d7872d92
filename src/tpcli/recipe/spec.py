"""What each key of a recipe takes, read from the models: for messages and for editors."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from tpcli.recipe.positions import KeyPath
from tpcli.recipe.schema import Recipe

Node = dict[str, Any]


def json_schema() -> Node:
    """JSON schema (draft 2020-12) of a recipe file, for editors.

    No key is required: any of them may come from the file that ``extends`` names.
    """
    schema = copy.deepcopy(spec())
    for table in (schema, *schema["$defs"].values()):
        table.pop("required", None)
    extends = {"type": "string", "description": "A recipe to start from, relative to this file."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@cache
def spec() -> Node:
    """The models' JSON schema with false for null, which TOML lacks; do not change it."""
    schema = Recipe.model_json_schema()
    for table in (schema, *schema["$defs"].values()):
        for key, node in table["properties"].items():
            table["properties"][key] = _tidy(node)
    return schema


def _tidy(node: Node) -> Node:
    """False stands for null, but where it is a value of its own."""
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    if "$ref" in node or isinstance(node.get("default"), dict) or node.get("default", 0) is None:
        rest.pop("default", None)  # the keys of a table say theirs
    if "anyOf" not in node:
        return rest
    forms = [form for form in node["anyOf"] if form != {"type": "null"}]
    if len(forms) < len(node["anyOf"]) and {"type": "boolean"} not in forms:
        forms.append({"const": False})
    return {**forms[0], **rest} if len(forms) == 1 else {"anyOf": forms, **rest}


def options(node: Node) -> list[Node]:
    """The forms a value may take, references followed."""
    if "$ref" in node:
        return options(spec()["$defs"][node["$ref"].rpartition("/")[2]])
    inner = node.get("anyOf") or node.get("oneOf")
    return [form for option in inner for form in options(option)] if inner else [node]


def _item(array: Node, index: int = 0) -> Node | None:
    """What an element takes; None where there can be no such element."""
    if "prefixItems" not in array:
        item: Node = array["items"]
        return item
    items: list[Node] = array["prefixItems"]
    return items[index] if index < len(items) else None


def table_of(node: Node) -> Node | None:
    """The form with named keys, if there is one."""
    return next((form for form in options(node) if "properties" in form), None)


def find(path: KeyPath) -> Node | None:
    """What the key at ``path`` takes; None where the models do not say."""
    node: Node | None = spec()
    for part in path:
        if node is None:
            return None
        if isinstance(part, int):
            arrays = (form for form in options(node) if form.get("type") == "array")
            node = next((_item(form, part) for form in arrays), None)
        else:
            node = (table_of(node) or {}).get("properties", {}).get(part)
    return node


def tables(path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every table that has a name of its own, with its keys."""
    table = table_of(find(path) or {})
    if table:
        yield path, table
        for key in table["properties"]:
            yield from tables((*path, key))


def homes(key: str, *, near: KeyPath, is_table: bool) -> list[KeyPath]:
    """Tables that have a key of this name and this kind: closest to ``near``, then the highest."""
    found = [
        path
        for path, table in tables()
        if key in table["properties"]
        and is_table in {"properties" in form for form in options(table["properties"][key])}
    ]
    best = min(((-_shared(path, near), len(path)) for path in found), default=None)
    return [path for path in found if (-_shared(path, near), len(path)) == best]


def _shared(a: KeyPath, b: KeyPath) -> int:
    """How many keys two paths have in common from the top."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def choices(node: Node) -> list[str]:
    """The words a key takes, where it takes nothing but words."""
    words: list[str] = []
    for form in options(node):
        words += form.get("enum") or ([form["const"]] if isinstance(form.get("const"), str) else [])
    return words


def describe(node: Node) -> str:
    """What a key takes, in words: "a number from 0 to 1"."""
    forms = [_form(form) for form in options(node)]
    return " or ".join(form.replace(f" {forms[0]}", " them") for form in forms)


def _form(form: Node) -> str:
    if "enum" in form or "const" in form:
        words = [json.dumps(word) for word in form.get("enum", [form.get("const")])]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    match form.get("type"):
        case "number":
            return f"a number{_range(form)}"
        case "integer":
            return f"a whole number{_range(form)}"
        case "boolean":
            return "true or false"
        case "string":
            text = "text of at least one character" if form.get("minLength") else "text"
            return f"text that matches {form['pattern']}" if "pattern" in form else text
        case "array" if "prefixItems" in form:
            items = [describe(item) for item in form["prefixItems"]]
            each = f", each {items[0]}" if len(set(items)) == 1 else f": {' and '.join(items)}"
            return f"an array of {len(items)}{each}"
        case "array":
            return f"an array of {'tables' if table_of(form['items']) else describe(form['items'])}"
    return "a table"


def _range(form: Node) -> str:
    if "minimum" in form and "maximum" in form:
        return f" from {form['minimum']:g} to {form['maximum']:g}"
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {form[key]:g}" for key, word in words.items() if key in form]
    return f" {' and '.join(bounds)}" if bounds else ""
