"""A whole recipe: its tables, and what they must be to each other.

``sections`` has the tables of model, data and training, ``credit`` those of the method, ``scalar``
what a number may be.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from tpcli.recipe.credit import CreditSection, LossSection, MagnitudeSection
from tpcli.recipe.scalar import Schedule, Section, bounds, moves
from tpcli.recipe.sections import (
    DataSection,
    EvalSection,
    LaunchSection,
    ModelSection,
    OptimSection,
    RewardSection,
    RolloutSection,
    TrackSection,
    TrainSection,
    WarmupSection,
)


class Recipe(Section):
    """A whole experiment. Fingerprint: sha256 of this, resolved, as canonical JSON."""

    model: ModelSection
    data: DataSection
    warmup: WarmupSection | None = None
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    credit: CreditSection = CreditSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    train: TrainSection
    eval: EvalSection = EvalSection()
    launch: LaunchSection = LaunchSection()
    track: TrackSection = TrackSection()

    @property
    def horizon(self) -> int:
        """Steps that the schedules stretch over."""
        return self.train.horizon or self.train.steps

    def scalars(self) -> dict[str, float | Schedule]:
        """Every scalar that may be scheduled, by its dotted key."""
        found: dict[str, float | Schedule] = {
            "rollout.temperature": self.rollout.temperature,
            "rollout.top_p": self.rollout.top_p,
            "reward.overlong.penalty": self.reward.overlong.penalty,
            "credit.schedule": self.credit.schedule,
            "credit.entropy_advantage.alpha": self.credit.entropy_advantage.alpha,
            "credit.entropy_advantage.kappa": self.credit.entropy_advantage.kappa,
            "loss.clip_low": self.loss.clip_low,
            "loss.clip_high": self.loss.clip_high,
            "loss.kl_coef": self.loss.kl_coef,
            "loss.tau_positive": self.loss.tau_positive,
            "loss.tau_negative": self.loss.tau_negative,
            "loss.correction.low": self.loss.correction.low,
            "loss.correction.high": self.loss.correction.high,
            "loss.entropy_coef": self.loss.entropy_coef,
            "optim.lr": self.optim.lr,
        }
        for name in CreditSection.model_fields:
            section = getattr(self.credit, name)
            if isinstance(section, MagnitudeSection) and section.magnitude is not None:
                found[f"credit.{name}.magnitude"] = section.magnitude
        return found

    @model_validator(mode="after")
    def _windows_have_steps(self) -> Self:
        for key, scalar in self.scalars().items():
            if isinstance(scalar, Schedule) and moves(scalar):
                first, last = int(self.horizon * scalar.start), int(self.horizon * scalar.end)
                if last <= first:
                    raise ValueError(
                        f"{key}: the window from {scalar.start:g} to {scalar.end:g} of "
                        f"{self.horizon} steps holds no whole step; widen it or train longer"
                    )
        return self

    @model_validator(mode="after")
    def _moves_are_named(self) -> Self:
        for key, scalar in self.scalars().items():
            magnitude = key == "credit.schedule" or key.endswith(".magnitude")
            if magnitude or not isinstance(scalar, Schedule):
                continue
            needed = {"constant": {"initial"}, "piecewise": set[str]()}
            missing = needed.get(scalar.curve, {"initial", "final"}) - scalar.model_fields_set
            if missing:
                raise ValueError(
                    f"{key}: a schedule needs {' and '.join(sorted(missing, reverse=True))} here; "
                    "the defaults are those of a magnitude"
                )
        if self.optim.warmup_steps >= self.horizon:
            raise ValueError(
                f"optim.warmup_steps ({self.optim.warmup_steps}) must be below the "
                f"{self.horizon} steps of the run; lower it, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> Self:
        if self.rollout.prompts % self.launch.processes:
            raise ValueError(
                f"rollout.prompts ({self.rollout.prompts}) must be a multiple of "
                f"launch.processes ({self.launch.processes})"
            )
        team = self.rollout.vllm.tensor_parallel
        if team > 1 and self.rollout.engine != "vllm":
            raise ValueError(
                'rollout.vllm.tensor_parallel is for engine = "vllm"; a server takes its own, '
                "as vllm serve --tensor-parallel-size"
            )
        if self.launch.processes % team:
            raise ValueError(
                f"launch.processes ({self.launch.processes}) must be a multiple of "
                f"rollout.vllm.tensor_parallel ({team})"
            )
        if self.rollout.prompts // self.launch.processes % self.train.updates:
            raise ValueError(
                f"train.updates ({self.train.updates}) must divide the prompts of a process "
                f"({self.rollout.prompts // self.launch.processes})"
            )
        if self.reward.overlong.buffer >= self.rollout.max_new_tokens:
            raise ValueError(
                f"reward.overlong.buffer ({self.reward.overlong.buffer}) must be below "
                f"rollout.max_new_tokens ({self.rollout.max_new_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.loss.objective != "ppo_clip" and self.loss.dual_clip is not None:
            raise ValueError(
                'loss.dual_clip belongs to objective = "ppo_clip"; write dual_clip = false'
            )
        follows = [
            key
            for key, scalar in self.scalars().items()
            if isinstance(scalar, Schedule)
            and scalar.curve == "adaptive"
            and scalar.signal == "entropy"
        ]
        if follows and self.track.tokens_every > 1:
            raise ValueError(
                f"{follows[0]} follows the entropy, which track.tokens_every = "
                f"{self.track.tokens_every} does not measure in every step; write tokens_every = 1"
            )
        if self.rollout.ahead and self.loss.correction.kind == "none":
            raise ValueError(
                "rollout.ahead learns from responses of an older policy; weigh them with "
                'loss.correction.kind = "truncate" or "mask"'
            )
        moved = [
            key
            for key in (
                "rollout.temperature",
                "rollout.top_p",
                self.credit.magnitudes().get("expert_prefix", ""),
            )
            if isinstance(scalar := self.scalars().get(key), Schedule)
            and scalar.curve == "adaptive"
        ]
        if self.rollout.ahead and moved:
            raise ValueError(
                f"{moved[0]} is adaptive, and rollout.ahead draws before the step is measured that "
                "it would follow; give it another curve"
            )
        if self.credit.k is not None and self.credit.k >= self.rollout.group_size:
            raise ValueError(
                f"credit.k ({self.credit.k}) must be below rollout.group_size "
                f"({self.rollout.group_size}), or no response differs"
            )
        if self.credit.advantage == "pass_at_k" and self.reward.overlong.buffer:
            raise ValueError(
                "reward.overlong.buffer makes rewards between right and wrong, which "
                'credit.advantage = "pass_at_k" cannot count; write buffer = 0'
            )
        without = self.data.source.startswith("rg:") or (
            self.data.source != "running_sum" and self.data.solution_field is None
        )
        if "expert_prefix" in self.credit.allocations and without:
            raise ValueError(
                'credit.allocation: "expert_prefix" needs worked solutions; take data.source = '
                '"running_sum", or a file or hub set with data.solution_field'
            )
        return self

    def warnings(self) -> list[str]:
        """Settings that are allowed and will have no effect, or seldom the one that is meant."""
        return [*self._unread(), *self._ramps(), *self._numerics()]

    def _unread(self) -> list[str]:
        found = {
            **{f"credit.{key}": reason for key, reason in self.credit.unread().items()},
            **{f"loss.{key}": reason for key, reason in self.loss.unread().items()},
        }
        if not self.reward.overlong.buffer and "penalty" in self.reward.overlong.written():
            found["reward.overlong.penalty"] = "buffer = 0"
        for key, scalar in self.scalars().items():
            if isinstance(scalar, Schedule) and key not in found:
                found |= {f"{key}.{part}": f'curve = "{scalar.curve}"' for part in scalar.unread()}
        return [f"{key} has no effect under {reason}" for key, reason in found.items()]

    def _ramps(self) -> list[str]:
        """Schedules whose move training does not live to see."""
        found, steps = [], self.train.steps
        followed = self.credit.magnitudes().values()
        for key, scalar in self.scalars().items():
            magnitude = key == "credit.schedule" or key.endswith(".magnitude")
            unread = magnitude and key not in followed
            if unread or not isinstance(scalar, Schedule) or not moves(scalar):
                continue
            first, last = int(self.horizon * scalar.start), int(self.horizon * scalar.end)
            if scalar.curve != "piecewise" and scalar.initial == scalar.final:
                found.append(f"{key} never moves: initial and final are both {scalar.final:g}")
            elif (first, last) == (0, 1) and scalar.curve != "adaptive":
                found.append(
                    f"{key} never acts: its window ends with step 1, which has the value after it"
                )
            elif first >= steps:
                found.append(f"{key} never moves: it begins after step {first}, of {steps}")
            elif last > steps:
                found.append(f"{key} is cut short: it would end at step {last}, of {steps}")
        return found

    def _numerics(self) -> list[str]:
        found = []
        if self.loss.kl_coef != 0 and self.loss.kl_estimator == "k1":
            found.append(
                'loss.kl_estimator = "k1" has an expected gradient of zero on policy; '
                '"k2" has the gradient of the KL'
            )
        narrow = any(value < 1 for _, value in bounds(self.rollout.top_p))
        if narrow and self.loss.correction.kind == "none":
            found.append(
                "rollout.top_p below 1 samples from another distribution than the one that "
                "learns; loss.correction can weigh the two"
            )
        clipped = {"clip_low", "clip_high"} & self.loss.model_fields_set
        if self.loss.objective == "gspo" and not clipped:
            found.append(
                "loss.clip_low and clip_high are those of a token's ratio; a sequence's moves far "
                "less (the GSPO paper clips at 3e-4 and 4e-4), so they would never act"
            )
        if self.loss.objective == "cispo_upper" and not clipped:
            found.append(
                "loss.clip_high = 0.28 bounds the ratio at 1.28; the papers of cispo_upper have 5, "
                "which is clip_high = 4.0"
            )
        if self.loss.objective == "reinforce" and self.train.updates > 1:
            found.append(
                'loss.objective = "reinforce" has no ratio: with train.updates above 1 all but the '
                "first step learn from another policy's responses"
            )
        if self.model.dtype == "bfloat16":
            found.append(
                'model.dtype = "bfloat16" rounds small updates away; keep float32 weights and '
                'set launch.mixed_precision = "bf16"'
            )
        return found
