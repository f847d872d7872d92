"""The tables [credit] and [loss] of a recipe: which tokens learn, when, and by which objective.

Defaults are the paper's settings where it has them (arXiv 2605.25381), else the field's usual ones.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from tpcli.names import (
    AdvantageName,
    AllocationName,
    CorrectionLevel,
    CorrectionName,
    DenominatorName,
    FocusName,
    KlName,
    ObjectiveName,
    ReductionName,
)
from tpcli.recipe.scalar import (
    Array,
    Fraction,
    NonNegativeScalar,
    Positive,
    PositiveScalar,
    Scalar,
    Schedule,
    Section,
    bounds,
    check_range,
    word_or_list,
)

CLIPPED: frozenset[ObjectiveName] = frozenset({"ppo_clip", "gspo", "cispo", "cispo_upper"})
"""Objectives that read clip_high; all of them but cispo_upper read clip_low."""


class MagnitudeSection(Section):
    """[credit.<allocation>]: an allocation's own magnitude, where several are combined."""

    magnitude: Scalar | None = None
    """A number keeps this allocation static, a table moves it on its own; left out, it follows
    [credit].schedule."""


class TrajectoryPercentileSection(MagnitudeSection):
    """[credit.trajectory_percentile]: where in the response credit begins."""

    focus: Annotated[
        Annotated[FocusName, Tag("word")]
        | Annotated[tuple[Fraction, Fraction], Array, Tag("list")],
        Discriminator(word_or_list),
    ] = "late"
    """The stretch credited at magnitude 1: "late" is the end of the response, [1, 1], "early" its
    beginning, [0, 0], "middle" [0.5, 0.5]; or any [from, to]. It widens to all as m falls to 0."""

    @model_validator(mode="after")
    def _focus_is_a_stretch(self) -> Self:
        if not isinstance(self.focus, str) and self.focus[0] > self.focus[1]:
            a, b = self.focus
            raise ValueError(f"focus ([{a:g}, {b:g}]) must not end before it begins")
        return self


class EntropyAdvantageSection(MagnitudeSection):
    """[credit.entropy_advantage]: constants of A + m * min(alpha * H, |A| / kappa)."""

    alpha: NonNegativeScalar = 0.4
    """Scale of the entropy term (arXiv 2506.14758)."""
    kappa: PositiveScalar = 2.0
    """The term is at most |A| / kappa."""

    @model_validator(mode="after")
    def _constants_are_in_range(self) -> Self:
        check_range("alpha", self.alpha, 0)
        check_range("kappa", self.kappa, 0, above=True)
        return self


