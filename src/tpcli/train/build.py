"""From a recipe to the parts of a run; with ``schedules``, the one place that knows both."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.credit.allocation import FOCI
from tpcli.data.prompts import PromptSet, build_prompts
from tpcli.data.questions import data_hash, load_questions, split
from tpcli.errors import UsageError
from tpcli.optim.adamw import adamw
from tpcli.policy.load import load_model
from tpcli.policy.model import Policy
from tpcli.policy.source import resolve
from tpcli.policy.store import Report, cache_dir, once, save_model
from tpcli.recipe.scalar import Scalar, bounds
from tpcli.recipe.schema import Recipe
from tpcli.reward.verify import Grader
from tpcli.rollout.vllm_version import check_vllm
from tpcli.train.collect import Asking
from tpcli.train.engines import engine_of
from tpcli.train.evaluate import HeldOut
from tpcli.train.journal import Journal
from tpcli.train.loop import Parts, Settings
from tpcli.train.method import Method
from tpcli.train.schedules import knobs_at, progress_at, rules, value_at
from tpcli.train.step import Learner
from tpcli.train.team import Team
from tpcli.train.tempo import Tempo
from tpcli.train.warmup import solutions_of, warm_up, warmup_key
from tpcli.types import Question


@dataclass(frozen=True, slots=True)
class Data:
    """Prompts of both sides of the split, and what provenance says of them."""

    train: PromptSet
    held_out: PromptSet
    facts: dict[str, Any]


def grader_of(recipe: Recipe, folders: Sequence[Path] = ()) -> Grader:
    """What verifies; to be closed when training ends.

    Args:
        folders: where a user's own verifier is looked for, after the current folder.
    """
    section = recipe.reward
    return Grader(
        section.kind,
        workers=section.workers,
        deadline=section.deadline,
        memory_gib=section.memory_gib,
        folders=folders,
    )


def build(
    recipe: Recipe, accelerator: Accelerator, journal: Journal, grader: Grader
) -> tuple[Parts, Data]:
    """Load, warm up and wire everything a run needs."""
    if recipe.rollout.engine == "vllm":
        check_vllm()
    with journal.phase("weights", 0):
        folder = weights(recipe, lambda what, done, total: journal.advance(done, total, what))
        model, tokenizer = load_model(
            folder,
            dtype=recipe.model.dtype,
            trust_remote_code=recipe.model.trust_remote_code,
        )
    with journal.phase("data", 0):
        data = build_data(recipe, tokenizer, grader)
    asking = _asking(recipe, data, tokenizer)
    _check_context(recipe, model, data, asking)
    if recipe.warmup is not None:
        with journal.phase("warmup", 0):
            model.to(accelerator.device)
            folder = _warmed_up(recipe, model, tokenizer, data, folder, journal)
            # Read back also when just made: every run starts from the same bytes.
            model, _ = load_model(
                folder,
                dtype=recipe.model.dtype,
                trust_remote_code=recipe.model.trust_remote_code,
            )
    if recipe.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    _check_attention(recipe, accelerator)
    learner = _learner(recipe, accelerator, model)
    with journal.phase("engine", 0):
        engine, sync = engine_of(
            recipe, accelerator, model, tokenizer, learner.policy, asking, folder, journal.folder
        )
    parts = Parts(
        accelerator=accelerator,
        model=model,
        tokenizer=tokenizer,
        grader=grader,
        engine=engine,
        learner=learner,
        asking=asking,
        tempo=Tempo(rules(recipe)),
        held_out=_held_out(recipe, data),
        sync=sync,
        team=Team.of(
            accelerator.process_index,
            accelerator.num_processes,
            size=recipe.rollout.vllm.tensor_parallel,
        ),
    )
    return parts, data


def build_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, grader: Grader) -> Data:
    """Questions, split and tokenised, with answers that the verifier can accept."""
    section = recipe.data
    questions = load_questions(
        section.source,
        config=section.config,
        revision=section.revision,
        size=section.size,
        seed=section.seed,
        question_field=section.question_field,
        answer_field=section.answer_field,
        solution_field=section.solution_field,
    )
    grader.check(questions)
    sides = split(questions, section.held_out)

    def prompts(side: Sequence[Question]) -> PromptSet:
        return build_prompts(
            side,
            tokenizer,
            system=section.system,
            template=section.template,
            examples=[(e.question, e.solution) for e in section.examples],
            thinking=section.thinking,
            max_prompt_tokens=section.max_prompt_tokens,
        )

    train, held_out = prompts(sides.train), prompts(sides.held_out)
    facts = {
        "source": section.source,
        "generated": sides.generated,
        "unique": len(sides.train) + len(sides.held_out),
        "train": len(train.prompts),
        "held_out": len(held_out.prompts),
        "too_long": train.too_long + held_out.too_long,
        "sha256": data_hash([*sides.train, *sides.held_out]),
        "chat_template": train.template_hash,
    }
    return Data(train, held_out, facts)


def settings(recipe: Recipe) -> Settings:
    """The loop's settings."""
    overlong = recipe.reward.overlong
    return Settings(
        steps=recipe.train.steps,
        horizon=recipe.horizon,
        seed=recipe.train.seed,
        advantage=recipe.credit.advantage,
        eps=recipe.credit.eps,
        ddof=recipe.credit.ddof,
        ahead=recipe.rollout.ahead,
        k=recipe.credit.k or 1,
        mask_overlong=overlong.mask,
        buffer=overlong.buffer,
        save_every=recipe.train.save_every,
        keep=recipe.train.keep,
        responses_kept=recipe.track.responses,
        tokens_every=recipe.track.tokens_every,
        with_kl=_needs_reference(recipe),
        knobs=lambda step, shares: knobs_at(recipe, step, shares),
        progress=lambda step, shares: progress_at(recipe, step, shares),
    )


