"""From a file, its parents and what was typed to a Recipe, or to everything that is wrong with it.

Precedence: --seed > --set > the file > the files it extends > defaults.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tpcli.errors import Fault, RecipeError
from tpcli.recipe.faults import Place, faults_in, shown
from tpcli.recipe.positions import KeyPath, dotted, scan
from tpcli.recipe.render import leaves, plain
from tpcli.recipe.schema import Recipe

SET, SEED = "--set", "--seed"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe, and where it came from.

    Attributes:
        recipe: resolved: parents, overrides and defaults are in.
        path: of the file.
        text: the file, byte for byte.
        origin: for every key of the recipe "FILE:LINE", "--set", "--seed" or "default".
        warnings: settings that are allowed and will have no effect.
    """

    recipe: Recipe
    path: Path
    text: bytes
    origin: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One source of settings; ``lines`` is empty for what was typed."""

    source: str
    data: dict[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    text: bytes = b""

    def place(self, path: KeyPath) -> Place:
        return self.source, self.lines.get(path)


def load_recipe(
    path: str | Path, *, overrides: Sequence[str] = (), seed: int | None = None
) -> Loaded:
    """Read a recipe, the files it extends, and what was typed over it.

    Args:
        path: the TOML file.
        overrides: "dotted.key=VALUE", VALUE in TOML; a later one wins.
        seed: [train].seed, over everything else.

    Raises:
        RecipeError: with every fault that could be found.
    """
    path = Path(path)
    layers = _files(path)
    text = layers[-1].text
    faults: list[Fault] = []
    for override in overrides:
        try:
            layers.append(_typed(override))
        except RecipeError as error:
            faults += error.faults
    if seed is not None:
        layers.append(_Layer(SEED, {"train": {"seed": seed}}))
    data: dict[str, Any] = {}
    places: dict[KeyPath, Place] = {}
    for layer in layers:
        _lay(layer, layer.data, (), data, places)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError([*faults_in(error, data, places, str(path)), *faults]) from None
    if faults:
        raise RecipeError(faults)
    origin = {dotted(key): _origin(places.get(key)) for key, _ in leaves(plain(recipe))}
    return Loaded(recipe, path, text, origin, tuple(recipe.warnings()))


def _origin(place: Place | None) -> str:
    if place is None:
        return "default"
    source, line = place
    return source if line is None else f"{source}:{line}"


def _lay(
    layer: _Layer,
    over: Mapping[str, Any],
    path: KeyPath,
    into: dict[str, Any],
    places: dict[KeyPath, Place],
) -> None:
    """Put a layer on top: tables merge key by key, anything else replaces what was there."""
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            places[here] = layer.place(here)
            _lay(layer, value, here, into[key], places)
        else:
            for known in [p for p in places if p[: len(here)] == here]:
                del places[known]
            into[key] = value
            _mark(layer, value, here, places)


def _mark(layer: _Layer, value: Any, here: KeyPath, places: dict[KeyPath, Place]) -> None:
    places[here] = layer.place(here)
    if isinstance(value, dict):
        for key, inner in value.items():
            _mark(layer, inner, (*here, key), places)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _mark(layer, inner, (*here, index), places)


# Files


def _files(path: Path) -> list[_Layer]:
    """The file and the files it extends, furthest parent first."""
    layers: list[_Layer] = []
    chain: list[Path] = []
    blame: Place | None = None
    while True:
        layer = _read(path, blame)
        _refuse_cycle(chain, path, blame)
        layers.insert(0, layer)
        chain.append(path)
        parent = layer.data.pop("extends", None)
        if parent is None:
            return layers
        blame = layer.place(("extends",))
        if not isinstance(parent, str):
            raise _fault(blame, f"{shown(parent)} is not the name of a file", key="extends")
        path = Path(os.path.normpath(path.parent / parent))


def _refuse_cycle(chain: Sequence[Path], path: Path, blame: Place | None) -> None:
    if blame and os.path.realpath(path) in map(os.path.realpath, chain):
        raise _fault(
            blame,
            f"files extend each other in a circle: {' -> '.join(map(str, [*chain, path]))}",
            key="extends",
            hint="let one of them stand alone",
        )


def _read(path: Path, blame: Place | None) -> _Layer:
    """One file; ``blame`` is where its name was written, None where it was typed."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that holds a zero byte
        raise _unreadable(path, error, blame) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}"
        raise _fault((str(path), line), message, hint="save the file as UTF-8") from None
    try:
        data, lines = tomllib.loads(text), scan(text)
    except RecursionError:
        raise _fault((str(path), None), "arrays or tables stand too deep in each other") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise _broken(path, text, str(error)) from None
    _anchor(data, path.parent)
    return _Layer(str(path), data, lines, raw)


