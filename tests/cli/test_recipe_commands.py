"""``tpcli recipe``: validate, show, schema, diff."""

import json
import tomllib
from pathlib import Path

import pytest

from tpcli import errors
from tpcli.cli.app import main
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import fingerprint

GOOD = '[model]\nsource = "m"\n[data]\nsource = "running_sum"\n[train]\nsteps = 10\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("good.toml").write_text(GOOD)
    Path("flat.toml").write_text(
        'extends = "good.toml"\n[credit]\nallocation = "uniform"\nschedule = 1\n'
    )
    Path("still.toml").write_text('extends = "good.toml"\ncredit.schedule = 0.5\n')
    Path("bad.toml").write_text(GOOD + "step = 3\n[optim]\nlr = -1\n")


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["recipe", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def prints(name: str) -> str:
    return fingerprint(load_recipe(name).recipe)


class TestValidate:
    def test_good_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("validate", "good.toml", "still.toml", "flat.toml") == errors.OK
        out, err = capsys.readouterr()
        assert [line.split() for line in out.splitlines()] == [
            ["good.toml", prints("good.toml")[:12], "10", "steps", "trajectory_percentile·linear"],
            ["still.toml", prints("still.toml")[:12], "10", "steps", "trajectory_percentile·0.5"],
            ["flat.toml", prints("flat.toml")[:12], "10", "steps", "uniform"],
        ]
        assert err.startswith("flat.toml: warning: credit.schedule has no effect")

    @pytest.mark.parametrize(
        ("credit", "words"),
        [
            ('allocation = ["forking_tokens", "shuffled"]', "forking_tokens·linear + shuffled"),
            (
                'allocation = ["trajectory_percentile", "low_probability"]\n'
                "low_probability.magnitude = 0.3",
                "trajectory_percentile·linear + low_probability·0.3",
            ),
            ('schedule = { curve = "adaptive", target = 0.3 }', "trajectory_percentile·adaptive"),
        ],
    )
    def test_credit_in_a_word(
        self, credit: str, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("one.toml").write_text(f"{GOOD}[credit]\n{credit}\n")
        assert run("validate", "one.toml") == errors.OK
        assert capsys.readouterr().out.rstrip("\n").endswith(f"10 steps  {words}")

    def test_good_and_bad_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("validate", "bad.toml", "good.toml", "goods.toml") == errors.USAGE
        out, err = capsys.readouterr()
        assert out.startswith("good.toml")
        assert err.splitlines() == [
            "bad.toml:7: train.step: unknown key",
            "    did you mean steps?",
            "bad.toml:9: optim.lr: -1 is not a number above 0 or a table",
            "goods.toml: there is no such file",
            "    did you mean good.toml?",
            "error: 3 errors in the recipe",
        ]

    def test_a_shared_parent_is_blamed_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a.toml", "b.toml"):
            Path(name).write_text('extends = "bad.toml"\n')
        run("validate", "a.toml", "b.toml")
        assert capsys.readouterr().err.count("optim.lr") == 1

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("validate", "good.toml", "--json") == errors.OK
        assert json.loads(capsys.readouterr().out) == [
            {
                "file": "good.toml",
                "fingerprint": prints("good.toml"),
                "steps": 10,
                "credit": "trajectory_percentile·linear",
                "warnings": [],
            }
        ]

    def test_json_of_faults(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("validate", "good.toml", "bad.toml", "--json") == errors.USAGE
        out, err = capsys.readouterr()
        told = json.loads(out)["error"]
        assert [(fault["line"], fault["key"]) for fault in told["faults"]] == [
            (7, "train.step"),
            (9, "optim.lr"),
        ]
        assert err == ""


class TestShow:
    def test_toml_that_loads_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("show", "good.toml", "--set", "optim.lr=0.5", "--seed", "7") == errors.OK
        text = capsys.readouterr().out
        Path("again.toml").write_text(text)
        expected = load_recipe("good.toml", overrides=["optim.lr=0.5"], seed=7).recipe
        assert load_recipe("again.toml").recipe == expected
        assert tomllib.loads(text)["optim"]["lr"] == 0.5

    def test_origin(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("show", "still.toml", "--origin", "--set", "eval.every=3", "--seed", "1") == 0
        lines = capsys.readouterr().out.splitlines()
        found = {line.split()[0]: line.split()[1:] for line in lines}
        assert found["model.source"] == ["=", '"m"', "good.toml:2"]
        assert found["credit.schedule"] == ["=", "0.5", "still.toml:2"]
        assert found["eval.every"] == ["=", "3", "--set"]
        assert found["train.seed"] == ["=", "1", "--seed"]
        assert found["train.keep"] == ["=", "2", "default"]
        assert len({line.index(" = ") for line in lines}) == 1

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("show", "good.toml", "--json")
        shown = json.loads(capsys.readouterr().out)
        assert shown["fingerprint"] == prints("good.toml")
        assert shown["recipe"]["train"]["steps"] == 10
        assert "origin" not in shown
        run("show", "good.toml", "--json", "--origin")
        assert json.loads(capsys.readouterr().out)["origin"]["train.steps"] == "good.toml:6"

    def test_a_bare_word(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("show", "good.toml", "--set", "credit.schedule.curve=cosine") == errors.USAGE
        assert capsys.readouterr().err.splitlines() == [
            "--set: credit.schedule.curve: cosine is not a TOML value",
            "    write --set 'credit.schedule.curve=\"cosine\"'",
            "error: 1 error in the recipe",
        ]


class TestDiff:
    def test_only_what_differs(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("a.toml").write_text(
            'extends = "good.toml"\n[track]\nmlflow = false\n[model]\nrevision="r"\n'
        )
        assert run("diff", "good.toml", "a.toml") == errors.OK
        out = capsys.readouterr().out.splitlines()
        assert [line.split() for line in out[:-1]] == [
            ["good.toml", "a.toml"],
            ["track.mlflow", '"sqlite"', "false"],
            ["model.revision", "—", '"r"'],
        ]
        assert out[-1].startswith("2 keys differ, ")

    def test_equal_recipes(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("diff", "good.toml", "good.toml")
        assert capsys.readouterr().out.startswith("0 keys differ, ")

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("a.toml").write_text('extends = "good.toml"\ntrain.keep = 9\n')
        run("diff", "good.toml", "a.toml", "--json")
        found = json.loads(capsys.readouterr().out)
        assert found["differ"] == [{"key": "train.keep", "left": 2, "right": 9}]
        assert found["equal"] > 50


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == errors.OK
    assert json.loads(capsys.readouterr().out)["properties"]["extends"]["type"] == "string"
