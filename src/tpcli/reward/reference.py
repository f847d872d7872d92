"""The string rule of the paper's own code, to compare with: same verdicts, told anew.

It reads the whole response, thinking included, also one that was cut off; it takes what follows
the last ``\\boxed`` (no earlier box counts when that one is broken), rewrites the LaTeX a little
and compares text. To it ``1,234`` is not ``1234``, nor ``0.25`` the same as ``\\frac{1}{4}``.

Source: the reward function of data set "OpenReasoning" in
https://github.com/Jinghaoleven/RLVR-Schedule, which descends from the MATH data set's.
"""

import itertools
import re

from tpcli.reward.forms import MAX_CHARACTERS

_OPEN = "\\boxed{"
_SPACED = "\\boxed "
_BEFORE_UNITS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
_AFTER_UNITS = (("\\\\%", ""), ("\\%", ""), (" .", " 0."), ("{.", "{0."))
_RATIO = re.compile(r"(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))")


def boxed_reference(response: str) -> str | None:
    """What the rule takes for the answer; None where it finds nothing to score.

    With a ``\\boxed`` and a space anywhere, the answer is all that follows the last of them up to a
    dollar sign. Otherwise the last ``\\boxed`` must have its brace at once, and braces are counted
    without regard to backslashes.
    """
    if _SPACED in response:
        return response.rpartition(_SPACED)[2].partition("$")[0]
    start = response.rfind("\\boxed")
    if not response.startswith(_OPEN, max(start, 0)):
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", response[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return response[start + len(_OPEN) : start + brace.start()]
    return None


def canonical_reference(answer: str) -> str | None:
    """The text that the rule compares.

    An answer that its rewriting cannot get through is compared as it stands.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    rewritten = _rewritten(answer)
    # The mark keeps what stands as it is apart from what was rewritten: they are never equal.
    return f"as it stands: {answer}" if rewritten is None else rewritten


def _rewritten(answer: str) -> str | None:
    """None where the rule gives up."""
    text = _replaced(answer, _BEFORE_UNITS)
    if text.count("\\text{") > 1:
        return None
    text = _replaced(text.partition("\\text{")[0], _AFTER_UNITS)
    if not text:
        return ""
    text = f"0{text}" if text.startswith(".") else text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    rooted = _braced_roots(text)
    if rooted is None:
        return None
    divided = _braced_fractions(rooted.replace(" ", ""))
    if divided is None:
        return None
    return _ratio("\\frac{1}{2}" if divided == "0.5" else divided)


def _replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def _braced_roots(text: str) -> str | None:
    """``\\sqrt3`` as ``\\sqrt{3}``; None where a root has nothing under it."""
    first, *others = text.split("\\sqrt")
    if not all(others):
        return None
    braced = (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}" for part in others)
    return "\\sqrt".join([first, *braced])


def _braced_fractions(text: str) -> str | None:
    """``\\frac12`` and ``\\frac1{2}`` with both braces.

    A fraction of one character leaves all of ``text`` as it is, unless an empty one comes first:
    then None.
    """
    first, *others = text.split("\\frac")
    whole = list(itertools.takewhile(lambda part: part[:1] == "{" or len(part) >= 2, others))
    if len(whole) < len(others):
        return text if others[len(whole)] else None
    return "\\frac".join([first, *map(_braced_fraction, others)])


def _braced_fraction(part: str) -> str:
    if part[0] == "{":
        return part
    above, below, rest = part[0], part[1], part[2:]
    return f"{{{above}}}{below}{rest}" if below == "{" else f"{{{above}}}{{{below}}}{rest}"


def _ratio(text: str) -> str:
    """``a/b`` of two plain integers as a fraction."""
    match = _RATIO.fullmatch(text)
    if match is None or "-0" in match.groups():
        return text
    return f"\\frac{{{match[1]}}}{{{match[2]}}}"
