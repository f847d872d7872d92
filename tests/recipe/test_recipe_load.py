"""Reading: parents, overrides, where every key came from, and files that cannot be read."""

import os
from pathlib import Path

import pytest

from tpcli.errors import USAGE, Fault, RecipeError
from tpcli.recipe.load import load_recipe
from tpcli.recipe.scalar import Schedule

SMALL = """\
[model]
source = "Qwen/Qwen3-4B"

[data]
source = "rg:chain_sum"

[train]
steps = 10
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that sources are short names."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(name: str, text: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def faults(name: str, *overrides: str, seed: int | None = None) -> tuple[Fault, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides=overrides, seed=seed)
    assert caught.value.exit_code == USAGE
    return caught.value.faults


def only(name: str, *overrides: str) -> Fault:
    found = faults(name, *overrides)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.usefixtures("here")
class TestFiles:
    def test_a_small_recipe(self) -> None:
        loaded = load_recipe(write("a.toml", SMALL))
        assert loaded.path == Path("a.toml")
        assert loaded.text == SMALL.encode()
        assert loaded.recipe.train.steps == 10
        assert loaded.warnings == ()
        assert loaded.origin["train.steps"] == "a.toml:8"
        assert loaded.origin["train.updates"] == "default"

    def test_tables_merge_and_arrays_replace(self) -> None:
        write("base.toml", SMALL + "seed = 3\n[optim]\nbetas = [0.8, 0.9]\nlr = 1e-3\n")
        loaded = load_recipe(
            write(
                "a.toml", 'extends = "base.toml"\n[optim]\nbetas = [0.5, 0.6]\n[train]\nseed = 4\n'
            )
        )
        assert loaded.recipe.optim.betas == (0.5, 0.6)
        assert loaded.recipe.optim.lr == 1e-3
        assert (loaded.recipe.train.seed, loaded.recipe.train.steps) == (4, 10)
        assert loaded.origin["optim.betas"] == "a.toml:3"
        assert loaded.origin["optim.lr"] == "base.toml:12"
        assert loaded.origin["train.seed"] == "a.toml:5"
        assert loaded.text.startswith(b"extends")

    def test_a_parent_is_relative_to_its_child_and_may_have_a_parent(self) -> None:
        write("top.toml", SMALL)
        write("a/middle.toml", 'extends = "../top.toml"\n[train]\nsteps = 20\nkeep = 9\n')
        loaded = load_recipe(
            write("b/leaf.toml", 'extends = "../a/middle.toml"\ntrain.steps = 30\n')
        )
        assert (loaded.recipe.train.steps, loaded.recipe.train.keep) == (30, 9)
        assert loaded.origin["train.keep"] == "a/middle.toml:4"
        assert loaded.origin["data.source"] == "top.toml:5"

    def test_a_number_replaces_a_schedule_and_the_other_way_round(self) -> None:
        write("table.toml", SMALL + '[credit.schedule]\ncurve = "cosine"\nend = 0.5\n')
        write("number.toml", SMALL + "[credit]\nschedule = 0.25\n")
        number = load_recipe(write("a.toml", 'extends = "table.toml"\ncredit.schedule = 0.5\n'))
        table = load_recipe(
            write("b.toml", 'extends = "number.toml"\n[credit.schedule]\nend = 0.6\n')
        )
        merged = load_recipe(
            write("c.toml", 'extends = "table.toml"\n[credit.schedule]\nstart = 0.1\n')
        )
        assert number.recipe.credit.schedule == 0.5
        assert table.recipe.credit.schedule == Schedule(end=0.6)
        assert merged.recipe.credit.schedule == Schedule(curve="cosine", start=0.1, end=0.5)
        assert number.origin["credit.schedule"] == "a.toml:2"
        assert "credit.schedule.end" not in number.origin
        assert table.origin["credit.schedule.curve"] == "default"
        assert merged.origin["credit.schedule.end"] == "table.toml:11"

    @pytest.mark.parametrize(
        ("parent", "child", "key"),
        [
            ('[credit]\nadvantage = "pass_at_k"\nk = 4\n', 'advantage = "gpg"\nk = false', "k"),
            ("[warmup]\nsteps = 3\n", "warmup = false", "warmup"),
            ("[credit.forking_tokens]\nmagnitude = 0.8\n", "forking_tokens.magnitude = false", ""),
            ("[credit.schedule]\ncurve = 'adaptive'\ntarget = 1\n", "schedule = 0.5", ""),
        ],
    )
    def test_false_takes_back_what_a_parent_set(self, parent: str, child: str, key: str) -> None:
        write("base.toml", SMALL + parent)
        head = "" if key == "warmup" else "[credit]\n"
        recipe = load_recipe(write("a.toml", f'extends = "base.toml"\n{head}{child}\n')).recipe
        assert recipe.warmup is None
        assert recipe.credit.k is None
        assert recipe.credit.forking_tokens.magnitude is None
        assert load_recipe("base.toml").recipe != recipe

    def test_false_can_be_typed_and_taken_back(self) -> None:
        name = write("a.toml", SMALL + "horizon = 20\n[rollout.dynamic_sampling]\nrounds = 5\n")
        off = load_recipe(name, overrides=["train.horizon=false", "rollout.dynamic_sampling=false"])
        assert off.recipe.train.horizon is None
        assert off.recipe.rollout.dynamic_sampling is None
        assert "rollout.dynamic_sampling.rounds" not in off.origin
        on = load_recipe(
            name, overrides=["rollout.dynamic_sampling=false", "rollout.dynamic_sampling.rounds=2"]
        )
        assert on.recipe.rollout.dynamic_sampling is not None
        assert on.recipe.rollout.dynamic_sampling.rounds == 2

    def test_a_key_that_is_true_or_false_keeps_its_false(self) -> None:
        text = SMALL.replace('"rg:chain_sum"', '"rg:chain_sum"\nthinking = false')
        assert load_recipe(write("a.toml", text)).recipe.data.thinking is False

    def test_files_and_folders_start_from_the_recipe_that_names_them(self, here: Path) -> None:
        write("base/base.toml", '[model]\nsource = "./weights"\n[data]\nsource = "q.jsonl"\n')
        child = write("a.toml", 'extends = "base/base.toml"\n[train]\nsteps = 9\n')
        recipe = load_recipe(child).recipe
        assert recipe.model.source == str(here / "base" / "weights")
        assert recipe.data.source == str(here / "base" / "q.jsonl")
        recipe = load_recipe(
            child, overrides=['model.source="../w"', 'data.source="/d/q.parquet"']
        ).recipe
        assert recipe.model.source == str(here.parent / "w")
        assert recipe.data.source == "/d/q.parquet"

    @pytest.mark.parametrize("source", ["hf:a/b.jsonl", "~/q.jsonl", "running_sum"])
    def test_other_sources_stay_as_they_are(self, source: str) -> None:
        text = SMALL.replace("rg:chain_sum", source)
        assert load_recipe(write("a/a.toml", text)).recipe.data.source == source

    def test_a_byte_order_mark_and_windows_line_ends(self) -> None:
        raw = b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()
        loaded = load_recipe(write("a.toml", raw))
        assert loaded.origin["train.steps"] == "a.toml:8"
        assert loaded.text == raw

    def test_warnings_are_kept(self) -> None:
        text = SMALL + '[credit]\nallocation = "uniform"\nschedule = 0.5\n'
        assert len(load_recipe(write("a.toml", text)).warnings) == 1


@pytest.mark.usefixtures("here")
class TestUnreadable:
    def test_missing(self) -> None:
        write("recipes/maths.toml", SMALL)
        fault = only("recipes/math.toml")
        assert (fault.source, fault.line) == ("recipes/math.toml", None)
        assert fault.message == "there is no such file"
        assert fault.hint == "did you mean recipes/maths.toml?"

    def test_a_folder(self) -> None:
        assert "folder" in only(".").message

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_no_permission(self) -> None:
        Path(write("a.toml", SMALL)).chmod(0)
        assert "cannot be read" in only("a.toml").message

    def test_a_missing_parent_is_blamed_on_the_line_that_names_it(self) -> None:
        fault = only(write("a.toml", '# c\nextends = "b.toml"\n'))
        assert (fault.source, fault.line, fault.key) == ("a.toml", 2, "extends")
        assert fault.message == "b.toml: there is no such file"

    @pytest.mark.parametrize("parent", ["loop.toml", "\\u0000", "x" * 5_000, "a.toml/b.toml", "."])
    def test_a_parent_that_no_file_can_be(self, parent: str) -> None:
        Path("loop.toml").symlink_to("loop.toml")
        fault = only(write("a.toml", f'extends = "{parent}"\n'))
        assert (fault.source, fault.line, fault.key) == ("a.toml", 1, "extends")

    def test_extends_must_be_text(self) -> None:
        fault = only(write("a.toml", 'extends = ["b.toml"]\n' + SMALL))
        assert (fault.line, fault.message) == (1, '["b.toml"] is not the name of a file')

    def test_a_circle_is_shown(self) -> None:
        write("a.toml", 'extends = "b.toml"\n')
        write("b.toml", '\nextends = "./c/../a.toml"\n')
        fault = only("a.toml")
        assert (fault.source, fault.line) == ("b.toml", 2)
        assert "a.toml -> b.toml -> a.toml" in fault.message

    def test_a_file_that_extends_itself(self) -> None:
        assert "a.toml -> a.toml" in only(write("a.toml", 'extends = "a.toml"\n')).message

    def test_not_utf8(self) -> None:
        fault = only(write("a.toml", SMALL.encode() + b"# caf\xe9\n"))
        assert fault.line == 9
        assert fault.message == f"not UTF-8: byte {len(SMALL) + 5} is 0xe9"

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("[model\n", 1, "Expected ']'"),
            ("\n\na = linear\n", 3, "Invalid value, at column 5"),
            ("a = 1\nb\n", 2, "Expected '=' after a key"),
            ('a = 1\nb = """\n\nx', 4, "end of document"),
            ("a = 1\na = 2\n", 2, "the key is here for the second time"),
            ("[t.u]\n[t.u]\n", 2, "the table [t.u] is here for the second time"),
            ("a = 2021-02-30\n", 1, "Invalid date"),
            (f"a = {'9' * 5_000}\n", None, "digit"),
            (f"a = {'[' * 5_000}\n", None, "too deep"),
        ],
    )
    def test_broken_toml(self, text: str, line: int | None, message: str) -> None:
        fault = only(write("a.toml", text))
        assert (fault.source, fault.line) == ("a.toml", line)
        assert message in fault.message
        assert "at line" not in fault.message  # said once, in front


