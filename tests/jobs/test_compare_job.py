"""From words to arms, from folders to traces, and every format of the written comparison."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.jobs.arms import make_arm, make_result
from tests.registry.folders import RESOLVED

from tpcli.analysis.arms import at_end
from tpcli.cli.compared import TABLES
from tpcli.errors import NotFoundError, TpcliError, UsageError
from tpcli.jobs import compare as job
from tpcli.jobs.runs import find
from tpcli.registry import folder
from tpcli.registry.store import Registry

COSINE = RESOLVED.replace('"linear"', '"cosine"')


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs "off" and three "on", which learn from half of the tokens."""
    place = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(place))
    make_arm(place, "off", range(3), gain=0.3)
    make_arm(place, "on", range(3), gain=0.4, share=0.5, resolved=COSINE)
    return place


def write(found: job.Compared, path: Path) -> None:
    job.write(found, path, command="tpcli compare @off @on", align="step", tables=TABLES)


def test_words_become_arms(runs: Path) -> None:
    found = job.gather(["@off", "on1"])
    assert [arm.label for arm in found.arms] == ["off", "on-s1"]
    assert [arm.seeds for arm in found.arms] == [(0, 1, 2), (1,)]
    assert [run.id for run in found.arms[0].runs] == ["off0", "off1", "off2"]


@pytest.mark.parametrize("words", [[], ["off0"]])
def test_one_word_is_no_comparison(runs: Path, words: list[str]) -> None:
    with pytest.raises(UsageError, match="takes two"):
        job.gather(words)


def test_a_word_twice_and_a_word_for_nothing_are_refused(runs: Path) -> None:
    with pytest.raises(UsageError, match="off0 is named twice"):
        job.gather(["off0", "on0", "off0"])
    with pytest.raises(NotFoundError):
        job.gather(["@off", "@of"])


def test_arms_of_one_name_are_told_apart(runs: Path) -> None:
    """One run by its id and by its name: the words are the labels, and a warning tells."""
    compared = job.run(["off0", "off-s0"])
    assert [arm.label for arm in compared.comparison.arms] == ["off0", "off-s0"]
    assert compared.comparison.warnings == ("run off0 is in more than one arm: off0, off-s0",)


def test_notes_of_the_choice_are_warnings(runs: Path) -> None:
    make_arm(runs, "late", [1], gain=0.3, name="off-s1", created=2000.0)
    notes = job.run(["@off", "@on"]).comparison.warnings
    assert any("late1 counts" in note and "off1" in note for note in notes)


def test_a_trace_is_what_the_folder_says(runs: Path) -> None:
    trace = job.trace(find("off1"))
    assert trace.settings["credit.schedule.curve"] == "linear"
    assert trace.settings["train.seed"] == trace.seed == 1
    assert trace.settings["optim.betas"] == [0.9, 0.999]
    assert trace.origin == {
        "tpcli.code": "0.1.0-abc",
        "git": "3f2c1a9",
        "git.diff_sha256": "e3b0",
        "packages.torch": "2.13.0",
        "data.source": "rg:chain_sum",
        "data.sha256": "14b4",
        "compute.device": "cpu",
        "compute.threads": 2,
        "machine.cpu": "EPYC",
        "machine.gpus": [],
    }
    assert (trace.status, trace.steps, len(trace.metrics)) == ("finished", 40, 41)


def test_a_run_without_provenance_has_what_the_registry_knows(runs: Path) -> None:
    (runs / "off1" / folder.PROVENANCE).unlink()
    assert job.trace(find("off1")).origin == {"tpcli.code": "0.1.0-abc", "git": "3f2c1a9"}


@pytest.mark.parametrize("name", [folder.RESOLVED, folder.METRICS, folder.PROVENANCE])
def test_a_damaged_folder_is_told(runs: Path, name: str) -> None:
    run = find("off1")
    (runs / "off1" / name).write_text("{ broken\n")
    with pytest.raises(TpcliError, match="cannot read run off1"):
        job.trace(run)


def test_scores_are_whole_of_the_newest_checkpoint_and_the_newest_result(runs: Path) -> None:
    make_result(runs, "off0", "aime24", 0.1, step=20, created=5000.0)
    make_result(runs, "off0", "aime24", 0.2, step=40, created=3000.0)
    make_result(runs, "off0", "aime24", 0.3, step=40, created=4000.0, settings_key="other")
    make_result(runs, "off0", "aime24", 0.4, step=40, created=6000.0, limit=10)
    make_result(runs, "off0", "gpqa", 0.5, step=20)
    trace = job.trace(find("off0"))
    assert {bench: (one.value, one.step) for bench, one in trace.scores.items()} == {
        "aime24": (0.3, 40),
        "gpqa": (0.5, 20),
    }


def test_scores_compare_whatever_the_weights_but_not_whatever_the_settings(runs: Path) -> None:
    """The registry's digest of settings counts the weights in; ours does not."""
    for run_id, value in (("off0", 0.3), ("on0", 0.5)):
        make_result(runs, run_id, "aime24", value)
    row = next(row for row in job.run(["off0", "on0"]).comparison.rows if row.metric == "aime24")
    assert row.versus[0].difference == pytest.approx(0.2)
    later = iter((9000.0, 9001.0))
    for changes in ({"verifier": "math"}, {"settings": {"sampling": {"seed": 9}}}):
        path = make_result(runs, "on0", "aime24", 0.5, created=next(later), **changes)
        Registry(runs).index_evaluation(path)
        comparison = job.run(["off0", "on0"]).comparison
        assert "aime24" not in comparison.metrics
        assert any(warning.startswith("aime24 is left out") for warning in comparison.warnings)


