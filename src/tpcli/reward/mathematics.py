"""Whether two LaTeX answers are the same mathematics: math-verify, with a few things mended.

Called only in processes that can be killed: what parses LaTeX can hang or eat all memory.
"""

import hashlib
import logging
import re
from functools import cache
from typing import Any

CLOSE = 5e-6
"""How far two numbers that math-verify calls equal may be apart, as a share of the larger one."""
_LONGEST_FORM = 500
_LETTER_E = re.compile(
    r"(?<![\w.\\])(?P<head>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE](?P<exponent>[+-]?[0-9]{1,4})(?![\w.])"
)
_GROUPED = re.compile(r"[0-9]{1,3}(?:(?:\\,| )[0-9]{3})+(?:\.[0-9]+)?")
_BASED = re.compile(r"(?P<digits>[0-9A-Za-z]+)_(?:\{(?P<braced>[0-9]{1,2})\}|(?P<base>[0-9]))")


def load() -> None:
    """Import what takes long, and parse once: the first time builds tables."""
    logging.disable(logging.CRITICAL)
    judge("\\frac{2}{4}", "\\frac{1}{2}")


def judge(answer: str, gold: str) -> tuple[bool, str | None]:
    """Whether ``answer`` equals ``gold``, and the form of what it parsed to (None: it did not)."""
    from math_verify import verify
    from sympy.logic.boolalg import Boolean

    parsed, right = _parsed(answer), _parsed(gold)
    if not parsed or not right:
        return False, None
    # Of 1=1 and 2=2 all that is compared is that both are true.
    if all(isinstance(one, Boolean) and not one.free_symbols for one in (parsed[0], right[0])):
        return False, _form(parsed[0])
    bases = _in_base(answer), _in_base(gold)
    if None not in bases:
        return bases[0] == bases[1], _form(parsed[0])
    same = verify(
        right,
        parsed,
        allow_set_relation_comp=True,  # x <= 2 and (-oo, 2] are the same, whichever is the gold
        timeout_seconds=None,
    )
    if same and _near(parsed[0], right[0]):
        return True, None
    return False, _form(parsed[0])


def parses(text: str) -> bool:
    """Whether ``text`` is LaTeX that an answer can be compared with."""
    return bool(_parsed(text))


def tidied(text: str) -> str:
    """What the parser is given, as it would misread some of what people write.

    A full stop at the end is dropped; ``4e33`` is ``4 \\times 10^{33}`` (not 4 times Euler's number
    times 33); ``1\\,000`` and ``1 000`` are 1000; ``\\varnothing`` is ``\\emptyset``.
    """
    plain = text.strip().replace("\\varnothing", "\\emptyset")
    if plain.endswith(".") and not plain.endswith(".."):
        plain = plain[:-1].rstrip()
    if _GROUPED.fullmatch(plain):
        plain = plain.replace("\\,", "").replace(" ", "")
    return _LETTER_E.sub(r"\g<head> \\times 10^{\g<exponent>}", plain)


def _parsed(text: str) -> list[Any]:
    """What math-verify makes of it: one expression, or nothing.

    Only LaTeX is tried. Its other reader evaluates Python, and would run what a model wrote.
    """
    from math_verify import parse

    found: list[Any] = parse(
        f"\\boxed{{{tidied(text)}}}",
        extraction_config=_configs(),
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # the whole answer, never a piece that happens to parse
        parsing_timeout=None,
    )
    return found


@cache
def _configs() -> list[Any]:
    from math_verify import LatexExtractionConfig

    return [LatexExtractionConfig(boxed_match_priority=0)]


def _in_base(text: str) -> int | None:
    """The value of ``101_2``; None for anything else. The parser drops the base."""
    match = _BASED.fullmatch(tidied(text).replace(" ", ""))
    if match is None:
        return None
    base = int(match["braced"] or match["base"])
    try:
        return int(match["digits"], base) if base >= 2 else None
    except ValueError:
        return None


def _near(a: Any, b: Any) -> bool:
    """False for two numbers that only look alike after six decimals: 4e-33 and 5e-33.

    Percentages are left to math-verify, to which 50% is both 0.5 and 50.
    """
    from sympy import Expr, UnevaluatedExpr

    numbers = [one for one in (a, b) if isinstance(one, Expr) and one.is_number]
    if len(numbers) < 2 or a == b or any(one.has(UnevaluatedExpr) for one in numbers):
        return True
    x, y = (one.evalf(30) for one in numbers)
    largest = max(abs(x), abs(y))
    return bool(abs(x - y) <= CLOSE * largest)


def _form(parsed: Any) -> str:
    """The expression as text; the digest of a long one."""
    text = str(parsed)
    return text if len(text) <= _LONGEST_FORM else hashlib.sha256(text.encode()).hexdigest()
