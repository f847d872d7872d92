"""What is wrong with a recipe, in our own words: which file, line and key, and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from tpcli.errors import Fault
from tpcli.recipe import spec
from tpcli.recipe.positions import KeyPath, dotted

Place = tuple[str, int | None]
"""A file (or "--set", "--seed") and a line of it."""

_TAGS = ("number", "table", "word", "list")
_NEAR, _FAR = 0.8, 0.6  # how alike two words must be to be offered for each other
_SHOWN = 60
_WORD = re.compile(r"[a-z_](?:[a-z0-9_.]*[a-z0-9_])?")
_SUBJECT = re.compile(rf"({_WORD.pattern})(: | \(([^)]*)\) | )")  # "key: ", "key (value) ", "key "


def faults_in(
    error: ValidationError, data: Mapping[str, Any], places: Mapping[KeyPath, Place], file: str
) -> list[Fault]:
    """Every fault of ``data``, in the order of the file.

    Args:
        error: pydantic's verdict.
        data: the merged recipe that it judged.
        places: where each key of ``data`` was written.
        file: to be blamed for what is written nowhere.
    """
    report = _Report(data, places, file)
    found = [report.fault(one) for one in error.errors(include_url=False)]
    return sorted(found, key=lambda one: (one.source != file, one.source, one.line or 0))


class _Report:
    def __init__(self, data: Mapping[str, Any], places: Mapping[KeyPath, Place], file: str) -> None:
        self.data, self.places, self.file = data, places, file

    def fault(self, error: Mapping[str, Any]) -> Fault:
        """The fault that one of pydantic's errors stands for."""
        path, value = self._path(error["loc"]), error["input"]
        match error["type"]:
            case "value_error":
                return self._rule(path, str(error["ctx"]["error"]))
            case "extra_forbidden":
                return self._unknown(path, value)
            case "missing" if isinstance(path[-1], str):
                return self._missing(path)
            case "missing":  # an array of fixed length is too short: blame the array
                path = path[:-1]
                value = _at(self.data, path)
        if error["type"] == "finite_number":
            return self._at(path, f"{shown(value)} is not a finite number")
        node = spec.find(path)
        assert node is not None  # the models judge no key that they do not have
        table = f"write the table [{dotted(path)}]" if value is True and spec.table_of(node) else ""
        hint = table or _help(value, node)
        return self._at(path, f"{shown(value)} is not {spec.describe(node)}", hint)

    def _at(self, path: KeyPath, message: str, hint: str = "") -> Fault:
        """A fault at ``path``, blamed on the innermost part of it that someone wrote."""
        source, line = next(
            (self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places),
            (self.file, None),
        )
        return Fault(source, line, dotted(path), message, hint)

    def _path(self, loc: tuple[str | int, ...]) -> KeyPath:
        """Pydantic's location without the tags of its unions."""
        path: KeyPath = ()
        for part in loc:
            written = _at(self.data, path)
            if part in _TAGS and not (isinstance(written, dict) and part in written):
                continue
            path = (*path, part)
        return path

    def _missing(self, path: KeyPath) -> Fault:
        node = spec.find(path)
        assert node is not None  # only what the models require can be missing
        table = spec.table_of(node)
        if table is None:
            return self._at(path, f"is required: {spec.describe(node)}")
        return self._at(
            path,
            "the table is missing",
            f"write [{dotted(path)}] with {' and '.join(table['required'])}",
        )

    def _unknown(self, path: KeyPath, value: object) -> Fault:
        table, key = path[:-1], str(path[-1])
        is_table = isinstance(value, dict)
        known = list((spec.table_of(spec.find(table) or {}) or {"properties": {}})["properties"])
        homes = spec.homes(key, near=table, is_table=is_table)
        if near := get_close_matches(key, known, n=1, cutoff=_NEAR):
            hint = f"did you mean {near[0]}?"
        elif homes:
            hint = f"{key} belongs to {' or '.join(_header(home) for home in homes[:3])}"
        elif near := get_close_matches(key, known, n=1, cutoff=_FAR):
            hint = f"did you mean {near[0]}?"
        else:
            hint = f"{_header(table)} takes {', '.join(known)}"
        return self._at(path, f"unknown {'table' if is_table else 'key'}", hint)

    def _rule(self, path: KeyPath, message: str) -> Fault:
        """A combination that the models refuse; the message begins with the key, or names it."""
        scope, words = path, _WORD.findall(message)
        while (match := _SUBJECT.match(message)) and spec.find((*path, *match[1].split("."))):
            path = (*path, *match[1].split("."))
            rest = message[match.end() :]
            if rest.startswith("= "):
                break
            message = f"{match[3]} {rest}" if match[3] else rest
            if match[2] == " ":
                break
        message, _, hint = message.partition("; ")
        fault = self._at(path, message, hint)
        if isinstance(_at(self.data, path), dict) or path not in self.places:
            # A table, or a key at its default: point at the first key of those named, instead.
            for word in words:
                for table in (scope, path[:-1]):
                    if place := self.places.get((*table, *word.split("."))):
                        return replace(fault, source=place[0], line=place[1])
        return fault


def shown(value: object) -> str:
    """A value as TOML would have it, cut to a line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        text = f"[{', '.join(shown(item) for item in value)}]"
    elif isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _help(value: object, node: spec.Node) -> str:
    """The mend that fits a wrong value best."""
    if not isinstance(value, str):
        return ""
    near = get_close_matches(value.lower(), spec.choices(node), n=1, cutoff=_FAR)
    if near:
        return f'did you mean "{near[0]}"?'
    kinds = {form.get("type") for form in spec.options(node)}
    if kinds & {"number", "integer", "boolean"} and re.fullmatch(r"[-+.\de]+|true|false", value):
        return "write it without quotes"
    return ""


def _header(path: KeyPath) -> str:
    return f"[{dotted(path)}]" if path else "the top of the file"


def _at(data: Any, path: KeyPath) -> Any:
    """What is written at ``path``; None where nothing is."""
    for part in path:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