def _asking(recipe: Recipe, data: Data, tokenizer: PreTrainedTokenizerBase) -> Asking:
    rollout, prompts = recipe.rollout, data.train.prompts
    solutions: dict[str, Sequence[int]] = {}
    if "expert_prefix" in recipe.credit.allocations:
        # Without the end of sequence: a prefix that ends the response leaves nothing to say.
        found = solutions_of(prompts, tokenizer, purpose="give as a prefix")
        solutions = {p.question.id: s[:-1] for p, s in zip(prompts, found, strict=True)}
    refills = rollout.dynamic_sampling
    return Asking(
        prompts=prompts,
        prompts_per_step=rollout.prompts,
        group_size=rollout.group_size,
        max_new_tokens=rollout.max_new_tokens,
        seed=recipe.train.seed,
        rounds=refills.rounds if refills else 0,
        advantage=recipe.credit.advantage,
        k=recipe.credit.k or 1,
        solutions=solutions,
    )


def weights(recipe: Recipe, report: Report) -> Path:
    """The folder of the weights that the recipe names, before any warm-up."""
    section = recipe.model
    return resolve(
        section.source,
        cache=cache_dir(),
        revision=section.revision,
        sha256=section.sha256,
        trust_remote_code=section.trust_remote_code,
        scratch=section.scratch.model_dump() if section.scratch else None,
        report=report,
    )


def _warmed_up(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    folder: Path,
    journal: Journal,
) -> Path:
    warmup = recipe.warmup
    assert warmup is not None

    def make(aside: Path) -> None:
        warm_up(
            model,
            data.train.prompts,
            solutions_of(data.train.prompts, tokenizer),
            **warmup.model_dump(),
            micro_batch_tokens=recipe.train.micro_batch_tokens,
            head_chunk=recipe.train.head_chunk,
            progress=journal.advance,
        )
        save_model(model, tokenizer, aside)

    key = warmup_key(
        recipe.model.model_dump(mode="json"),
        recipe.data.model_dump(mode="json"),
        warmup.model_dump(mode="json"),
        data.facts["sha256"],
        [recipe.train.micro_batch_tokens, recipe.train.head_chunk],
        [folder.name, model.device.type],
    )
    return once(
        cache_dir() / "warmups" / key,
        make,
        report=lambda what, done, total: journal.advance(done, total, what),
    )


