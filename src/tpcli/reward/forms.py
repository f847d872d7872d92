"""Canonical forms that cost next to nothing: two answers are equal when their forms are.

Each pattern is linear in the length of what it reads, which is bounded as well, so no response can
make one of these slow.
"""

import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 4_096
MAX_NESTING = 64
MAX_DIGITS = 256
MAX_EXPONENT = 300

Form = Callable[[str], str | None]
"""The canonical form of an answer; None when it is nothing of this kind."""

_INTEGER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<digits>[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.0*)?"
)
_DECIMAL = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SCIENTIFIC = re.compile(
    rf"(?P<head>{_DECIMAL})(?:\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*|[eE])"
    r"(?P<brace>\{)?\s*(?P<exponent>[+-]?[0-9]{1,4})\s*(?(brace)\})"
)
_PLAIN = re.compile(rf"[+-]?\s*{_DECIMAL}")
_SLASHED = re.compile(rf"(?P<above>[+-]?\s*{_DECIMAL})\s*/\s*(?P<below>[+-]?\s*{_DECIMAL})")
_FRACTION = re.compile(
    rf"\\[dt]?frac\s*(?:\{{\s*(?P<above>[+-]?\s*{_DECIMAL})\s*\}}"
    rf"\s*\{{\s*(?P<below>[+-]?\s*{_DECIMAL})\s*\}}|(?P<one>[0-9])\s*(?P<two>[0-9]))"
)
_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_CURRENCY = ("\\$", "$", "€", "£", "¥")

_WRAPPED = re.compile(
    r"\$(?P<dollars>[^$]*)\$|\*\*(?P<stars>[^*]*)\*\*"
    r"|\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it|sf))\s*\{(?P<braces>[^{}]*)\}",
    re.DOTALL,
)
_LETTER = re.compile(
    r"(?P<alone>[A-Za-z])[.):]?|\((?P<round>[A-Za-z])\)[.:]?"
    r"|(?:(?P<listed>[A-Z])[.):]|\((?P<named>[A-Z])\)[.:]?)\s+\S.*",
    re.DOTALL,
)
_WRAPPINGS = 8
_SPACING = re.compile(r"\\[,!;:]")
_GROUPING = re.compile(r"(?<=[0-9])(?:,?\\[,!;:]|\{,\}\\!)(?=[0-9]{3}(?![0-9]))")
_NAME = re.compile(r"[A-Za-z]\s*=")
_DEGREES = re.compile(r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)\Z")
_UNIT = re.compile(
    r"(?<=.)\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it|sf))\s*\{[^{}0-9]*\}\Z", re.DOTALL
)
_BRACKETS = (("\\left(", "\\right)"), ("\\(", "\\)"), ("(", ")"))


def within_caps(text: str) -> bool:
    """Whether ``text`` is short, flat and without endless numbers: what a parser may be given."""
    if len(text) > MAX_CHARACTERS or _DIGITS.search(text):
        return False
    depth = 0
    for character in text:
        if character in "{([":
            depth += 1
            if depth > MAX_NESTING:
                return False
        elif character in "})]":
            depth -= 1
    return True


def canonical_int(answer: str) -> str | None:
    """As ``plain_int``, without what commonly wraps a number.

    ``\\text{7}``, ``(7)``, ``7^\\circ``, ``x = 7``, ``7\\text{ cm}`` and ``7.`` are "7", and
    ``1\\,234`` is "1234"; ``7 apples`` is no integer.
    """
    return plain_int(_bare(answer)) if len(answer) <= MAX_CHARACTERS else None


