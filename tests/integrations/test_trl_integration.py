"""A scheduled GRPOTrainer takes the steps that tpcli's own loss would, and is otherwise TRL's."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.grpo_parts import Part, Recorder, make_trainer, plain_step, small_model
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from tpcli.credit.allocation import focus_weight, suffix_weight
from tpcli.errors import UsageError
from tpcli.integrations.trl import schedule_credit

MAGNITUDES = (0.8, 0.4, 0.0)  # of steps 1, 2 and 3


def _scheduled(folder: Path, **settings: Any) -> tuple[GRPOTrainer, Recorder]:
    """Trained for three steps, at the MAGNITUDES."""
    trainer, recorder = make_trainer(folder, **settings)
    points = [(0.0, 1.0), (1 / 3, 0.8), (2 / 3, 0.4), (1.0, 0.0)]
    schedule_credit(trainer, curve="piecewise", points=points, end=1.0)
    trainer.train()
    return trainer, recorder


def _logged(trainer: GRPOTrainer, key: str) -> list[float]:
    return [line[key] for line in trainer.state.log_history if key in line]


def _lengths(recorder: Recorder) -> set[int]:
    return {int(n) for parts in recorder.parts for p in parts for n in p["completion_mask"].sum(-1)}


def _selected(parts: list[Part], magnitude: float) -> float:
    return sum(
        float(suffix_weight(p["completion_mask"].bool(), start=magnitude).sum()) for p in parts
    )


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "dr_grpo"])
def test_a_step_is_that_of_our_own_loss(loss_type: str, tmp_path: Path) -> None:
    trainer, recorder = _scheduled(tmp_path, loss_type=loss_type)
    assert len(_lengths(recorder)) > 2  # else every mean is the same
    logged = _logged(trainer, "loss")
    for step, magnitude in enumerate(MAGNITUDES):
        loss, gradient = plain_step(
            recorder.weights[step], recorder.parts[step], magnitude=magnitude, loss_type=loss_type
        )
        assert gradient.norm() > 1e-2
        torch.testing.assert_close(recorder.gradients[step], gradient, rtol=1e-4, atol=1e-6)
        assert logged[step] == pytest.approx(loss, abs=1e-5)


def test_a_sequence_ratio_is_that_of_the_credited_tokens(tmp_path: Path) -> None:
    """GSPO, where the context would leak into the ratio; the second step is off-policy."""
    settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2}
    _, recorder = _scheduled(tmp_path, learning_rate=0.05, **settings)
    for step in (0, 1):
        _, gradient = plain_step(
            recorder.weights[step],
            recorder.parts[step],
            magnitude=MAGNITUDES[step],
            loss_type="grpo",
            objective="gspo",
        )
        torch.testing.assert_close(recorder.gradients[step], gradient, rtol=1e-4, atol=1e-6)


def test_dapo_divides_by_the_generation_batch_as_trl_does(tmp_path: Path) -> None:
    """Two optimiser steps a generation: each divides by half of the tokens credited at its own m.

    The responses of the second step are the same generation's, at another magnitude.
    """
    _, recorder = _scheduled(tmp_path, loss_type="dapo", steps_per_generation=4)
    generation = recorder.parts[0] + recorder.parts[1]
    for step in (0, 1):
        half = _selected(generation, MAGNITUDES[step]) / 2
        _, gradient = plain_step(
            recorder.weights[step],
            recorder.parts[step],
            magnitude=MAGNITUDES[step],
            loss_type="dapo",
            selected=half,
        )
        torch.testing.assert_close(recorder.gradients[step], gradient, rtol=1e-4, atol=1e-6)


def test_a_reused_batch_follows_the_magnitude_of_its_own_step(tmp_path: Path) -> None:
    _, recorder = _scheduled(tmp_path, loss_type="dapo", num_iterations=2)
    first, second = recorder.parts[0], recorder.parts[1]
    assert torch.equal(first[0]["completion_ids"], second[0]["completion_ids"])
    _, gradient = plain_step(recorder.weights[1], second, magnitude=MAGNITUDES[1], loss_type="dapo")
    torch.testing.assert_close(recorder.gradients[1], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_divide_by_the_tokens_of_both(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_trainers.py")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
            *(str(script), str(tmp_path)),
        ],
        check=True,
        capture_output=True,
        timeout=240,
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    parts = [part for rank in ranks for part in rank["parts"]]
    own = [_selected(rank["parts"], MAGNITUDES[0]) for rank in ranks]
    assert own[0] != own[1]  # else each could have divided by its own
    weights = small_model().state_dict()
    _, gradient = plain_step(weights, parts, magnitude=MAGNITUDES[0], loss_type="dapo")
    torch.testing.assert_close(ranks[0]["gradient"], gradient, rtol=1e-4, atol=1e-6)


def test_context_tokens_have_no_gradient_at_all(tmp_path: Path) -> None:
    """Advantages that are 0 on the credited tokens and loud on the others move nothing."""
    trainer, recorder = make_trainer(tmp_path, max_steps=1, loss_type="dapo")
    credit = schedule_credit(trainer, curve="constant", initial=0.5, focus="middle")
    trainer.train()
    part = recorder.parts[0][0]
    mask_BT = part["completion_mask"].bool()
    credited_BT = focus_weight(mask_BT, magnitude=0.5, focus=(0.5, 0.5))
    assert 0 < credited_BT.sum() < mask_BT.sum()
    loud = {**part, "advantages": 5.0 * (1.0 - credited_BT)}

    def gradient() -> Tensor:
        model: Any = trainer.model
        model.train()
        model.zero_grad()
        trainer.compute_loss(model, loud).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert not gradient().any()
    credit.remove()
    assert gradient().any()


def test_the_stretch_is_of_the_tokens_that_the_model_wrote(tmp_path: Path) -> None:
    """Results of tools stay out of the loss, and do not count towards a response's length."""
    trainer, recorder = make_trainer(tmp_path, max_steps=1, loss_type="dr_grpo")
    schedule_credit(trainer, curve="constant", initial=0.5)
    trainer.train()
    model: Any = trainer.model
    part = recorder.parts[0][0]
    mask_BT = part["completion_mask"]
    wrote_BT = mask_BT.clone()
    wrote_BT[:, 1:3] = 0
    written_BT = (wrote_BT * mask_BT).bool()
    credited_BT = suffix_weight(written_BT, start=0.5)
    assert not torch.equal(credited_BT, suffix_weight(mask_BT.bool(), start=0.5) * written_BT)
    model.zero_grad()
    loud = {**part, "tool_mask": wrote_BT, "advantages": 1.0 - credited_BT}
    trainer.compute_loss(model, loud).backward()
    assert all(not p.grad.any() for p in model.parameters())
    loud["advantages"] = credited_BT
    trainer.compute_loss(model, loud).backward()
    assert any(p.grad.any() for p in model.parameters())