def _learner(recipe: Recipe, accelerator: Accelerator, model: PreTrainedModel) -> Learner:
    reference = None
    if _needs_reference(recipe):
        reference = Policy(
            copy.deepcopy(model),
            head_chunk=recipe.train.head_chunk,
            attention=recipe.model.attention,
        )
        reference.requires_grad_(False).to(accelerator.device)
    loss, credit = recipe.loss, recipe.credit
    focus = credit.trajectory_percentile.focus
    method = Method(
        allocations=credit.allocations,
        focus=FOCI[focus] if isinstance(focus, str) else focus,
        objective=loss.objective,
        dual_clip=loss.dual_clip,
        correction=loss.correction.kind,
        correction_level=loss.correction.level,
        reduction=loss.reduction,
        denominator=loss.denominator,
        constant=loss.constant or float(recipe.rollout.max_new_tokens),
        kl_estimator=loss.kl_estimator,
        updates=recipe.train.updates,
        max_grad_norm=recipe.optim.max_grad_norm,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        detach_prefix=recipe.train.detach_prefix,
    )
    policy = Policy(model, head_chunk=recipe.train.head_chunk, attention=recipe.model.attention).to(
        accelerator.device
    )
    optimizer = adamw(
        policy.parameters(),
        lr=value_at(recipe.optim.lr, 1, recipe.horizon, 1.0),
        betas=recipe.optim.betas,
        eps=recipe.optim.eps,
        weight_decay=recipe.optim.weight_decay,
    )
    return Learner(accelerator, policy, optimizer, reference, method)


def _needs_reference(recipe: Recipe) -> bool:
    return recipe.track.kl or recipe.loss.kl_coef != 0


def _held_out(recipe: Recipe, data: Data) -> HeldOut | None:
    section = recipe.eval
    if section.questions == 0:
        return None
    # By hash: the same questions whatever the order or the size of the data.
    ordered = sorted(data.held_out.prompts, key=lambda prompt: prompt.question.id)
    return HeldOut(
        prompts=ordered[: section.questions],
        samples=section.samples,
        every=section.every,
        temperature=section.temperature,
        max_new_tokens=section.max_new_tokens or recipe.rollout.max_new_tokens,
        seed=recipe.data.seed,
    )


def _check_context(recipe: Recipe, model: PreTrainedModel, data: Data, asking: Asking) -> None:
    """Refuse responses that would run past what the model's positions reach."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts = [*data.train.prompts, *data.held_out.prompts]
    given = max((value for _, value in bounds(_prefix_of(recipe))), default=0.0)
    solutions = asking.solutions.values()
    prefix = max((round(len(tokens) * given) for tokens in solutions), default=0)
    longest = max(len(prompt.tokens) for prompt in prompts)
    wanted = max(recipe.rollout.max_new_tokens, recipe.eval.max_new_tokens or 0)
    if isinstance(limit, int) and longest + prefix + wanted > limit:
        solution = f", solution prefixes of {prefix}" if prefix else ""
        shorter = ", or give less of each solution" if prefix else ""
        raise UsageError(
            f"prompts of {longest}{solution} and responses of {wanted} tokens exceed the model's "
            f"{limit}",
            hint=f"lower [rollout].max_new_tokens or [data].max_prompt_tokens{shorter}",
        )


def _check_attention(recipe: Recipe, accelerator: Accelerator) -> None:
    """Flash attention's variable-length form is for half precision on CUDA."""
    if recipe.model.attention == "sdpa":
        return
    half = recipe.model.dtype == "bfloat16" or accelerator.mixed_precision == "bf16"
    if accelerator.device.type != "cuda" or not half:
        raise UsageError(
            'model.attention = "varlen" needs a CUDA GPU and bf16',
            hint='set launch.mixed_precision = "bf16" there, or model.attention = "sdpa"',
        )


def _prefix_of(recipe: Recipe) -> Scalar:
    """How much of each worked solution is given."""
    key = recipe.credit.magnitudes().get("expert_prefix")
    return recipe.scalars()[key] if key else 0.0


def device_facts(accelerator: Accelerator) -> dict[str, Any]:
    """What the run computes on, for provenance."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else "cpu",
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }
