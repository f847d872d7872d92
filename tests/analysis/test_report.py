"""The HTML report: what it says, that it needs nothing else, and that names are text in it."""

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.cli import smooth

from tpcli.analysis import prose, report
from tpcli.analysis.arms import Arm, Trace
from tpcli.analysis.compare import Cell, Comparison, Row, Statistics, Versus, compare
from tpcli.bench.stats import holm, paired

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
VOID = {"meta", "img", "br", "link"}
COMMAND = 'tpcli compare off "lin & ear" --out a.html'


class Page(HTMLParser):
    """Elements with their attributes, whether all are closed in order, and the text outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def trace(seed: int, lift: float, **settings: Any) -> Trace:
    metrics = [smooth.line(step, 20, eval_every=5) for step in range(21)]
    for line in metrics:
        if line["step"]:
            line["reward/mean"] += lift + 0.01 * seed * lift
            line["credit/tokens"] = 1000.0 * line["credit/share"]
    return Trace(
        id=f"r{seed}{len(settings)}",
        name=f"run-s{seed}",
        seed=seed,
        status="finished",
        steps=20,
        folder=Path("/data/runs") / f"r{seed}",
        settings={"train.seed": seed, "optim.lr": 1e-4} | settings,
        origin={"git": "3f2c1a9" if settings else "77aa001"},
        metrics=metrics,
    )


def comparison(label: str = "linear", seeds: int = 2, **more: Any) -> Comparison:
    off = Arm("off", tuple(trace(seed, 0.0) for seed in range(seeds)))
    other = Arm(label, tuple(trace(seed, 0.1, curve="linear") for seed in range(seeds)))
    found = compare([off, other], Statistics(paired, holm), metrics=["reward", "entropy"])
    return replace(found, **more)


def text_of(found: Comparison) -> str:
    return report.page(found, command=COMMAND, align="step", now=NOW)


@pytest.fixture(scope="module")
def html() -> str:
    return text_of(comparison())


@pytest.fixture
def page(html: str) -> Page:
    return Page(html)


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    """Each figure is inside it; no script, style sheet, or address of the network."""
    assert page.open == []
    pictures = page.of("img")
    assert len(pictures) == 4  # curves, accuracy, entropy, KL; no responses were stored
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert b"<svg" in base64.b64decode(data)
        assert "off, linear" in str(picture["alt"])
    assert not page.of("script")
    assert not page.of("link")
    loads = [value for _, a in page.elements for k, value in a.items() if k in ("src", "href")]
    assert all(str(value).startswith(("data:", "#")) for value in loads)


def test_no_style_loads_anything(html: str) -> None:
    assert not re.search(r"url\(|@import|https?:", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_names_are_text() -> None:
    """An arm may be called anything; the command is quoted too."""
    label = '<b onload="x">&'
    text = text_of(comparison(label))
    assert "<b " not in text
    found = Page(text)
    assert not found.of("b")
    assert f"off against {label}" in found.text
    assert COMMAND in found.text


def test_inner_links_lead_somewhere() -> None:
    found = Page(text_of(comparison(warnings=("budget: linear took twice the time",))))
    ids = {attributes.get("id") for _, attributes in found.elements}
    links = [str(attributes["href"]) for attributes in found.of("a")]
    assert links == ["#verdict", "#warnings", "#values", "#figures", "#recipes", "#runs"]
    assert {link[1:] for link in links} <= ids
    assert "budget: linear took twice the time" in found.text


def test_tables_say_what_their_cells_are(page: Page) -> None:
    counts = [len(page.of(tag)) for tag in ("table", "caption", "thead", "tbody")]
    assert counts == [7, 7, 7, 7]
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.of("th"))


def test_what_differs_and_what_it_cost(page: Page) -> None:
    """1,000 tokens a step: 20,000; 18.5 s a step and 60 s an evaluation: 20 and 4 of them."""
    text = page.text
    assert "curve — linear" in text
    assert "1 keys equal" in text
    assert "git 77aa001 3f2c1a9" in text
    assert "off 0, 1 20,000" in text
    assert "10 min 10 s" in text
    assert "r01 linear 0 run-s0 finished 20/20 /data/runs/r0" in text


def test_values_by_seed_and_over_seeds(page: Page) -> None:
    """Two seeds of reward at the end: the mean of steps 19 and 20, and .1 and .101 above it."""
    ends = [smooth.line(step, 20)["reward/mean"] for step in (19, 20)]
    base = sum(ends) / 2
    text = page.text
    assert f"reward at the end off {base:.3f} {base:.3f}" in text
    assert f"reward at the end linear {base + 0.1:.3f} {base + 0.101:.3f}" in text
    assert f"{base + 0.1005:.3f} ± 0.00071 (n = 2)" in text
    assert "reward at the end linear +0.101 +0.094 to +0.107 ▲▲ 2/2" in text


def test_same_inputs_same_bytes_but_for_the_time(tmp_path: Path) -> None:
    files = [tmp_path / "a.html", tmp_path / "deep" / "b.html", tmp_path / "c.html"]
    times = [NOW, NOW, NOW.replace(hour=5)]
    for file, now in zip(files, times, strict=True):
        report.write(comparison(), file, command=COMMAND, align="step", now=now)
    one, same, later = (file.read_text(encoding="utf-8") for file in files)
    assert one == same
    assert one.replace("2026-01-02 03:04", "2026-01-02 05:04") == later != one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "c.html", "deep"]


def test_a_report_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")

    def full(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        report.write(comparison(), path, command=COMMAND, align="step", now=NOW)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


# what may be claimed


def row(cell: Cell | None = None) -> Row:
    base = cell or Cell("off", {0: 0.5}, 0.5, None)
    return Row("reward", "reward/mean", "end", (base, base), ())


def versus(pairs: Mapping[int, float], **more: Any) -> Versus:
    return Versus("linear", pairs, (), **more)


def five(**more: Any) -> Versus:
    found = {"difference": 0.05, "low": 0.031, "high": 0.074, "p": 0.0625, "smallest_p": 0.0625}
    return versus(dict.fromkeys(range(5), 0.05), **found | {"more": 1} | more)


def test_five_seeds_cannot_show_a_difference() -> None:
    """The verdict says so, the limits say why and what would help."""
    assert prose.verdict(row(), five()) == (
        "reward at the end: linear lies 0.0500 above off (95% interval +0.0310 to +0.0740; "
        "5 of 5 seeds higher). Exact p = 0.062: 5 seeds can decide nothing by it."
    )
    assert prose.verdict(row(), five(p_t=2e-5, p_holm=0.125)).endswith(
        "p = 0.062, 0.125 corrected for the number of arms: 5 seeds can decide nothing by it; "
        "the t test has p < 0.001."
    )
    limits = prose.limits([replace(row(), versus=(five(),))])
    assert limits[0] == (
        "With 5 seeds in common the exact sign-flip test reaches p = 0.062 at best, so it shows "
        "no difference at .05, whatever the values are; with 1 more seed it could."
    )
    assert limits[1].startswith("That no difference is shown does not mean that there is none")


def test_a_difference_is_shown_only_if_the_corrected_p_says_so() -> None:
    small = {"p": 0.03125, "smallest_p": 0.03125, "more": 0}
    assert prose.verdict(row(), five(**small)).endswith("p = 0.031: a difference is shown.")
    assert prose.verdict(row(), five(**small, p_holm=0.0625)).endswith(
        "p = 0.031, 0.062 corrected for the number of arms: no difference is shown."
    )
    assert prose.limits([replace(row(), versus=(five(**small),))]) == []


def test_one_seed_says_nothing_of_chance() -> None:
    one = versus({0: -0.05}, difference=-0.05, says="one seed in common: no test")
    text = prose.verdict(row(), one)
    assert text == "reward at the end: linear lies 0.0500 below off in the one seed that both have."
    assert prose.limits([replace(row(), versus=(one,))]) == [
        "With one seed in common, effect cannot be told from chance: no interval, no test."
    ]


def test_no_seed_in_common() -> None:
    none = Versus("linear", {}, (0, 1), says="no seed in common: no paired difference")
    assert prose.verdict(row(), none) == (
        "reward at the end: linear and off cannot be compared: "
        "no seed in common: no paired difference."
    )
    assert prose.limits([replace(row(), versus=(none,))]) == []


def test_seeds_that_only_one_arm_has_are_named() -> None:
    found = prose.verdict(row(), replace(five(), left_out=(7, 8)))
    assert "Only one of the two has seed 7, 8: left out." in found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.0, "0"),
        (0.05, "0.0500"),
        (-0.1234, "−0.123"),
        (123.4, "123"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert prose.shown(value) == text


def test_signs_and_intervals() -> None:
    """Both ends have the decimals of the larger one."""
    assert prose.shown(0.05, signed=True) == "+0.0500"
    assert prose.shown(0.0, signed=True) == "0"
    found = prose.interval(versus({}, low=-0.000404, high=0.0973))
    assert found == "−0.0004 to +0.0973"
    assert prose.interval(versus({})) == "—"
    assert prose.interval(versus({}, low=-1500.0, high=20.0)) == "−1,500 to +20"


def test_settings_are_readable_and_cut() -> None:
    assert prose.setting(["linear", None, ["a", 1], True]) == 'linear | — | ["a", 1] | true'
    assert prose.setting(["x" * 500]) == f"{'x' * 159}…"


def test_times() -> None:
    assert [prose.duration(s) for s in (59.9, 61, 3600 * 30 + 300)] == [
        "0 min 59 s",
        "1 min 01 s",
        "30 h 05 min",
    ]


def test_p_values() -> None:
    assert [prose.probability(p) for p in (None, 0.0625, 1.0, 0.0004)] == [
        "—",
        "0.062",
        "1.000",
        "< 0.001",
    ]
