"""The leaderboard: what forms a row, what compares, and which averages there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.jobs.scores import paper, scored, trained
from tests.registry.folders import FINISHED

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.board import Row, board
from tpcli.jobs.curate import remove, restore


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder, in a project without benchmarks of its own."""
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def named(label: str, *benches: str) -> Row:
    (row,) = [row for row in board(benches).rows if row.label == label]
    return row


def test_the_papers_layout(base: Path) -> None:
    """Models first, then by the average of mathematics, falling."""
    paper(base)
    found = board()
    assert [one.bench for one in found.headings] == ["aime24", "aime25", "gpqa-diamond", "musr"]
    assert [one.mathematics for one in found.headings] == [True, True, False, False]
    assert [one.general for one in found.headings] == [False, False, True, True]
    assert [row.label for row in found.rows] == ["Qwen/Qwen3-4B", "math-linear", "math-off-s0"]
    model, scheduled, off = found.rows
    assert (model.runs, model.steps, model.cells["aime24"].mean) == ((), (), 0.712)
    assert (scheduled.runs, scheduled.seeds) == (("tps0", "tps1", "tps2"), (0, 1, 2))
    cell = scheduled.cells["aime24"]
    assert (cell.mean, cell.sd) == pytest.approx((0.742, 0.01))
    assert cell.seeds == 3
    assert off.cells["aime24"].sd is None
    assert off.mathematics is not None
    assert off.mathematics.mean == pytest.approx((0.731 + 0.653) / 2)
    # By seed: (.742 + .671) / 2, (.752 + .661) / 2 and (.732 + .681) / 2 are all .7065.
    assert scheduled.mathematics is not None
    assert scheduled.mathematics.mean == pytest.approx(0.7065)
    assert scheduled.mathematics.sd == pytest.approx(0, abs=1e-12)
    assert scheduled.others is not None
    assert scheduled.others.sd == pytest.approx(0.01)
    assert found.best("aime24") == pytest.approx(0.742)
    assert found.best("others") == pytest.approx(0.615)


def test_results_of_removed_runs_are_left_out(base: Path) -> None:
    paper(base)
    remove(["math-off-s0"])
    assert [row.label for row in board().rows] == ["Qwen/Qwen3-4B", "math-linear"]
    restore(["math-off-s0"])
    assert len(board().rows) == 3


def test_benchmarks_and_groups_are_chosen(base: Path) -> None:
    paper(base)
    assert [one.bench for one in board(["gpqa", "aime"]).headings] == [
        "aime24",
        "aime25",
        "gpqa-diamond",
    ]
    with pytest.raises(UsageError, match="no benchmark amie"):
        board(["amie"])


def test_a_missing_benchmark_leaves_no_average(base: Path) -> None:
    paper(base)
    trained(base, "half", seed=0, name="half", recipe="[loss]\nkl_coef = 0.1\n")
    scored(base, "half", "aime24", 0.99)
    row = named("half-s0")
    assert row.mathematics is None
    assert set(row.cells) == {"aime24"}
    assert board().rows[-1].label == "half-s0"  # after those that have one
    assert named("half-s0", "aime24").mathematics is not None


def test_only_what_was_measured_alike_compares(base: Path) -> None:
    """Fewer samples, or longer responses: told, and no best of the column."""
    paper(base)
    for name, n, tokens in (("few", 4, 64), ("long", 8, 999)):
        trained(base, name, seed=0, name=name, recipe=f'[track]\nexperiment = "{name}"\n')
        scored(base, name, "aime24", 0.99, n=n, max_tokens=tokens)
    assert named("few-s0").cells["aime24"].differs == ("n 4 instead of 8",)
    assert named("long-s0").cells["aime24"].differs == ("sampling.max_tokens 999 instead of 64",)
    assert board().best("aime24") == pytest.approx(0.742)
    # Another policy, and another chat template, are no other way of measuring.
    assert all(not cell.differs for cell in named("Qwen/Qwen3-4B").cells.values())


def test_another_verifier_is_another_measure(base: Path) -> None:
    paper(base)
    trained(base, "ref", seed=0, name="ref", recipe='[track]\nexperiment = "ref"\n')
    scored(base, "ref", "aime24", 0.99, verifier="reference")
    assert named("ref-s0").cells["aime24"].differs == ("verifier reference instead of int",)


def test_the_common_way_is_shown_even_where_another_is_newer(base: Path) -> None:
    paper(base)
    scored(base, "off", "aime24", 0.99, n=16, created=9000.0)
    assert named("math-off-s0").cells["aime24"].mean == pytest.approx(0.731)
    scored(base, "off", "aime24", 0.5, created=9001.0)
    (base / "registry.db").unlink()  # the folders are the truth; the index is read anew
    assert named("math-off-s0").cells["aime24"].mean == pytest.approx(0.5)