def test_the_logs_say_how_much_is_credited(tmp_path: Path) -> None:
    trainer, recorder = _scheduled(tmp_path)
    assert _logged(trainer, "schedule/magnitude") == pytest.approx(MAGNITUDES)
    tokens = [_selected(parts, 0.0) for parts in recorder.parts]
    shares = [
        _selected(parts, m) / n
        for parts, m, n in zip(recorder.parts, MAGNITUDES, tokens, strict=True)
    ]
    assert _logged(trainer, "credit/share") == pytest.approx(shares)
    assert shares[0] < shares[1] < shares[2] == 1


@pytest.mark.parametrize("how", ["removed", "magnitude 0"])
def test_without_a_magnitude_it_is_the_trainer_as_it_was(how: str, tmp_path: Path) -> None:
    plain, expected = make_trainer(tmp_path / "plain", max_steps=2)
    plain.train()
    trainer, found = make_trainer(tmp_path / "ours", max_steps=2)
    credit = schedule_credit(trainer, curve="constant", initial=0.0 if how != "removed" else 0.9)
    if how == "removed":
        credit.remove()
    trainer.train()
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    own = {"schedule/magnitude", "credit/share"} if how != "removed" else set()
    logged, before = trainer.state.log_history[0], plain.state.log_history[0]
    assert set(logged) == set(before) | own
    for key in ("loss", "entropy", "reward", "completions/mean_length", "clip_ratio/region_mean"):
        assert logged[key] == before[key]


def test_rewards_lengths_and_the_first_responses_are_those_of_plain_grpo(tmp_path: Path) -> None:
    plain, _ = make_trainer(tmp_path / "plain", max_steps=1)
    plain.train()
    trainer, _ = make_trainer(tmp_path / "ours", max_steps=1)
    schedule_credit(trainer, curve="constant", initial=0.99)
    trainer.train()
    assert _logged(trainer, "loss") != _logged(plain, "loss")
    for key in ("reward", "reward_std", "completions/mean_length", "num_tokens"):
        assert _logged(trainer, key) == _logged(plain, key)


def test_an_evaluation_is_of_whole_responses(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    model: Any = trainer.model
    model.eval()
    plain = trainer.compute_loss(model, recorder.parts[0][0]).item()
    schedule_credit(trainer, curve="constant", initial=0.9)
    assert trainer.compute_loss(model, recorder.parts[0][0]).item() == plain
    model.train()
    assert trainer.compute_loss(model, recorder.parts[0][0]).item() != plain


def test_a_resumed_training_keeps_its_schedule(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    whole, _ = make_trainer(tmp_path, max_steps=4, **settings)
    schedule_credit(whole, initial=0.8, end=1.0)
    whole.train()
    assert _logged(whole, "schedule/magnitude") == pytest.approx([0.6, 0.4, 0.2, 0.0])
    checkpoint = str(tmp_path / "checkpoint-2")

    again, _ = make_trainer(tmp_path, max_steps=4)
    schedule_credit(again, initial=0.8, end=1.0)
    again.train(resume_from_checkpoint=checkpoint)
    assert _logged(again, "schedule/magnitude") == pytest.approx([0.6, 0.4, 0.2, 0.0])

    longer, _ = make_trainer(tmp_path, max_steps=8)
    schedule_credit(longer, initial=0.8, end=1.0)
    with pytest.raises(UsageError, match="over 4 steps and now has 8"):
        longer.train(resume_from_checkpoint=checkpoint)

    asked, _ = make_trainer(tmp_path, max_steps=3)
    schedule_credit(asked, initial=0.8, end=1.0, horizon=8)
    asked.train(resume_from_checkpoint=checkpoint)
    assert _logged(asked, "schedule/magnitude")[2:] == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allocation": "forking_tokens"}, "forking_tokens"),
        ({"curve": "adaptive"}, "adaptive"),
        ({"curve": "zigzag"}, "zigzag"),
        ({"initial": 1.2}, "1.2"),
        ({"curve": "piecewise", "points": [(0.0, 2.0), (1.0, 0.0)]}, "2.0"),
        ({"curve": "piecewise", "points": [(0.0, 1.0)]}, "points"),
        ({"focus": "centre"}, "centre"),
        ({"focus": (0.7, 0.2)}, "0.7"),
        ({"horizon": 2, "start": 0.1, "end": 0.2}, "no whole step"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_trace(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trainer, _ = make_trainer(tmp_path)
    with pytest.raises(UsageError, match=said):
        schedule_credit(trainer, **settings)
    assert "compute_loss" not in vars(trainer)


def test_only_a_grpo_trainer_can_be_scheduled_and_only_once(tmp_path: Path) -> None:
    stranger: Any = object()
    with pytest.raises(UsageError, match="object is not a GRPOTrainer"):
        schedule_credit(stranger)
    trainer, _ = make_trainer(tmp_path)
    credit = schedule_credit(trainer)
    with pytest.raises(UsageError, match="replaced already"):
        schedule_credit(trainer)
    credit.remove()
    schedule_credit(trainer)


def test_the_example_runs(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "trl_tp_schedule.py"
    logs = runpy.run_path(str(example))["main"](tmp_path, warmup_steps=5, steps=4)
    # T = 4 and end = .8: the window closes at step 3.
    magnitudes = [line["schedule/magnitude"] for line in logs]
    assert magnitudes == pytest.approx([0.66, 0.33, 0.0, 0.0])
    assert all(0 <= line["reward"] <= 1 for line in logs)