class CreditSection(Section):
    """[credit]: which tokens learn, and when."""

    allocation: Annotated[
        Annotated[AllocationName, Tag("word")]
        | Annotated[tuple[AllocationName, ...], Array, Tag("list")],
        Discriminator(word_or_list),
    ] = "trajectory_percentile"
    """Where credit goes; "uniform" is plain GRPO. Of a list, each works on what the one before has
    left: ["trajectory_percentile", "forking_tokens"] is the most uncertain part of the suffix."""
    schedule: Scalar = Schedule()
    """The allocation's magnitude m(t): 1 credits only the targeted tokens, 0 all alike."""
    trajectory_percentile: TrajectoryPercentileSection = TrajectoryPercentileSection()
    """The suffix, or another stretch of the response (arXiv 2605.25381)."""
    forking_tokens: MagnitudeSection = MagnitudeSection()
    """The most uncertain tokens (arXiv 2506.01939); static at 0.8."""
    entropy_advantage: EntropyAdvantageSection = EntropyAdvantageSection()
    """More advantage to uncertain tokens (arXiv 2506.14758); static at 1."""
    low_probability: MagnitudeSection = MagnitudeSection()
    """Less weight to unlikely tokens, 1 - m + m * p (arXiv 2505.12929); static at 0.1 to 0.3."""
    random_tokens: MagnitudeSection = MagnitudeSection()
    """A control: as many tokens as trajectory_percentile credits at its focus, anywhere."""
    expert_prefix: MagnitudeSection = MagnitudeSection()
    """The first round(m * length) tokens of a known solution are given after the prompt."""
    advantage: AdvantageName = "group_std"
    """"group_std": (R - mean) / (std + eps); "group_mean": R - mean (Dr.GRPO); "leave_one_out":
    R - mean of the others (RLOO); "batch_std": (R - mean) / (std of the step + eps); "pass_at_k":
    of drawing k responses (arXiv 2508.10751); "gpg": R - mean, scaled up for groups without
    signal (arXiv 2504.02546)."""
    eps: Positive = 1e-6
    """Added to the standard deviation."""
    ddof: Literal[0, 1] = 1
    """The standard deviation divides by the count less this (TRL and verl: 1)."""
    k: PositiveInt | None = None
    """Responses drawn together, of advantage = "pass_at_k"."""

    @property
    def allocations(self) -> tuple[AllocationName, ...]:
        """The allocations, in order."""
        return self.allocation if isinstance(self.allocation, tuple) else (self.allocation,)

    @property
    def label(self) -> str:
        """The allocations in a word."""
        return "+".join(self.allocations)

    def magnitudes(self) -> dict[AllocationName, str]:
        """The dotted key of the scalar that each allocation's magnitude follows."""
        own = {name: getattr(self, name, None) for name in self.allocations}
        return {
            name: f"credit.{name}.magnitude"
            if isinstance(section, MagnitudeSection) and section.magnitude is not None
            else "credit.schedule"
            for name, section in own.items()
            if name not in ("uniform", "shuffled")
        }

    @model_validator(mode="after")
    def _allocations_compose(self) -> Self:
        names = self.allocations
        if not names:
            raise ValueError('allocation is empty; plain GRPO is "uniform"')
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"allocation: {twice[0]} is here for the second time")
        if "uniform" in names and len(names) > 1:
            raise ValueError(
                'allocation: "uniform" credits every token alike, so it combines with nothing'
            )
        if "shuffled" in names:
            before = set(names[: names.index("shuffled")]) - {"expert_prefix"}
            if names[-1] != "shuffled" or not before:
                raise ValueError(
                    'allocation: "shuffled" deals the credit of those before it to other tokens; '
                    'write it last, as in ["forking_tokens", "shuffled"]'
                )
            if before == {"random_tokens"}:
                raise ValueError(
                    'allocation: "random_tokens" is random already; leave out "shuffled"'
                )
        return self

    @model_validator(mode="after")
    def _magnitudes_are_shares(self) -> Self:
        scalars = {"schedule": self.schedule}
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, MagnitudeSection) and section.magnitude is not None:
                scalars[f"{name}.magnitude"] = section.magnitude
        for key, scalar in scalars.items():
            check_range(key, scalar, 0, 1)
        return self

    @model_validator(mode="after")
    def _k_is_read(self) -> Self:
        if self.advantage == "pass_at_k" and self.k is None:
            raise ValueError('advantage = "pass_at_k" needs k, the responses drawn together')
        if self.advantage != "pass_at_k" and self.k is not None:
            raise ValueError(
                'k belongs to advantage = "pass_at_k"; leave it out or write k = false'
            )
        return self

    def unread(self) -> dict[str, str]:
        """Keys that were written and that nothing in this recipe reads, and what is at fault."""
        followed, allocation = self.magnitudes().values(), f'allocation = "{self.label}"'
        found = {} if "credit.schedule" in followed else {"schedule": allocation}
        for name in type(self).model_fields:
            if isinstance(getattr(self, name), MagnitudeSection) and name not in self.allocations:
                found[name] = allocation
        if self.advantage not in ("group_std", "batch_std"):
            found |= dict.fromkeys(("eps", "ddof"), f'advantage = "{self.advantage}"')
        return {key: reason for key, reason in found.items() if key in self.written()}


