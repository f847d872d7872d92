"""A user's own verifier: ``function(response, gold)``, which gives a reward from 0 to 1.

Found by "MODULE:FUNCTION" or "plugin:NAME", and called only in processes that can be killed: to
import it and to call it may take any time and do anything.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from numbers import Real
from typing import Any

from tpcli.errors import UsageError

GROUP = "tpcli.verifiers"
"""The entry points that "plugin:NAME" looks among."""
_PLUGIN = "plugin"

Verifier = Callable[[str, str], Any]


def load(target: str, folders: Sequence[str]) -> None:
    """Import the verifier in a new process; what is wrong with it is told by ``complaint``."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    with suppress(Exception):
        _found(target)


def complaint(target: str) -> tuple[str, str] | None:
    """What is wrong with ``target`` and what to do; None where it can be called."""
    try:
        _found(target)
    except UsageError as error:
        return error.message, error.hint
    except Exception as error:
        told = " ".join(str(error).split())
        return f"to import it fails: {type(error).__name__}: {told[:200]}", "mend its module"
    return None


def score(target: str, response: str, gold: str) -> float:
    """The reward of one whole response.

    Raises:
        ValueError: what the function returned is no number from 0 to 1.
    """
    reward = _found(target)(response, gold)
    if not isinstance(reward, Real) or not 0 <= float(reward) <= 1:
        raise ValueError("not a number from 0 to 1")
    return float(reward)


@cache
def _found(target: str) -> Verifier:
    module, _, name = target.partition(":")
    return _plugin(name) if module == _PLUGIN else _function(module, name)


def _plugin(name: str) -> Verifier:
    known = entry_points(group=GROUP)
    if name not in known.names:
        listed = ", ".join(sorted(known.names)) or "none"
        raise UsageError(
            f'no installed package has a verifier called "{name}"',
            hint=f"installed: {listed}; a package names it as an entry point of group {GROUP}",
        )
    return _callable(known[name].load(), f'plugin "{name}"')


def _function(module: str, name: str) -> Verifier:
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another that is not
        raise UsageError(
            f'there is no module "{module}"',
            hint="it is looked for in the current folder, in the recipe's, and among what is "
            "installed",
        ) from error
    found = held
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(
                f'module "{module}" has no function "{name}"',
                hint="write MODULE:FUNCTION as Python would import them",
            )
        found = getattr(found, part)
    return _callable(found, f'"{name}" of module "{module}"')


def _callable(found: Any, what: str) -> Verifier:
    if not callable(found):
        raise UsageError(
            f"{what} is no function", hint="a verifier is function(response, gold) -> reward"
        )
    return found  # type: ignore[no-any-return]
