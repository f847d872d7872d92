"""Asking: every sample once, whatever interrupts. Grading: numbers derived by hand."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tpcli.bench import evaluate
from tpcli.bench.evaluate import BLOCK, STRIDE, Asking, Sampling
from tpcli.bench.folder import EvaluationFolder, Generation, Place
from tpcli.bench.items import Item, Loaded, first
from tpcli.policy.scratch import character_tokenizer
from tpcli.reward.verify import Grader
from tpcli.types import Prompt, Rollout, Verdict

SAMPLING = Sampling(temperature=1.0, max_tokens=9, seed=5)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return character_tokenizer(LETTERS + "0123456789 \\{}<>/?", ["<think>"], context=99)


def items_of(count: int) -> list[Item]:
    """Questions of different lengths, not in order of length."""
    return [Item(f"id{i:02d}", q := "ab"[i % 2] * (i * 7 % 11 + 1), q, "7") for i in range(count)]


class Engine:
    """Answers from (seed, question, place in the group); remembers what it was asked.

    Attributes:
        fails_at: number of the call that is interrupted; None for none.
    """

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.calls: list[tuple[int, int, list[str]]] = []
        self.settings: list[dict[str, Any]] = []

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Callable[[int, int], None] | None = None,
        finished: Callable[[int, list[Rollout]], None] | None = None,
    ) -> list[list[Rollout]]:
        if self.fails_at == len(self.calls):
            raise KeyboardInterrupt
        names = [prompt.question.id for prompt in prompts]
        self.calls.append((seed, group_size, names))
        self.settings.append(
            {"temperature": temperature, "max": max_new_tokens, "top_p": top_p, "top_k": top_k}
        )
        if progress:
            progress(1, len(prompts) * group_size)
        return [[self._rollout(seed, name, j) for j in range(group_size)] for name in names]

    def _rollout(self, seed: int, name: str, j: int) -> Rollout:
        digest = zlib.crc32(f"{seed} {name} {j}".encode())
        tokens_L = torch.tensor([4 + digest // 26**k % 26 for k in range(4)])
        return Rollout(tokens_L, torch.zeros(4), finished=digest % 2 == 0)

    def asked(self) -> Counter[tuple[int, str, int]]:
        """How often each (seed, question, place in the group) was asked for."""
        return Counter(
            (seed, name, j)
            for seed, size, names in self.calls
            for name in names
            for j in range(size)
        )


class Case:
    """One evaluation in a folder of its own."""

    def __init__(self, base: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item]) -> None:
        self.items, self.tokenizer = items, tokenizer
        self.folder = EvaluationFolder(base, "tiny", {})
        self.folder.path.mkdir(parents=True)
        asked = evaluate.prompts_of(items, tokenizer, Asking(), max_prompt_tokens=50)
        self.prompts = asked.prompts
        self.told: list[tuple[int, int, int]] = []

    def draw(self, engine: Engine, *, n: int, rows: int = 24, limit: int | None = None) -> None:
        wanted = {item.id for item in first(Loaded((*self.items,), "", ""), limit)}
        evaluate.generate(
            self.folder,
            [prompt for prompt in self.prompts if prompt.question.id in wanted],
            engine,
            self.tokenizer,
            SAMPLING,
            n=n,
            rows=rows,
            progress=lambda *told: self.told.append(told),
        )

    def stored(self) -> dict[Place, Generation]:
        """What is there, after a look that every line is another place."""
        found = self.folder.generations()
        lines = (self.folder.path / "generations.jsonl").read_text().splitlines()
        assert len(lines) == len(found)
        return found


@pytest.fixture
def case(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Case:
    return Case(tmp_path / "evals", tokenizer, items_of(10))


@pytest.fixture
def quiet(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Case:
    """The same again, for what nothing disturbs."""
    return Case(tmp_path / "quiet", tokenizer, items_of(10))


class TestGenerate:
    def test_every_sample_once_with_the_settings_asked_for(self, case: Case) -> None:
        engine = Engine()
        case.draw(engine, n=8)
        assert case.stored().keys() == {(item.id, j) for item in case.items for j in range(8)}
        assert engine.settings[0] == {"temperature": 1.0, "max": 9, "top_p": 0.95, "top_k": 20}
        assert {(seed, size) for seed, size, _ in engine.calls} == {(5, 8)}
        assert [len(names) for _, _, names in engine.calls] == [3, 3, 3, 1]
        assert max(engine.asked().values()) == 1

    def test_what_is_stored_is_what_the_engine_said(self, case: Case) -> None:
        case.draw(Engine(), n=3)
        one = case.stored()["id04", 2]
        said = Engine()._rollout(5, "id04", 2)
        text = "".join(LETTERS[token - 4] for token in said.tokens_L.tolist())
        assert one == Generation("id04", 2, text, 4, said.finished, opened=False)

    @pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 7])
    def test_interrupted_anywhere_it_ends_as_if_it_had_not_been(
        self, case: Case, quiet: Case, calls: int
    ) -> None:
        undisturbed = Engine()
        quiet.draw(undisturbed, n=16)
        assert len(undisturbed.calls) == 8
        before, after = Engine(fails_at=calls), Engine()
        with pytest.raises(KeyboardInterrupt):
            case.draw(before, n=16)
        case.draw(after, n=16)
        assert case.stored() == quiet.stored()
        assert max((before.asked() + after.asked()).values()) == 1
        # The batches too are those of the undisturbed run: their widths decide the last bits.
        assert before.calls + after.calls == undisturbed.calls

    def test_more_samples_are_others_and_the_first_stay(self, case: Case, quiet: Case) -> None:
        engine = Engine()
        case.draw(engine, n=8)
        eight = case.stored()
        more = Engine()
        case.draw(more, n=16)
        assert {(seed, size) for seed, size, _ in more.calls} == {(5 + STRIDE, BLOCK)}
        sixteen = case.stored()
        assert {place: sixteen[place] for place in eight} == eight
        assert any(sixteen[i.id, 0].text != sixteen[i.id, 8].text for i in case.items)
        quiet.draw(Engine(), n=16)
        assert sixteen == quiet.stored()

    def test_a_part_of_a_block_is_filled_up_and_kept(self, case: Case) -> None:
        case.draw(Engine(), n=3)
        three = case.stored()
        case.draw(Engine(), n=5)
        assert case.stored().keys() == {(item.id, j) for item in case.items for j in range(5)}
        assert {place: case.stored()[place] for place in three} == three

    def test_nothing_missing_asks_nothing(self, case: Case) -> None:
        case.draw(Engine(), n=8)
        case.draw(Engine(fails_at=0), n=8)
        case.draw(Engine(fails_at=0), n=2)
        assert evaluate.missing(case.folder, case.items, 8) == []
        assert evaluate.missing(case.folder, case.items[:1], 9) == [("id00", 8)]

    def test_fewer_rows_than_a_block_ask_one_question_at_a_time(self, case: Case) -> None:
        engine = Engine()
        case.draw(engine, n=8, rows=3)
        assert [len(names) for _, _, names in engine.calls] == [1] * 10
        assert len(case.stored()) == 80

    def test_prompts_of_like_length_go_together(self, case: Case) -> None:
        engine = Engine()
        case.draw(engine, n=8)
        length = {p.question.id: len(p.tokens) for p in case.prompts}
        asked = [length[name] for _, _, names in engine.calls for name in names]
        assert asked == sorted(asked)
        assert asked != [len(p.tokens) for p in case.prompts]

    def test_limits_are_nested_and_share_their_responses(self, case: Case) -> None:
        case.draw(Engine(), n=8, limit=4)
        four = case.stored()
        assert {item for item, _ in four} == {"id00", "id01", "id02", "id03"}
        more = Engine()
        case.draw(more, n=8, limit=6)
        assert {name for _, _, names in more.calls for name in names} == {"id04", "id05"}
        assert {place: case.stored()[place] for place in four} == four

    def test_progress_counts_what_was_there(self, case: Case) -> None:
        case.draw(Engine(), n=8, limit=4)
        case.told.clear()
        case.draw(Engine(), n=8)
        # 32 stored; the first batch has 1 done inside the engine, then 8 or 16 new ones.
        assert case.told[0] == (32, 80, 0)
        assert case.told[1] == (33, 80, 0)
        assert case.told[-1] == (80, 80, 48 * 4)
        assert [told[0] for told in case.told] == sorted(told[0] for told in case.told)


def test_limits_choose_by_id_and_keep_the_order() -> None:
    items = tuple(Item(name, "q", "q", "1") for name in ("d", "a", "c", "b"))
    loaded = Loaded(items, "", "")
    assert [item.id for item in first(loaded, 2)] == ["a", "b"]
    assert [item.id for item in first(loaded, 3)] == ["a", "c", "b"]
    assert first(loaded, 4) == first(loaded, None) == first(loaded, 9) == items


class TestPrompts:
    def test_the_benchmark_asks_unless_the_recipe_does(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        items = [Item("a", "bare", "bare and told", "1")]

        def text(asking: Asking) -> str:
            (prompt,) = evaluate.prompts_of(items, tokenizer, asking, max_prompt_tokens=90).prompts
            return str(tokenizer.decode([*prompt.tokens][1:]))

        assert text(Asking()) == "bare and told"
        own = Asking(template="so {question}?", examples=(("x", " y "),))
        assert text(own) == "so x? y so bare?"

    def test_a_prompt_that_opens_thinking_is_stored_so(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        case = Case(tmp_path, tokenizer, [Item("a", "q", "q<think>", "7")])
        case.draw(Engine(), n=1)
        assert case.stored()["a", 0].opened


def stored(folder: EvaluationFolder, answers: dict[str, list[str]], **facts: Any) -> list[Item]:
    """Store responses: per question, one text a sample. "..." at the end is one cut off."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.add(
        [
            Generation(
                item, j, text, tokens=10 * (j + 1), finished=not text.endswith("..."), opened=False
            )
            for item, texts in answers.items()
            for j, text in enumerate(texts)
        ]
    )
    return [Item(item, "q", "q", "1/2") for item in answers]