def test_what_differs_of_the_recipe_and_the_origin(runs: Path) -> None:
    make_arm(runs, "new", [0], gain=0.3, origin={"data": {"sha256": "77aa"}}, code="0.1.0-def")
    found = job.run(["off0", "new0"]).comparison
    assert (found.recipe, found.equal) == ((), 7)
    assert {one.key for one in found.origin} == {"tpcli.code", "data.sha256", "data.source"}
    assert "the runs were given different data" in found.warnings
    (schedule,) = job.run(["@off", "@on"]).comparison.recipe
    assert schedule.key == "credit.schedule.curve"
    assert schedule.values == (("linear",), ("cosine",))


def test_outputs_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    here = tmp_path / "here.md"
    here.write_text("mine")
    with pytest.raises(UsageError, match="ending says no format"):
        job.check_outputs([tmp_path / "a.pdf"], force=True)
    with pytest.raises(UsageError, match="is there already") as caught:
        job.check_outputs([tmp_path / "new.md", here], force=False)
    assert "--force" in caught.value.hint
    job.check_outputs([here, tmp_path / "a.HTML"], force=True)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        job.check_outputs([tmp_path / "folder.csv"], force=True)


def test_csv_holds_every_value(runs: Path, tmp_path: Path) -> None:
    found = job.run(["@off", "@on"], metrics=("reward",), step=20)
    write(found, tmp_path / "deep" / "a.csv")
    with (tmp_path / "deep" / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 3  # moments, arms, seeds
    assert {row["when"] for row in rows} == {"end", "best", "step 20"}
    for run in found.comparison.arms[1].runs:
        (value,) = (
            row["value"]
            for row in rows
            if (row["when"], row["arm"], row["seed"]) == ("end", "on", str(run.seed))
        )
        assert float(value) == at_end(run, "reward")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.csv"]


def test_json_holds_every_number(runs: Path, tmp_path: Path) -> None:
    found = job.run(["@off", "@on"], metrics=("reward",), fail_if=["delta(reward) > 0"])
    write(found, tmp_path / "a.json")
    told = json.loads((tmp_path / "a.json").read_text())
    assert told == json.loads(json.dumps(job.record(found), allow_nan=False))
    row = told["rows"][0]
    assert [cell["n"] for cell in row["arms"]] == [3, 3]
    (against,) = row["versus"]
    new, old = row["arms"][1]["values"], row["arms"][0]["values"]
    assert against["pairs"] == {s: pytest.approx(new[s] - old[s]) for s in ("0", "1", "2")}
    assert (against["p"], against["smallest_p"], against["more"], against["up"]) == (
        0.25,
        0.25,
        3,
        3,
    )
    assert told["recipe"] == [{"key": "credit.schedule.curve", "values": [["linear"], ["cosine"]]}]
    assert told["tripped"][0]["value"] == against["difference"]
    assert told["arms"][0]["runs"][2]["id"] == "off2"


def test_markdown_and_latex_are_whole_tables(runs: Path, tmp_path: Path) -> None:
    found = job.run(["@off", "@on"], metrics=("reward", "entropy"))
    write(found, tmp_path / "a.md")
    write(found, tmp_path / "a.tex")
    page = (tmp_path / "a.md").read_text()
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in table[2:5]] == ["| reward", "| reward best", "| entropy"]
    assert {len(row) for row in table[:5]} == {8}
    assert "▲▲▲ 3/3" in page
    assert "- exact sign-flip: the smallest p at n=3 is .250; 3 more seeds could reach .05" in page
    assert "- credit: on learned from 50% of the tokens that off did" in page
    text = (tmp_path / "a.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert "▲" not in text
    body = [line for line in text.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {7}
    assert "% credit: on learned from 50%" in text


class Words(HTMLParser):
    """The text of a page, and the tags that were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_and_figure(runs: Path, tmp_path: Path) -> None:
    found = job.run(["@off", "@on"], metrics=("reward",))
    write(found, tmp_path / "a.html")
    write(found, tmp_path / "a.png")
    page = Words()
    page.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert {"html", "table"} <= page.tags
    assert "tpcli compare @off @on" in page.text
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.html", "a.png"]
    assert not [*tmp_path.glob(".a*")]


def test_a_file_that_fails_leaves_the_old_one(runs: Path, tmp_path: Path) -> None:
    """Nothing was recorded, so there is nothing to draw; and a folder that is a file."""
    for run_id in ("off0", "on0"):
        (runs / run_id / folder.METRICS).write_text("")
    (tmp_path / "a.png").write_text("old")
    found = job.run(["off0", "on0"])
    with pytest.raises(TpcliError, match="nothing to draw"):
        write(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"
    with pytest.raises(TpcliError, match="cannot write"):
        write(found, tmp_path / "a.png" / "b.csv")
    assert not [*tmp_path.glob(".a*")]