def plain_int(answer: str) -> str | None:
    """An integer without plus sign, leading zeros, thousands commas or fraction zeros.

    ``+7``, ``007``, ``$7$`` and ``7.0`` are "7"; ``1,234`` and ``1{,}234`` are "1234"; ``1,2``,
    ``7.5`` and ``7 apples`` are no integers.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    plain = _plain(answer.replace("\\$", "$")).strip("$").strip()
    match = _INTEGER.fullmatch(plain)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").lstrip("0") or "0"
    if len(digits) > MAX_DIGITS:
        return None
    return f"-{digits}" if match["sign"] == "-" and digits != "0" else digits


def canonical_number(answer: str) -> str | None:
    """A rational number, exact, as the text of a reduced fraction: "3", "-1/2".

    Integers, decimals, thousands commas, ``1.2e-5`` and ``1.2 \\times 10^{-5}`` (exponents up to
    300 either way), ``a/b`` and ``\\frac{a}{b}``, in what may wrap an integer too. A
    currency sign before and a percent sign after the number are dropped, so ``50\\%`` is "50".
    """
    if not within_caps(answer):
        return None
    # Single spaces: no two parts of a pattern can then share out a long run of them.
    plain = " ".join(_plain(_bare(answer)).split())
    if len(plain) > 2 and plain[0] == plain[-1] == "$":
        plain = plain[1:-1].strip()
    sign, plain = _sign(plain)
    for currency in _CURRENCY:
        if plain.startswith(currency):
            plain = plain.removeprefix(currency).strip()
            break
    plain = plain.removesuffix("%").removesuffix("\\").strip() if plain[-1:] == "%" else plain
    inner, plain = _sign(plain) if sign == 1 else (1, plain)
    value = _value(plain)
    return None if value is None else str(sign * inner * value)


def _value(plain: str) -> Fraction | None:
    """The number that stands in ``plain``, which has no sign of its own."""
    if plain[:1] in ("+", "-"):
        return None
    if _PLAIN.fullmatch(plain):
        return _decimal(plain)
    if match := _SCIENTIFIC.fullmatch(plain):
        exponent = int(match["exponent"])
        if abs(exponent) > MAX_EXPONENT:
            return None
        return _decimal(match["head"]) * Fraction(10) ** exponent
    match = _SLASHED.fullmatch(plain) or _FRACTION.fullmatch(plain)
    if match is None:
        return None
    parts = match.groupdict()
    above = _decimal(parts["above"] or parts["one"])
    below = _decimal(parts["below"] or parts["two"])
    return above / below if below else None


def canonical_choice(answer: str) -> str | None:
    """The letter of an option, in upper case.

    ``B``, ``b``, ``(B)``, ``B.``, ``B)``, ``**B**``, ``$B$``, ``\\text{B}``, ``\\textbf{(B)}``, and
    ``B) text`` or ``(B) text`` are "B". ``A dog`` is no option: the letter has to stand alone or
    be marked as one.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    plain = answer.strip()
    for _ in range(_WRAPPINGS):
        match = _WRAPPED.fullmatch(plain)
        if match is None:
            break
        plain = next(part for part in match.groups() if part is not None).strip()
    letter = _LETTER.fullmatch(plain)
    if letter is None:
        return None
    return next(part for part in letter.groups() if part is not None).upper()


def canonical_exact(answer: str) -> str | None:
    """The text with each run of white space folded to one space; case is kept."""
    if len(answer) > MAX_CHARACTERS:
        return None
    return " ".join(answer.split()) or None


def _bare(answer: str) -> str:
    """A number without what wraps it; anything else may come back changed, but as no number.

    A name, degrees and a unit are dropped once each. Brackets around a comma stay: ``(1,234)`` is
    a pair.
    """
    plain = _SPACING.sub(" ", _GROUPING.sub(",", answer)).strip()
    droppable = [_NAME, _DEGREES, _UNIT]
    for _ in range(_WRAPPINGS):
        before = plain
        if plain.endswith(".") and not plain.endswith(".."):
            plain = plain[:-1].rstrip()
        if match := _WRAPPED.fullmatch(plain):
            plain = next(part for part in match.groups() if part is not None).strip()
        for opens, closes in _BRACKETS:
            if plain.startswith(opens) and plain.endswith(closes) and "," not in plain:
                plain = plain[len(opens) : -len(closes)].strip()
        for pattern in [*droppable]:
            match = pattern.match(plain) if pattern is _NAME else pattern.search(plain)
            if match:
                plain = (plain[: match.start()] + plain[match.end() :]).strip()
                droppable.remove(pattern)
        if plain == before:
            break
    return plain


def _plain(answer: str) -> str:
    return answer.replace("{,}", ",").replace("\u2212", "-").strip()


def _sign(plain: str) -> tuple[int, str]:
    if plain[:1] in ("+", "-"):
        return (-1 if plain[0] == "-" else 1), plain[1:].strip()
    return 1, plain


def _decimal(text: str) -> Fraction:
    sign, digits = _sign(text.replace(",", ""))
    return sign * Fraction(digits.removesuffix("."))
