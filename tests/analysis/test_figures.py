import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tests.cli import smooth

from tpcli.analysis import figures

PNG = b"\x89PNG\r\n\x1a\n"


def run_with(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def points(line: Line2D) -> list[tuple[float, float]]:
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def without(lines: list[dict[str, Any]], *prefixes: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith(prefixes)} for line in lines]


def test_draw_writes_both(tmp_path: Path) -> None:
    written = figures.draw(run_with(tmp_path, smooth.lines(20, 20)))
    folder = tmp_path / "figures"
    assert written == [folder / "training.png", folder / "percentiles.png"]
    assert all(path.read_bytes().startswith(PNG) for path in written)
    assert sorted(folder.iterdir()) == sorted(written)  # nothing aside is left


def test_draw_again_replaces(tmp_path: Path) -> None:
    run_dir = run_with(tmp_path, smooth.lines(2, 20))
    before = [path.read_bytes() for path in figures.draw(run_dir)]
    after = [path.read_bytes() for path in figures.draw(run_with(tmp_path, smooth.lines(20, 20)))]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_draw_with_little(tmp_path: Path) -> None:
    """No metrics: nothing; only the evaluation before training: no heat maps; one step: both."""
    assert figures.draw(tmp_path) == []
    names = {n: figures.draw(run_with(tmp_path, smooth.lines(n, 20))) for n in (0, 1)}
    assert [path.name for path in names[0]] == ["training.png"]
    assert [path.name for path in names[1]] == ["training.png", "percentiles.png"]


def test_training_lines_hold_the_metrics() -> None:
    """Held-out accuracy has its own, sparser steps, step 0 among them."""
    metrics = smooth.lines(20, 20)
    axes = drawn(figures.training(metrics)).axes
    reward, sampled, _ = axes[0].lines
    assert points(reward) == [(line["step"], line["reward/mean"]) for line in metrics[1:]]
    np.testing.assert_allclose(points(sampled), [(0, 0.23), (20, 0.61)])
    assert [line.get_label() for line in axes[1].lines] == [
        "all tokens",
        "first 10%",
        "45–55%",
        "last 10%",
    ]


def test_training_says_what_is_missing() -> None:
    axes = drawn(figures.training(without(smooth.lines(20, 20), "kl/"))).axes
    assert [text.get_text() for text in axes[2].texts] == ["not measured"]
    assert not axes[0].texts


def test_nan_and_null_leave_gaps() -> None:
    metrics = smooth.lines(5, 20)
    metrics[2]["reward/mean"], metrics[3]["reward/mean"] = None, float("nan")
    reward = drawn(figures.training(metrics)).axes[0].lines[0]
    assert [step for step, _ in points(reward)] == [1, 4, 5]


def test_nothing_global_changes(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figures.draw(run_with(tmp_path, smooth.lines(3, 20)))
    assert dict(mpl.rcParams) == before