class CorrectionSection(Section):
    """[loss.correction]: weights for responses that the sampler drew from another distribution.

    The ratio is trainer's probability over sampler's, temperature and top-p included.
    """

    kind: CorrectionName = "none"
    """"truncate": weight min(ratio, high); "mask": weight ratio, or 0 outside [low, high]."""
    level: CorrectionLevel = "token"
    """A ratio a token, "sequence": their product over the response, "geometric": its mean."""
    low: NonNegativeScalar = 0.0
    """Lower bound of "mask"."""
    high: PositiveScalar = 2.0
    """Upper bound."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        check_range("low", self.low, 0)
        check_range("high", self.high, 0, above=True)
        low = max(value for _, value in bounds(self.low))
        high = min(value for _, value in bounds(self.high))
        if low >= high:
            raise ValueError(f"low ({low:g}) must be below high ({high:g})")
        return self


class LossSection(Section):
    """[loss]: the surrogate objective and how tokens add up to it."""

    objective: ObjectiveName = "ppo_clip"
    """"ppo_clip": ratio a token; "gspo": ratio a sequence (arXiv 2507.18071), in its token form;
    "cispo": clipped weight on both sides (arXiv 2506.13585); "cispo_upper": above only (arXiv
    2510.13786); "reinforce": no ratio; "sapo": soft gate (arXiv 2511.20347)."""
    clip_low: Scalar = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Scalar = 0.28
    """The ratio's upper bound is 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 3.0
    """With a negative advantage the loss is at most dual_clip * |A| (ppo_clip only). In TOML write
    false to switch it off."""
    tau_positive: PositiveScalar = 1.0
    """Steepness of sapo's gate where the advantage is positive."""
    tau_negative: PositiveScalar = 1.05
    """The same where it is not."""
    reduction: ReductionName = "token-mean"
    """How token losses of the whole optimiser step are added up."""
    denominator: DenominatorName = "selected"
    """Tokens and responses that a mean divides by: those with credit (a response that is left out
    has none), all of them, or ``constant`` tokens."""
    constant: Positive | None = None
    """The divisor of denominator = "constant" and of seq-mean-token-sum-norm (there by default
    [rollout].max_new_tokens)."""
    kl_coef: Scalar = 0.0
    """Weight of the KL penalty to the initial policy, on credited tokens."""
    kl_estimator: KlName = "k3"
    """Estimator of that penalty (Schulman's k1, k2, k3)."""
    entropy_coef: Scalar = 0.0
    """Weight of the entropy bonus, on credited tokens."""
    correction: CorrectionSection = CorrectionSection()
    """Where sampler and trainer disagree."""

    @model_validator(mode="after")
    def _divisors_exist(self) -> Self:
        if self.denominator == "constant" and self.constant is None:
            raise ValueError('denominator = "constant" needs constant, the number to divide by')
        summed = self.reduction in ("seq-mean-token-sum", "seq-mean-token-sum-norm")
        if summed and self.denominator == "constant":
            raise ValueError(
                f'reduction = "{self.reduction}" divides by responses, which denominator = '
                '"constant" does not replace; leave it out'
            )
        if self.constant is not None and (
            self.denominator != "constant" and self.reduction != "seq-mean-token-sum-norm"
        ):
            raise ValueError(
                'constant is read only with denominator = "constant" '
                'or reduction = "seq-mean-token-sum-norm"'
            )
        return self

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        check_range("clip_low", self.clip_low, 0, 1)
        for key in ("clip_high", "kl_coef", "entropy_coef"):
            check_range(key, getattr(self, key), 0)
        for key in ("tau_positive", "tau_negative"):
            check_range(key, getattr(self, key), 0, above=True)
        return self

    def unread(self) -> dict[str, str]:
        """Keys that were written and that nothing in this recipe reads, and what is at fault."""
        reads = {
            "clip_low": self.objective in CLIPPED - {"cispo_upper"},
            "clip_high": self.objective in CLIPPED,
            "tau_positive": self.objective == "sapo",
            "tau_negative": self.objective == "sapo",
        }
        found = {key: f'objective = "{self.objective}"' for key, read in reads.items() if not read}
        if self.kl_coef == 0:
            found["kl_estimator"] = "kl_coef = 0"
        found = {key: reason for key, reason in found.items() if key in self.written()}
        kind = self.correction.kind
        others = {"none": {"level", "low", "high"}, "truncate": {"low"}, "mask": set[str]()}[kind]
        for key in sorted(others & self.correction.written()):
            found[f"correction.{key}"] = f'kind = "{kind}"'
        return found
