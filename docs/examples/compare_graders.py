"""A stored evaluation scored by others: a plain script, and lm-evaluation-harness.

    pip install lm-eval
    python docs/examples/compare_graders.py runs/<id>/evals/<evaluation>

Reads what ``tpcli eval`` has stored and imports nothing of it. Prints how many responses each
grader takes for right, and every kind of case in which they differ.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHOWN = 3
"""Examples of each kind of difference."""


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file."""
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def plain(response: str, gold: str) -> bool:
    """The text in the last box, compared as a whole number, or else as text."""
    _, box, rest = response.rpartition("\\boxed{")
    answer, close, _ = rest.partition("}")
    if not (box and close):
        return False
    try:
        return int(answer.replace(",", "")) == int(gold)
    except ValueError:
        return answer.strip() == gold


def harness(response: str, gold: str) -> bool:
    """The rule of the harness's AIME tasks."""
    from lm_eval.tasks.aime.utils import process_results

    return bool(process_results({"answer": gold}, [response])["exact_match"])


def main(folder: Path) -> None:
    """Score every stored response three times."""
    gold = {item["id"]: item["gold"] for item in lines(folder / "items.jsonl")}
    text = {(g["item"], g["sample"]): g for g in lines(folder / "generations.jsonl")}
    ours = {(v["item"], v["sample"]): v for v in lines(folder / "verdicts.jsonl")}
    graders = {"plain script": plain, "lm-evaluation-harness": harness}
    right = Counter[str]({"tpcli": sum(v["status"] == "correct" for v in ours.values())})
    kinds: dict[str, list[str]] = {}
    for place, verdict in ours.items():
        said, wanted = text[place]["text"], gold[place[0]]
        for name, grade in graders.items():
            theirs = grade(said, wanted)
            right[name] += theirs
            if theirs != (verdict["status"] == "correct"):
                kind = f"{name} says {'right' if theirs else 'wrong'}, tpcli {verdict['status']}"
                kinds.setdefault(kind, []).append(f"answer {wanted}: {said!r}")
    print(f"{len(ours)} responses")
    for name in ("tpcli", *graders):
        print(f"  {name:<22} {right[name]} right")
    for kind, cases in sorted(kinds.items()):
        print(f"{len(cases)} x {kind}")
        for case in cases[:SHOWN]:
            print(f"    {case[:300]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