@pytest.mark.usefixtures("here")
class TestTyped:
    def test_precedence(self) -> None:
        write("base.toml", SMALL + "seed = 1\nkeep = 1\nhorizon = 100\nupdates = 4\n")
        write("a.toml", 'extends = "base.toml"\n[train]\nseed = 2\nkeep = 2\nhorizon = 200\n')
        loaded = load_recipe(
            "a.toml", overrides=["train.seed=3", "train.keep=3", "train.keep=4"], seed=5
        )
        train = loaded.recipe.train
        assert (train.seed, train.keep, train.horizon, train.updates) == (5, 4, 200, 4)
        keys = ("train.seed", "train.keep", "train.horizon", "train.updates", "train.save_every")
        assert [loaded.origin[key] for key in keys] == [
            "--seed",
            "--set",
            "a.toml:5",
            "base.toml:12",
            "default",
        ]

    def test_seed_zero_counts(self) -> None:
        assert load_recipe(write("a.toml", SMALL + "seed = 4\n"), seed=0).recipe.train.seed == 0

    @pytest.mark.parametrize(
        "schedule", ["", "[credit.schedule]\ncurve = 'gamma'\n", "credit.schedule = 1\n"]
    )
    def test_a_part_of_a_schedule(self, schedule: str) -> None:
        name = write("a.toml", schedule + SMALL if "=" in schedule[:18] else SMALL + schedule)
        loaded = load_recipe(name, overrides=['credit.schedule.curve="cosine"'])
        assert loaded.recipe.credit.schedule == Schedule(curve="cosine")
        assert loaded.origin["credit.schedule.curve"] == "--set"

    def test_values(self) -> None:
        loaded = load_recipe(
            write("a.toml", SMALL),
            overrides=[
                "data.config={min_terms=2}",
                'data.template="a=b {question}"',
                "optim.betas=[0.1, 0.2]",
                "loss.dual_clip=false",
                "optim . lr = 1e-3 ",
            ],
        )
        assert loaded.recipe.data.config == {"min_terms": 2}
        assert loaded.recipe.data.template == "a=b {question}"
        assert loaded.recipe.optim.betas == (0.1, 0.2)
        assert loaded.recipe.loss.dual_clip is None
        assert loaded.recipe.optim.lr == 1e-3
        assert loaded.origin["data.config.min_terms"] == "--set"

    @pytest.mark.parametrize(
        ("override", "message", "hint"),
        [
            (
                "credit.schedule.curve=cosine",
                "cosine is not a TOML value",
                "write --set 'credit.schedule.curve=\"cosine\"'",
            ),
            ("launch.cpu=True", "True is not a TOML value", "write --set launch.cpu=true"),
            ("eval.temperature=.5", ".5 is not a TOML value", "write --set eval.temperature=0.5"),
            ("train.seed", "has no value", "write --set train.seed=VALUE"),
            ("train.seed=", "has no value", "write --set train.seed=VALUE"),
            ("=3", '"" is not a key', "write --set table.key=VALUE, as in --set train.steps=10"),
            ("train seed=3", '"train seed" is not a key', None),
            ("train.seed=1\nkeep = 3", "is not a TOML value", None),
        ],
    )
    def test_what_cannot_be_read(self, override: str, message: str, hint: str | None) -> None:
        fault = only(write("a.toml", SMALL), override)
        assert (fault.source, fault.line) == ("--set", None)
        assert message in fault.message
        assert hint in (None, fault.hint)

    def test_a_wrong_key_or_value_is_blamed_on_what_was_typed(self) -> None:
        found = faults(write("a.toml", SMALL), "optim.rl=1", "train.steps=0", seed=-1)
        assert {(f.source, f.line, f.key) for f in found} == {
            ("--set", None, "optim.rl"),
            ("--set", None, "train.steps"),
            ("--seed", None, "train.seed"),
        }

    def test_faults_of_the_file_and_of_what_was_typed_come_together(self) -> None:
        found = faults(write("a.toml", SMALL + "sed = 1\n"), "optim.schedule=cosine", "x.y=1")
        assert [(f.source, f.key) for f in found] == [
            ("a.toml", "train.sed"),
            ("--set", "x"),
            ("--set", "optim.schedule"),
        ]
