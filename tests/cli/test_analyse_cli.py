"""What `tpcli analyse` prints, draws and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli import smooth
from tests.registry.folders import FINISHED, make_run, write_metrics

from tpcli import errors
from tpcli.cli import heat
from tpcli.cli.app import main
from tpcli.jobs.analyse import nearest_with_signal
from tpcli.policy.scratch import from_scratch
from tpcli.registry import folder
from tpcli.registry.store import Registry

PNG = b"\x89PNG\r\n\x1a\n"
RESOLVED = """
[model]
source = "m"
[data]
source = "running_sum"
[rollout]
temperature = 0.7
[train]
steps = 10
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with k7m2xqd, at step 6 of 10, which measured all but mass and clipping."""
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    monkeypatch.setenv("COLUMNS", "80")
    run_dir = make_run(path, "k7m2xqd", lines=smooth.lines(6, 10), state=FINISHED, steps=10)
    (run_dir / folder.RESOLVED).write_text(RESOLVED)
    Registry(path).index(run_dir)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 19 tokens."""
    return from_scratch(
        architecture="llama",
        alphabet="0123456789+-=;",
        pieces=("\\boxed{", "}"),
        hidden_size=16,
        intermediate_size=24,
        layers=1,
        heads=2,
        context=64,
        init_std=0.02,
        seed=1,
        cache=tmp_path_factory.mktemp("cache"),
    )


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["analyse", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def sample(step: int, advantage: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A stored response of eight tokens."""
    return {
        "step": step,
        "question": "1+1",
        "answer": "2",
        "reward": 1.0,
        "ids": [5 + step, 6, 7, 8, 9, 10, 11, 12],
        "prompt_ids": [0, 5, 15, 5],
        "logprob": [-2.0] * 8,
        "group_advantage": advantage,
        "learns": True,
    } | changes


def trained(runs: Path, model: Path, samples: Sequence[dict[str, Any]], *steps: int) -> Path:
    """Give the run checkpoints and stored responses; a last line is still being written."""
    run_dir = runs / "k7m2xqd"
    for step in steps:
        shutil.copytree(model, run_dir / folder.CHECKPOINTS / f"step-{step:06d}" / "model")
    text = "".join(json.dumps(one) + "\n" for one in samples)
    (run_dir / folder.RESPONSES).write_text(text + '{"step": 9, "ids')
    return run_dir


class TestTrajectories:
    def test_the_screen(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Three maps of ten lines each, 12 cells a step; 0.3 of 10 steps is 3, 0.8 is not yet."""
        assert run("k7m") == errors.OK
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == "tiny-k7m2xqd · k7m2xqd · step 6 of 10"
        titles = [line.partition("  ")[0] for line in lines if "▕ ░▒▓█▏" in line]
        assert titles == ["Entropy", "KL to the initial policy", "Tokens that carry credit"]
        assert sum(line.startswith("100 ┤") for line in lines) == 3
        assert sum(line[4:5] in "┤│" for line in lines if len(line) > 4) == 30
        assert "     1" + "6".rjust(71) in lines
        assert [line.split()[:3] for line in lines if line.startswith("  step")] == [
            ["step", "3,", "30%"],
            ["step", "6,", "60%"],
        ]
        assert max(map(len, lines[:-1])) <= 80
        assert "\x1b" not in out
        assert err.splitlines() == [
            "left out, this run has not measured it by percentile: mass, clip"
        ]

    def test_credit_moves_from_late_to_early(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Up to step 1 the last bin alone has credit; at step 6, what lies above .283."""
        run("k7m")
        lines = capsys.readouterr().out.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("Tokens that carry credit"))
        grid = [line[5:].ljust(72) for line in lines[at + 1 : at + 11]]
        assert [row[-1] for row in grid] == list("███████░  ")
        assert [row[0] for row in grid] == ["░"] + [" "] * 9

    def test_the_figure_lies_with_the_run_or_where_asked(
        self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for args, place in (
            ((), runs / "k7m2xqd" / folder.FIGURES),
            (("--out", str(tmp_path / "new" / "place")), tmp_path / "new" / "place"),
        ):
            assert run("k7m", *args) == errors.OK
            path = place / "percentiles.png"
            assert capsys.readouterr().out.splitlines()[-1] == f"figure  {path}"
            assert path.read_bytes().startswith(PNG)
            assert list(place.iterdir()) == [path]

    def test_json_is_the_data(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("k7m", "--json", "--at", "0.5") == errors.OK
        out, err = capsys.readouterr()
        found = json.loads(out)
        metrics = smooth.lines(6, 10)[1:]
        assert err == ""
        assert found["run"] == "k7m2xqd"
        assert found["maps"]["kl/percentile"] == {
            "title": "KL to the initial policy",
            "unit": "nats",
            "steps": [1, 2, 3, 4, 5, 6],
            "values": [line["kl/percentile"] for line in metrics],
        }
        assert found["kl"] == [{"step": 5, "progress": 0.5, "values": metrics[4]["kl/percentile"]}]
        assert found["entropy"]["last"]["values"] == [line["entropy/last"] for line in metrics]
        assert found["missing"] == ["mass/percentile", "clip/percentile"]
        assert Path(found["figure"]).exists()

    def test_nothing_measured_yet(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_metrics(runs / "k7m2xqd", smooth.lines(0))
        assert run("k7m") == errors.NOT_FOUND
        assert "nothing by trajectory percentile yet" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("--bins", "4"), "--bins is an option of --gradients"),
            (("--step", "2"), "--step is an option of --gradients"),
            (("--at", "1.5"), "from 0 to 1"),
            (("--at", "0.5", "--gradients"), "without --gradients"),
            (("--gradients", "--bins", "1"), "--bins"),
        ],
    )
    def test_options_that_do_not_fit(
        self, args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("k7m", *args) == errors.USAGE
        assert said in capsys.readouterr().err


class TestGradients:
    def test_the_screen(self, runs: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Of six stored responses one has no advantage and one was left out for its length."""
        samples = [sample(s, a) for s, a in ((1, 1.0), (2, -0.5), (3, 0.0), (3, 2.0), (4, 1.0))]
        run_dir = trained(runs, model, [*samples, sample(4, learns=False)], 2, 4)
        assert run("k7m", "--gradients", "--bins", "4") == errors.OK
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == "tiny-k7m2xqd · k7m2xqd · checkpoint of step 4"
        assert lines[2] == (
            "4 responses with signal, of 6 stored ones looked at; sampled in steps 1 to 4"
        )
        assert lines[3].startswith("temperature 0.7; ")
        table = [line.split() for line in lines[6:11]]
        assert [row[:2] for row in table] == [
            ["0–25", "8"],
            ["25–50", "8"],
            ["50–75", "8"],
            ["75–100", "8"],
            ["all", "32"],
        ]
        at = lines.index("cosine, all responses")
        assert lines[at + 1].split() == ["0", "25", "50", "75"]
        assert [lines[at + 2 + q].split()[1 + q] for q in range(4)] == ["1.00"] * 4
        path = run_dir / folder.FIGURES / "gradients-000004.png"
        assert lines[-1] == f"figure  {path}"
        assert path.read_bytes().startswith(PNG)
        assert max(map(len, lines[:-1])) <= 80
        assert "\x1b" not in out + err

    def test_json_and_the_choice_of_checkpoint(
        self, runs: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Checkpoint 2 sampled the responses of step 3; two more lie a step away."""
        trained(runs, model, [sample(s) for s in range(1, 7)], 2, 4)
        args = ("--gradients", "--json", "--step", "2", "--responses", "2", "--bins", "2")
        assert run("k7m", *args) == errors.OK
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert err == ""
        assert (found["run"], found["step"], found["used"]) == ("k7m2xqd", 2, 2)
        assert found["steps"] == [2, 3]
        assert found["interference"]["tokens"] == [8, 8]
        assert len(found["interference"]["norm"]) == 2
        assert found["interference"]["cosine"][0][0] == pytest.approx(1.0)
        assert found["figure"].endswith("gradients-000002.png")
        run("k7m", *args)
        assert json.loads(capsys.readouterr().out) == found

    def test_the_temperature_is_that_of_the_step(
        self, runs: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where a schedule moved it, metrics have what it was."""
        trained(runs, model, [sample(3), sample(3)], 2)
        lines = smooth.lines(6, 10)
        for step in range(1, 7):
            lines[step]["schedule/temperature"] = 0.5 + step / 4
        write_metrics(runs / "k7m2xqd", lines)
        assert run("k7m", "--gradients", "--json", "--bins", "2") == errors.OK
        assert json.loads(capsys.readouterr().out)["temperature"] == 1.25

    def test_what_cannot_be_measured_is_told(
        self, runs: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def told(*args: str) -> tuple[int, str]:
            return run("k7m", "--gradients", *args), capsys.readouterr().err

        code, said = told()
        assert (code, "has no checkpoint" in said) == (errors.NOT_FOUND, True)
        run_dir = trained(runs, model, [], 2, 4)
        code, said = told()
        assert (code, "has stored no responses" in said) == (errors.NOT_FOUND, True)
        code, said = told("--step", "3")
        assert (code, "it has 2, 4: --step 4" in said) == (errors.NOT_FOUND, True)
        (run_dir / folder.RESPONSES).write_text('{"step": 1, "logprob": [-1.0]}\n')
        code, said = told()
        assert code == errors.USAGE
        assert "have no ids, prompt_ids, group_advantage" in said
        (run_dir / folder.RESPONSES).write_text(json.dumps(sample(1, 0.0)) + "\n")
        code, said = told()
        assert code == errors.NOT_FOUND
        assert "none of the 1 stored responses of run k7m2xqd carries signal" in said

    def test_memory_is_checked_before_anything_is_computed(
        self,
        runs: Path,
        model: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        import psutil

        class Free:
            available = 30_000

        trained(runs, model, [sample(3)], 2)
        monkeypatch.setattr(psutil, "virtual_memory", Free)
        assert run("k7m", "--gradients") == errors.USAGE
        assert "the gradients of 10 bins take" in capsys.readouterr().err


def test_the_nearest_responses_with_signal_come_first() -> None:
    """From checkpoint 4: step 5, then 4 and 6, then 3; the one without signal is looked at too."""
    stored = [sample(s, 0.0 if s == 4 else 1.0) for s in (3, 4, 5, 5, 6, 7)]
    found, looked_at = nearest_with_signal(stored, 4, 3)
    assert ([one["step"] for one in found], looked_at) == ([5, 5, 6], 4)
    found, looked_at = nearest_with_signal(stored, 4, 99)
    assert ([one["step"] for one in found], looked_at) == ([5, 5, 6, 3, 7], 6)


def rows_of(columns: Sequence[heat.Row], width: int, **options: Any) -> list[str]:
    defaults: dict[str, Any] = {"title": "X", "unit": "nats", "top": 1.0, "beyond": False}
    defaults |= {"steps": (1, len(columns)), "colours": None}
    lines = heat.heat_map(columns, width=width, **(defaults | options))
    return [line.plain for line in lines]


def test_a_map_has_early_tokens_at_the_bottom_and_time_to_the_right() -> None:
    """Two bins over three steps, on 6 + 5 characters: each step two cells, each bin five lines."""
    head, *grid, axis = rows_of([[0.0, 1.0], [0.5, None], [0.25, 0.75]], 11)
    assert head == "X  0 ▕ ░▒▓█▏ 1.00 nats"
    assert [line[5:] for line in grid] == ["██··▓▓"] * 5 + ["  ▒▒░░"] * 5
    assert [line[:5] for line in grid] == [
        "100 ┤",
        *["    │"] * 3,
        " 50 ┤",
        *["    │"] * 4,
        "  0 ┤",
    ]
    assert axis == "     1    3"


def test_the_scale_says_when_it_is_exceeded() -> None:
    assert rows_of([[0.2]], 40, top=0.25)[0].endswith("▏ .250 nats")
    assert rows_of([[0.9]], 40, top=0.25, beyond=True)[0].endswith("▏ ≥ .250 nats")
    assert rows_of([[0.9]], 40, top=0.25, beyond=True)[1][5:] == "█" * 35


def test_colours_tell_two_levels_of_a_line_apart() -> None:
    """The two ends of viridis, upper level in the ink and lower level behind it; none is grey."""
    columns: list[heat.Row] = [[*[0.0] * 19, 1.0], [None] * 20]
    lines = heat.heat_map(
        columns,
        title="X",
        unit="nats",
        top=1.0,
        beyond=False,
        steps=(1, 2),
        width=7,
        colours="viridis",
    )
    styles = [str(span.style) for span in lines[1].spans]
    assert styles == ["dim", "#fde725 on #440154", "#777777 on #777777"]
    assert lines[1].plain == "100 ┤▀▀"


@given(
    columns=st.lists(
        st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=25), min_size=1, max_size=200
    ),
    width=st.integers(40, 100),
)
def test_a_map_fits(columns: list[list[float | None]], width: int) -> None:
    _, *grid, axis = rows_of(columns, width)
    assert len(grid) == heat.HEIGHT
    assert len({len(line) for line in grid}) == 1
    assert len(grid[0]) <= width
    assert len(axis) <= width


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.834, ".83"), (-0.04, "−.04"), (1.0, "1.00"), (-1.0, "−1.00"), (-0.001, ".00"), (None, "–")],
)
def test_cosines(value: float | None, text: str) -> None:
    assert heat.cosine(value) == text


def test_a_matrix_in_colour_is_readable() -> None:
    """The ends are dark, blue at 1 and red at -1, and have white ink; the middle has black."""
    labels = ["0–50"]
    lines = heat.matrix([[1.0, 0.0, -1.0]], title="X", labels=labels, coloured=True)
    styles = [str(span.style) for span in lines[2].spans]
    assert styles[1] == "#ffffff on #053061"
    assert styles[2].startswith("#000000")
    assert styles[3] == "#ffffff on #67001f"
    (_, _, plain) = heat.matrix([[1.0, None]], title="X", labels=labels, coloured=False)
    assert plain.plain == "0–50  1.00     – "
    assert [str(span.style) for span in plain.spans] == ["dim"]