ANSWERS = {
    # right, right by value, wrong, no box: c = 2
    "a": [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{3}", "it is 1/2"],
    # cut off after the box, wrong three times alike: c = 0
    "b": [r"\boxed{1/2} and...", r"\boxed{4}", r"\boxed{4.0}", r"\boxed{4}"],
    # the answer inside an unclosed thought counts for nothing; then right, wrong, wrong: c = 1
    "c": [r"<think>\boxed{1/2}", r"<think>no</think>\boxed{\frac{1}{2}}", "", r"\boxed{9}"],
}


class TestScores:
    @pytest.fixture
    def found(self, tmp_path: Path) -> evaluate.Summary:
        folder = EvaluationFolder(tmp_path, "tiny", {})
        items = stored(folder, ANSWERS)
        with Grader("number") as grader:
            verdicts = evaluate.grade(folder, items, grader, n=4, kind="number")
        return evaluate.summarise(items, folder.generations(), verdicts, n=4)

    def test_counts(self, found: evaluate.Summary) -> None:
        assert found.correct == {"a": 2, "b": 0, "c": 1}
        assert found.n == 4

    def test_avg(self, found: evaluate.Summary) -> None:
        """Shares .5, 0, .25: mean .25, sd .25."""
        assert found.avg.value == pytest.approx(0.25)
        assert found.avg.se == pytest.approx(0.25 / math.sqrt(3))

    def test_pass_at_k(self, found: evaluate.Summary) -> None:
        """Of C(4, 2) = 6 pairs, 5 have one of a's two right ones, 3 have c's one."""
        assert found.passed.keys() == {1, 2, 4}
        assert found.passed[1].value == pytest.approx(0.25)
        assert found.passed[2].value == pytest.approx((5 / 6 + 0 + 3 / 6) / 3)
        assert found.passed[4].value == pytest.approx(2 / 3)

    def test_maj(self, found: evaluate.Summary) -> None:
        """a: 1/2 and 0.5 are two votes, 3 is one: right. b: wrong. c: 1/2 and 9 tie: a half."""
        assert found.maj.value == pytest.approx((1 + 0 + 0.5) / 3)

    def test_shares(self, found: evaluate.Summary) -> None:
        assert found.shares == pytest.approx(
            {
                "correct": 3 / 12,
                "wrong": 5 / 12,
                "no_answer": 2 / 12,
                "unfinished": 2 / 12,
                "timeout": 0,
                "crash": 0,
            }
        )
        assert found.truncated == pytest.approx(1 / 12)
        assert found.tokens == pytest.approx(25)
        assert found.reward == pytest.approx(3 / 12)

    def test_a_part_of_a_point_counts_in_the_reward_alone(self) -> None:
        items = [Item("a", "q", "q", "1")]
        drawn = {("a", j): Generation("a", j, "", 1, True, False) for j in range(2)}
        verdicts = {("a", 0): Verdict(0.5, "wrong"), ("a", 1): Verdict(1.0, "correct")}
        found = evaluate.summarise(items, drawn, verdicts, n=2)
        assert (found.avg.value, found.reward) == (0.5, 0.75)

    def test_json_has_everything(self, found: evaluate.Summary) -> None:
        record = found.record()
        assert record["avg"].keys() == {"value", "se", "low", "high"}
        assert record["correct"] == found.correct
        assert record["passed"][4]["value"] == found.passed[4].value


class Counting:
    """A grader that remembers what it was given."""

    def __init__(self) -> None:
        self.real = Grader("number")
        self.texts: list[str] = []

    def grade(self, answers: Sequence[Any]) -> list[Verdict]:
        self.texts += [answer.text for answer in answers]
        return self.real.grade(answers)


class TestGrade:
    def grade(self, folder: EvaluationFolder, items: list[Item], **more: Any) -> list[str]:
        """Grade two samples a question; what the grader was given."""
        grader: Any = Counting()
        evaluate.grade(folder, items, grader, n=2, kind=more.pop("kind", "number"), **more)
        return [*grader.texts]

    def test_whole_responses_once(self, tmp_path: Path) -> None:
        folder = EvaluationFolder(tmp_path, "tiny", {})
        items = stored(folder, ANSWERS)
        asked = [text for texts in ANSWERS.values() for text in texts[:2]]
        assert self.grade(folder, items[:2]) == asked[:4]
        assert self.grade(folder, items) == asked[4:]
        assert self.grade(folder, items) == []
        assert self.grade(folder, items, again=True) == asked
        assert self.grade(folder, items, kind="other") == asked

    @pytest.mark.parametrize("status", ["timeout", "crash"])
    def test_what_could_not_be_judged_is_tried_again(self, tmp_path: Path, status: Any) -> None:
        folder = EvaluationFolder(tmp_path, "tiny", {})
        items = stored(folder, {"a": [r"\boxed{1/2}", r"\boxed{3}"]})
        folder.add_verdicts("number", {("a", 0): Verdict(0.0, status)})
        folder.add_verdicts("number", {("a", 1): Verdict(0.0, "wrong", "3", "3")})
        assert self.grade(folder, items) == [r"\boxed{1/2}"]
        assert folder.verdicts("number")["a", 0].status == "correct"
