"""The part of a response that is its answer: the last complete \\boxed{...} after thinking."""

import re

# A backslash takes the next character with it, so that \{ is no brace. The bounded run accepts
# \\boxed, which models write when they escape once too often, without backtracking.
_TOKEN = re.compile(r"(?P<box>\\{1,4}boxed\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """What stands in the last complete box of ``text``; None without one.

    Of nested boxes the innermost opens last and counts. A box that never closes is no box, so
    ``\\boxed{1} then \\boxed{2`` gives "1". One pass, whatever the nesting.
    """
    opened: list[int | None] = []  # start of the content for a box, None for a plain brace
    found: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "box":
            opened.append(token.end())
        elif token.lastgroup == "open":
            opened.append(None)
        elif token.lastgroup == "close" and opened:
            start = opened.pop()
            if start is not None and (found is None or start > found[0]):
                found = start, token.start()
    return None if found is None else text[found[0] : found[1]]


def after_thinking(response: str, *, opened: bool = False) -> str | None:
    """What follows the last ``</think>``; None while a ``<think>`` is still open.

    Args:
        opened: the prompt ended inside a think block, so the response begins in one.
    """
    _, closed, said = response.rpartition("</think>")
    return None if "<think>" in said or (opened and not closed) else said
