"""Whole runs of methods beyond the default: each from the recipe to the metrics it must leave."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.bench import Bench, metrics, repeatable

pytestmark = pytest.mark.slow


def extended(bench: Bench, text: str) -> None:
    (bench.folder / "method.toml").write_text(f'extends = "small.toml"\n{text}')


def responses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "responses.jsonl").read_text().splitlines()]


def test_expert_prefixes_are_given_graded_and_taken_away(bench: Bench) -> None:
    """From data to rollout: solution tokens stand after the prompt, fewer at every step."""
    extended(
        bench,
        """
        [credit]
        allocation = ["expert_prefix", "trajectory_percentile"]
        [credit.expert_prefix.magnitude]
        curve = "linear"
        initial = 0.9
        end = 1.0
        """,
    )
    bench.type("train", "method.toml")
    lines, told = metrics(bench.run), responses(bench.run)
    given = [line["schedule/expert_prefix"] for line in lines[1:]]
    assert given == pytest.approx([0.75, 0.6, 0.45, 0.3, 0.15, 0.0])
    assert lines[1]["schedule/trajectory_percentile"] > 0
    # Nearly all of the answer is given at first, so the shortest responses come first.
    assert lines[1]["length/mean"] < lines[6]["length/mean"] - 3
    for line in told:
        prompt, prefix = line["prompt_ids"], line["prefix"]
        assert (prefix == 0) == (line["step"] == 6)
        # The given part, then the model's own, is what was graded.
        own = "".join(token for token in line["tokens"] if not token.startswith("<"))
        assert line["response"].endswith(own)
        assert (len(line["response"]) > len(own)) == (prefix > 0)
        assert len(prompt) > prefix
        assert len(line["weight"]) == len(line["ids"])
    # Held-out questions are asked without help.
    assert lines[0]["eval/sampled"] < 1


def test_an_adaptive_schedule_goes_on_after_kill_9_bit_for_bit(bench: Bench, cache: Path) -> None:
    schedule = """
        [credit.schedule]
        curve = "adaptive"
        signal = "entropy"
        target = 0.001
        gain = 5.0
        max_change = 0.2
        smoothing = 0.5
        end = 1.0
        """
    extended(bench, schedule)
    process = bench.start("train", "method.toml")
    bench.until_step(3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    bench.type("resume", bench.run.name)
    whole = Bench(bench.folder / "whole", cache)
    extended(whole, schedule)
    whole.type("train", "method.toml")
    assert repeatable(bench.run) == repeatable(whole.run)
    lines = metrics(whole.run)
    magnitudes = [line["schedule/magnitude"] for line in lines[1:]]
    # Entropy is over the target throughout, so the window opens as fast as it may.
    assert all(line["entropy/all"] > 0.0012 for line in lines[1:])
    assert magnitudes == pytest.approx([0.99 * share for share in (1, 0.8, 0.6, 0.4, 0.2, 0)])
    assert [line["schedule/progress"] for line in lines[1:]] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    )


def test_refills_masks_and_corrections_on_two_processes(bench: Bench) -> None:
    """Everything of DAPO, a nucleus, and the sampler's bias weighed, across processes."""
    extended(
        bench,
        """
        [rollout]
        temperature = 2.5
        top_p = 0.9
        max_new_tokens = 11
        [rollout.dynamic_sampling]
        rounds = 2
        [reward.overlong]
        mask = true
        buffer = 4
        penalty = 0.5
        [credit]
        allocation = ["forking_tokens", "shuffled"]
        advantage = "batch_std"
        [loss]
        objective = "cispo"
        dual_clip = false
        [loss.correction]
        kind = "truncate"
        level = "token"
        high = 2.0
        [launch]
        processes = 2
        cpu = true
        """,
    )
    bench.type("train", "method.toml")
    lines = metrics(bench.run)[1:]
    assert len(lines) == 6
    for line in lines:
        assert line["sampling/responses"] >= 16
        assert line["sampling/responses"] % 4 == 0
        # A nucleus makes the sampler's probability the larger one.
        assert 0.5 < line["correction/weight"] < 1
        # About half of the responses are cut: they learn nothing, and each costs its penalty.
        assert 0 < line["length/masked"] == line["length/truncated"] < 1
        penalty = line["verdict/correct"] - line["reward/mean"]
        assert 0.5 * line["length/truncated"] <= penalty <= 0.5
        assert line["gap/mean"] > 1e-3
    assert sum(line["sampling/refilled_groups"] for line in lines) > 0
    asked_again = [line for line in lines if line["sampling/responses"] > 16]
    assert asked_again
    quiet = sum(line["reward/groups_without_signal"] for line in lines) / 6
    assert quiet < 0.5
    told = responses(bench.run)
    cut = [line for line in told if line["status"] == "unfinished"]
    whole = [line for line in told if line["status"] != "unfinished"]
    assert cut
    assert whole
    for line in cut:
        assert len(line["ids"]) == 11
        assert not line["learns"]
        assert set(line["weight"]) == {0.0}
    for line in whole:
        assert line["learns"]
        assert any(line["weight"])


def test_tokens_are_measured_in_every_third_step_and_nothing_else_changes(bench: Bench) -> None:
    """The same weights after every step; entropy, KL and gap where they are measured alone."""
    bench.type("train", "small.toml")
    first = bench.run
    extended(bench, "[track]\ntokens_every = 3\n")
    bench.type("train", "method.toml")
    (second,) = {*bench.runs()} - {first}
    some = metrics(second)
    measured = {"entropy", "kl", "gap"}
    assert [line["step"] for line in some if "entropy/all" in line] == [1, 3, 6]
    for line, other in zip(repeatable(first), repeatable(second), strict=True):
        left = {key for key in line if key.split("/")[0] in measured}
        if "entropy/all" in other or line["step"] == 0:
            left = set()
        assert line.keys() - other.keys() == left
        assert all(line[key] == pytest.approx(other[key], rel=1e-4) for key in _numbers(other))
    told = {line["step"]: "entropy" in line for line in responses(second)}
    assert told == {1: True, 2: False, 3: True, 4: False, 5: False, 6: True}
    # What looks at the run copes with the gaps.
    run = second.name
    for command in (("analyse", run), ("runs", "show", run), ("compare", first.name, run)):
        bench.type(*command)
    replayed = bench.type("replay", run, "--set", 'credit.allocation="forking_tokens"')
    assert "step" in replayed.stdout


def _numbers(line: dict[str, Any]) -> list[str]:
    return [key for key, value in line.items() if isinstance(value, float)]
