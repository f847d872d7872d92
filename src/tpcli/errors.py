"""Failures a user can mend, and the exit codes the command line promises."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

OK = 0
BUG = 1
USAGE = 2
NOT_FOUND = 3
RUN_FAILED = 4
PARTLY_FAILED = 5
TRIPPED = 6
INTERRUPTED = 130
TERMINATED = 143


class TpcliError(Exception):
    """A failure the user can mend: one line and a hint, no traceback. Anything else is our bug."""

    exit_code = RUN_FAILED
    kind = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # A keyword-only argument would not survive pickling between processes.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[TpcliError], message: str, hint: str) -> TpcliError:
    return cls(message, hint=hint)


class UsageError(TpcliError):
    """What was typed, or the recipe, cannot be carried out as it stands."""

    exit_code = USAGE
    kind = "usage"


class NotFoundError(TpcliError, LookupError):
    """No such run, or more than one."""

    exit_code = NOT_FOUND
    kind = "not_found"


class RunFailedError(TpcliError):
    """The run started and did not reach its end."""

    exit_code = RUN_FAILED
    kind = "run_failed"


class OfflineError(TpcliError, ConnectionError):
    """Something must be downloaded and the other side cannot be reached."""

    kind = "offline"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file that a user wrote, and where.

    ``line`` counts from 1; None where no line can be blamed (an override, a default).
    """

    source: str
    line: int | None
    key: str
    message: str
    hint: str = ""


class RecipeError(UsageError, ValueError):
    """Everything wrong with a recipe, at once."""

    kind = "recipe"

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        super().__init__(f"{count} error{'s' if count != 1 else ''} in the {self.kind}", hint="")

    def __str__(self) -> str:
        lines = []
        for f in self.faults:
            where = f.source if f.line is None else f"{f.source}:{f.line}"
            what = f"{f.key}: {f.message}" if f.key else f.message
            lines.append(f"{where}: {what}" + (f" ({f.hint})" if f.hint else ""))
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.faults,))

    @classmethod
    def one(
        cls, source: str, message: str, *, line: int | None = None, key: str = "", hint: str = ""
    ) -> Self:
        """A recipe with a single fault."""
        return cls([Fault(source, line, key, message, hint)])


class BenchmarkError(RecipeError):
    """Everything wrong with a file that declares a benchmark."""

    kind = "benchmark"
