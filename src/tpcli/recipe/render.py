"""A recipe as text: TOML that loads again, flat keys, what differs, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w
from pydantic import BaseModel

from tpcli.recipe.positions import KeyPath, dotted
from tpcli.recipe.schema import Recipe


def fingerprint(recipe: Recipe) -> str:
    """SHA-256, in hexadecimal, of the whole recipe, defaults included, as canonical JSON.

    The order of keys, comments, ``extends`` and 1 for 1.0 make no difference.
    """
    text = json.dumps(
        recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def plain(model: BaseModel) -> dict[str, Any]:
    """The model as TOML has it: no null; false where a setting that has a default is off."""
    table: dict[str, Any] = {}
    for key, field in type(model).model_fields.items():
        value = _plain(getattr(model, key))
        if value is not None:
            table[key] = value
        elif field.get_default(call_default_factory=True) is not None:
            table[key] = False
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def to_toml(recipe: Recipe) -> str:
    """The whole recipe; loading it gives an equal one."""
    return tomli_w.dumps(plain(recipe))


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted key, in the recipe's order."""
    return {dotted(path): value for path, value in leaves(plain(recipe))}


def leaves(table: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a table, and where it is."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def diff(left: Recipe, right: Recipe) -> list[tuple[str, Any, Any]]:
    """The keys whose values differ, with both; None where a side has no such key."""
    a, b = flat(left), flat(right)
    keys = [*a, *(key for key in b if key not in a)]
    return [(key, a.get(key), b.get(key)) for key in keys if _differ(a.get(key), b.get(key))]


def _differ(a: Any, b: Any) -> bool:
    return a != b or type(a) is not type(b)  # False is not 0
