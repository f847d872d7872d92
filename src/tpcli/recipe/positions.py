"""The line of every key of a TOML text. tomllib reads values but says nothing of where they stood.

The scan trusts that tomllib has accepted the text: it finds its way, it checks nothing.
"""

import json
import re
from bisect import bisect

KeyPath = tuple[str | int, ...]
"""Keys from the top, and an index for each element of an array: ("data", "examples", 0)."""

_BLANK = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*(?:"((?:\\.|[^"\\])*)"|'([^']*)'|([A-Za-z0-9_-]+))[ \t]*""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_BARE_VALUE = re.compile(r"[^,\]}#\n]+|.", re.DOTALL)  # never empty: the scan always ends
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_CONTROLS = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def scan(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each key, table, array element and inline table in ``text``.

    A table that only a longer header names (``[a.b]``) stands on the line of the first such header.
    """
    return _Scan(text.replace("\r\n", "\n")).lines


def dotted(path: KeyPath) -> str:
    """A path as one would write it: ``data.examples[0].question``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


class _Scan:
    """One pass over the text; ``at`` is the offset reached."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.lines: dict[KeyPath, int] = {}
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._sizes: dict[KeyPath, int] = {}  # of arrays of tables
        self._document()

    def _document(self) -> None:
        table: KeyPath = ()
        self._blank()
        while self.at < len(self.text):
            if self._take("[["):
                table = self._header(new_element=True)
                self._take("]]")
            elif self._take("["):
                table = self._header(new_element=False)
                self._take("]")
            else:
                self._pair(table)
            self._blank()

    def _header(self, *, new_element: bool) -> KeyPath:
        line = self._line()
        keys = self._keys()
        path: KeyPath = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if depth == len(keys) and new_element:
                self._sizes[path] = self._sizes.get(path, 0) + 1
            if path in self._sizes:
                path = (*path, self._sizes[path] - 1)
                self.lines.setdefault(path, line)
        if not new_element:
            self.lines[path] = line  # its own header wins over a longer one before it
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._take("=")
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while match := _KEY.match(self.text, self.at):
            self.at = match.end()
            basic, literal, bare = match.groups()
            keys.append(_unescape(basic) if basic is not None else literal or bare or "")
            if not self._take("."):
                break
        return keys

    def _value(self, path: KeyPath) -> None:
        self._blank()
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            self._inline_table(path)
        else:
            match = _STRING.match(self.text, self.at) or _BARE_VALUE.match(self.text, self.at)
            self.at = match.end() if match else len(self.text)

    def _array(self, path: KeyPath) -> None:
        index = 0
        self._blank()
        while not self._take("]") and self.at < len(self.text):
            self.lines[*path, index] = self._line()
            self._value((*path, index))
            index += 1
            self._blank()
            self._take(",")
            self._blank()

    def _inline_table(self, path: KeyPath) -> None:
        self._blank()
        while not self._take("}") and self.at < len(self.text):
            self._pair(path)
            self._blank()
            self._take(",")
            self._blank()

    def _blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _take(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found

    def _line(self) -> int:
        return bisect(self._breaks, self.at - 1) + 1


def _unescape(basic: str) -> str:
    """The text that a basic string stands for."""

    def plain(match: re.Match[str]) -> str:
        *codes, char = match.groups()
        for code in codes:
            if code:
                return chr(int(code, 16))
        return _CONTROLS.get(char, char)

    return _ESCAPE.sub(plain, basic)
