"""Running sums with worked solutions, for a policy that reads single characters.

A question reads ``94-1+5`` and its solution ``94-1=93;93+5=98;\\boxed{98}``. No partial sum falls
below zero, so a minus sign is always an operator. End the recipe's template with a character that
closes the question, as in ``{question};``.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from tpcli.data.rows import Row, check_keys
from tpcli.errors import UsageError

_DEFAULTS = {"min_terms": 4, "max_terms": 6, "max_operand": 9, "max_first": 99}


def read_running_sum(config: Mapping[str, Any], *, size: int, seed: int) -> Iterator[Row]:
    """``size`` running sums; a larger size only adds to a smaller one's.

    Args:
        config: min_terms, max_terms (numbers in a sum, the first included), max_operand (largest
            number added or taken away) and max_first (largest first number).
        size: how many.
        seed: of the generator.
    """
    settings = _settings(config)
    draw = random.Random(seed)
    for _ in range(size):
        terms = draw.randint(settings["min_terms"], settings["max_terms"])
        total = draw.randint(1, settings["max_first"])
        question, steps = str(total), ""
        for _ in range(terms - 1):
            operand = draw.randint(1, settings["max_operand"])
            sign = draw.choice("+-") if operand <= total else "+"
            after = total + operand if sign == "+" else total - operand
            question += f"{sign}{operand}"
            steps += f"{total}{sign}{operand}={after};"
            total = after
        yield Row(question, str(total), f"{steps}\\boxed{{{total}}}")


def _settings(config: Mapping[str, Any]) -> dict[str, int]:
    check_keys(config, _DEFAULTS, "running_sum")
    settings = {**_DEFAULTS, **config}
    for key, value in settings.items():
        least = 2 if key.endswith("terms") else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(
                f"[data.config].{key} is {value!r}", hint=f"write a whole number from {least} on"
            )
    if settings["max_terms"] < settings["min_terms"]:
        raise UsageError(
            f"[data.config].max_terms ({settings['max_terms']}) is below "
            f"min_terms ({settings['min_terms']})",
            hint="raise max_terms or lower min_terms",
        )
    return settings
