"""What differs between arms, and what makes their comparison less than fair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpcli.analysis.arms import Arm, Trace
from tpcli.analysis.differences import Difference, differences, doubts, keys_of


def run(
    name: str,
    seed: int = 0,
    *,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    status: str = "finished",
    lines: Sequence[Mapping[str, Any]] = (),
) -> Trace:
    return Trace(
        id=name,
        name=name,
        seed=seed,
        status=status,
        steps=1000,
        folder=Path(),
        settings={"train.seed": seed, "optim.lr": 1e-5, **(settings or {})},
        origin=origin or {},
        metrics=lines,
    )


def cost(*, credited: float, share: float, seconds: float) -> list[dict[str, Any]]:
    """One step, and a line before training that costs nothing."""
    paid = {"credit/tokens": credited, "credit/share": share, "time/step": seconds}
    return [{"step": 0}, {"step": 1, **paid}]


def test_only_what_differs_and_never_the_seed() -> None:
    off = Arm("off", (run("a", 0), run("b", 1)))
    on = Arm("on", (run("c", 5, settings={"credit.curve": "linear", "optim.lr": 2e-5}),))
    assert differences([off, on], "settings") == (
        Difference("optim.lr", ((1e-5,), (2e-5,))),
        Difference("credit.curve", ((None,), ("linear",))),
    )
    assert keys_of([off, on], "settings") == ["optim.lr", "credit.curve"]
    assert differences([off, off], "settings") == ()


def test_false_is_not_zero_and_lists_compare() -> None:
    left, right = {"a": False, "b": [1, 2], "c": [1]}, {"a": 0, "b": [1, 2], "c": [2]}
    arms = [Arm("l", (run("l", settings=left),)), Arm("r", (run("r", settings=right),))]
    assert [one.key for one in differences(arms, "settings")] == ["a", "c"]


def test_what_an_arm_mixes_is_no_difference_where_the_other_mixes_the_same() -> None:
    def mixed(label: str, hosts: Sequence[str]) -> Arm:
        runs = [run(f"{label}{i}", i, origin={"gpu": h}) for i, h in enumerate(hosts)]
        return Arm(label, tuple(runs))

    assert differences([mixed("l", "xy"), mixed("r", "yx")], "origin") == ()
    (found,) = differences([mixed("l", "xy"), mixed("r", "xx")], "origin")
    assert found == Difference("gpu", (("x", "y"), ("x",)))


def test_runs_of_one_arm_differ_in_nothing_but_the_seed() -> None:
    mixed = Arm("off", (run("a", 0), run("b", 1, settings={"optim.lr": 3e-5, "x": 1})))
    assert doubts([mixed, Arm("on", (run("c"),))], ()) == [
        "off: its runs differ in more than the seed: optim.lr, x"
    ]


def test_budgets_beyond_a_twentieth_are_told() -> None:
    """Against 100 tokens, all with credit, in 10 s: 62 of 100 in 14 s; 104 in 10.4 s is equal."""
    off = Arm("off", (run("a", lines=cost(credited=100, share=1.0, seconds=10)),))
    linear = Arm("linear", (run("b", lines=cost(credited=62, share=0.62, seconds=14)),))
    near = Arm("near", (run("c", lines=cost(credited=104, share=1.0, seconds=10.4)),))
    more = Arm("more", (run("d", lines=cost(credited=100, share=0.5, seconds=10)),))
    few = Arm("few", (run("f", lines=cost(credited=4, share=0.04, seconds=10)),))
    assert (
        doubts([few, near], ())[0] == "credit: near learned from 26 times the tokens that few did"
    )
    assert doubts([off, linear, near, more], ()) == [
        "budget: more generated 200% of the tokens that off did",
        "credit: linear learned from 62% of the tokens that off did",
        "time: linear took 140% of the time that off did",
    ]
    assert doubts([Arm("none", (run("e"),)), off], ()) == []


def test_budgets_are_means_over_seeds() -> None:
    off = Arm("off", (run("a", lines=cost(credited=100, share=1.0, seconds=10)),))
    lines = [cost(credited=c, share=1.0, seconds=10) for c in (50, 150)]
    both = Arm("both", tuple(run(f"b{i}", i, lines=one) for i, one in enumerate(lines)))
    assert doubts([off, both], ()) == []


def test_unfinished_runs_are_told_with_their_step() -> None:
    dead = Arm("on", (run("w5c8n2e", status="dead", lines=[{"step": 612}]),))
    new = Arm("off", (run("k7m2xqd", status="created"),))
    assert doubts([new, dead], ()) == [
        "run k7m2xqd of off is not finished: created, step 0/1000",
        "run w5c8n2e of on is not finished: dead, step 612/1000",
    ]


def test_different_code_and_data_are_told_and_shared_runs() -> None:
    first = run("a", origin={"tpcli.code": "1", "data.sha256": "x"})
    other = run("b", origin={"tpcli.code": "2", "data.sha256": "y"})
    assert doubts([Arm("l", (first,)), Arm("r", (other,))], ()) == [
        "the runs were made by different versions of tpcli's code",
        "the runs were given different data",
    ]
    assert doubts([Arm("l", (first,)), Arm("r", (first,))], ()) == [
        "run a is in more than one arm: l, r"
    ]