def _unreadable(path: Path, error: Exception, blame: Place | None) -> RecipeError:
    hint = "name a .toml file"
    if os.path.isdir(path):  # swallows what Path.is_dir raises on an impossible name
        message = "is a folder, not a recipe"
    elif isinstance(error, FileNotFoundError):
        message = "there is no such file"
        siblings = [sibling.stem for sibling in sorted(path.parent.glob("*.toml"))]
        near = get_close_matches(path.stem, siblings, n=1)
        hint = f"did you mean {path.with_name(near[0] + '.toml')}?" if near else "check the path"
    else:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        hint = "check its permissions"
    if blame:
        return _fault(blame, f"{path}: {message}", key="extends", hint=hint)
    return _fault((str(path), None), message, hint=hint)


def _broken(path: Path, text: str, message: str) -> RecipeError:
    """tomllib's message, with the position taken out of it."""
    line: int | None = None
    if found := re.search(r" \(at line (\d+), column (\d+)\)", message):
        line = int(found[1])
        message = f"{message[: found.start()]}, at column {found[2]}"
    elif message.endswith(" (at end of document)"):
        line = len(text.rstrip().splitlines()) or 1
        message = message.replace(" (at", ", at").rstrip(")")
    hint = ""
    if message.startswith("Invalid value"):
        hint = 'text stands in quotes ("cosine"), true and false do not'
    elif twice := re.match(r"Cannot declare \('(.*?)',?\) twice", message):
        name = twice[1].replace("', '", ".")
        message, hint = f"the table [{name}] is here for the second time", "join the two"
    elif message.startswith("Cannot overwrite a value"):
        message, hint = "the key is here for the second time", "leave one of them out"
    return _fault((str(path), line), f"not TOML: {message}", hint=hint)


def _fault(place: Place, message: str, *, key: str = "", hint: str = "") -> RecipeError:
    return RecipeError.one(place[0], message, line=place[1], key=key, hint=hint)


def _anchor(data: dict[str, Any], folder: Path) -> None:
    """Relative files and folders that a recipe names start from the recipe's own folder."""
    for section, is_local in (("model", _is_folder), ("data", _is_file)):
        table = data.get(section)
        source = table.get("source") if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(source, str) and is_local(source):
            table["source"] = os.path.abspath(folder / source)


def _is_folder(source: str) -> bool:
    return source in (".", "..") or source.startswith(("./", "../"))


def _is_file(source: str) -> bool:
    return source.endswith((".jsonl", ".parquet")) and not source.startswith(("hf:", "rg:", "~"))


# What was typed


def _typed(override: str) -> _Layer:
    """The layer of one ``--set``."""
    key, equals, value = override.partition("=")
    if not equals:
        raise _fault((SET, None), "has no value", key=key, hint=f"write --set {key}=VALUE")
    path = _key_path(key)
    data: dict[str, Any] = {path[-1]: _value(key, value)}
    for part in reversed(path[:-1]):
        data = {part: data}
    _anchor(data, Path())
    return _Layer(SET, data)


def _key_path(key: str) -> list[str]:
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except ValueError:
        table = {}
    path: list[str] = []
    while isinstance(table, dict) and len(table) == 1:
        name, table = next(iter(table.items()))
        path.append(name)
    if table != 0 or not path:
        hint = "write --set table.key=VALUE, as in --set train.steps=10"
        raise _fault((SET, None), f'"{key}" is not a key', hint=hint)
    return path


def _value(key: str, value: str) -> Any:
    try:
        table = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        table = {}
    if table.keys() == {"value"}:
        return table["value"]
    if not value.strip():
        raise _fault((SET, None), "has no value", key=key, hint=f"write --set {key}=VALUE")
    raise _fault(
        (SET, None),
        f"{shown(value)[1:-1]} is not a TOML value",
        key=key,
        hint=f"write --set {shlex.quote(f'{key}={_as_toml(value.strip())}')}",
    )


def _as_toml(word: str) -> str:
    """What was probably meant by a word that is no TOML value: True, .5 or text without quotes."""
    if word.lower() in ("true", "false"):
        return word.lower()
    try:
        return repr(float(word))
    except ValueError:
        return json.dumps(word, ensure_ascii=False)