def test_the_newest_checkpoint_counts_alone(base: Path) -> None:
    """A benchmark that only an older one has stays empty, and that is told."""
    trained(base, "one", seed=0)
    scored(base, "one", "aime24", 0.4, step=10, created=9000.0)
    scored(base, "one", "aime25", 0.4, step=10)
    scored(base, "one", "aime24", 0.6, step=20)
    row = named("math-linear-s0")
    assert row.steps == (20,)
    assert {bench: cell.mean for bench, cell in row.cells.items()} == {"aime24": 0.6}
    assert row.notes == ["math-linear-s0: aime25 was evaluated at step 10, not at step 20"]


def test_parts_of_a_benchmark_do_not_count(base: Path) -> None:
    trained(base, "one", seed=0)
    scored(base, "one", "aime24", 0.9, limit=5)
    assert board().rows == ()


def test_seeds_of_another_recipe_or_measured_otherwise_are_not_mixed(base: Path) -> None:
    for seed, extra in enumerate(("", "", "[loss]\nkl_coef = 0.1\n")):
        trained(base, f"r{seed}", seed=seed, recipe=extra)
        scored(base, f"r{seed}", "aime24", 0.1 * (seed + 1))
    labels = [row.label for row in board().rows]
    assert labels == ["math-linear-s2", "math-linear"]
    trained(base, "r3", seed=3)
    scored(base, "r3", "aime24", 0.99, n=2)
    (base / "registry.db").unlink()
    row = named("math-linear")
    cell = row.cells["aime24"]
    assert cell.mean == pytest.approx(0.15)
    assert (cell.seeds, row.seeds) == (2, (0, 1, 3))
    assert row.notes == [
        "math-linear-s3: aime24 was measured otherwise than the other seeds, and is left out"
    ]


def test_a_repeated_run_is_no_further_seed(base: Path) -> None:
    stopped = FINISHED | {"status": "stopped"}
    for name, created, value, state in (
        ("old", 1000.0, 0.2, FINISHED),
        ("new", 2000.0, 0.4, FINISHED),
        ("part", 3000.0, 0.6, stopped),
    ):
        run = trained(base, name, seed=0, created=created)
        (run / "state.json").write_text(json.dumps(state))
        scored(base, name, "aime24", value)
    row = named("math-linear-s0")
    assert (row.runs, row.cells["aime24"].mean, row.cells["aime24"].sd) == (("new",), 0.4, None)


def test_rows_of_one_name_are_told_apart(base: Path) -> None:
    for name, extra in (("a1", ""), ("b2", "[loss]\nkl_coef = 0.1\n")):
        trained(base, name, seed=0, recipe=extra)
        scored(base, name, "aime24", 0.5)
    assert {row.label for row in board().rows} == {"math-linear-s0 (a1)", "math-linear-s0 (b2)"}


def test_words_choose_runs_and_the_models_they_start_from(base: Path) -> None:
    paper(base)
    assert [row.label for row in board(words=["math-off"]).rows] == ["math-off-s0"]
    assert [row.label for row in board(words=["tps"]).rows] == ["math-linear"]
    assert [row.label for row in board(words=["@math-linear"]).rows] == ["math-linear"]
    assert {row.label for row in board(words=["ramp"]).rows} == {"math-linear", "math-off-s0"}
    assert [row.label for row in board(words=["Qwen/Qwen3-4B"]).rows] == ["Qwen/Qwen3-4B"]
    trained(base, "q", seed=0, name="q", model="Qwen/Qwen3-4B")
    scored(base, "q", "aime24", 0.7)
    (base / "registry.db").unlink()
    assert [row.label for row in board(words=["q"]).rows] == ["Qwen/Qwen3-4B", "q-s0"]
    with pytest.raises(NotFoundError, match="nothing that nope names"):
        board(words=["nope"])


def test_a_benchmark_that_is_not_declared_here_is_known_by_its_verifier(base: Path) -> None:
    trained(base, "one", seed=0)
    scored(base, "one", "own", 0.5, verifier="choice")
    scored(base, "one", "sums", 0.5, verifier="number")
    scored(base, "one", "rg:word_sorting", 0.5, verifier="exact")
    told = {one.bench: (one.mathematics, one.general) for one in board().headings}
    assert told == {
        "own": (False, True),
        "sums": (True, False),
        "rg:word_sorting": (False, False),
    }
