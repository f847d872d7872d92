"""From a recipe to what generates: transformers in this process, or vLLM here or on a server."""

from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.policy.load import eos_ids
from tpcli.policy.load import pad_id as filler
from tpcli.policy.model import Policy
from tpcli.recipe.schema import Recipe
from tpcli.recipe.sections import VllmSection
from tpcli.rollout.engine import RolloutEngine
from tpcli.rollout.transformers import TransformersEngine
from tpcli.rollout.vllm import VllmEngine
from tpcli.rollout.vllm_server import VllmServer
from tpcli.rollout.vllm_transfer import NcclTransfer, PathTransfer, Transfer
from tpcli.train.collect import Asking
from tpcli.train.sync import Sync, known_text


def engine_of(
    recipe: Recipe,
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    asking: Asking,
    weights: Path,
    run_dir: Path,
) -> tuple[RolloutEngine, Sync | None]:
    """What generates; and, where it keeps weights of its own, what hands it the trainer's.

    Args:
        weights: the folder that ``model`` was loaded from.
    """
    ends = eos_ids(model, tokenizer)
    name, section = recipe.rollout.engine, recipe.rollout.vllm
    if name == "transformers":
        made = TransformersEngine(
            model, eos_ids=ends, pad_id=filler(tokenizer), max_rows=recipe.rollout.max_rows
        )
        return made, None
    engine: VllmEngine | VllmServer
    limit = _longest(recipe, model, asking)
    if name == "vllm":
        engine = VllmEngine(
            weights,
            eos_ids=ends,
            max_len=limit,
            max_rows=recipe.rollout.max_rows,
            dtype="bfloat16" if accelerator.mixed_precision == "bf16" else recipe.model.dtype,
            seed=recipe.train.seed,
            memory=section.memory,
            cache_gb=section.cache_gb,
            eager=section.eager,
            tensor_parallel=section.tensor_parallel,
            trust_remote_code=recipe.model.trust_remote_code,
        )
    else:
        engine = VllmServer(
            section.url or "",
            eos_ids=ends,
            transfer=_transfer(section, run_dir),
            timeout=section.timeout,
            connections=section.connections,
        )
    sync = Sync(
        engine,
        model,
        policy,
        accelerator,
        text=known_text(asking.prompts, limit),
        tolerance=section.tolerance,
        shared=name == "vllm-server",
    )
    return engine, sync


def _transfer(section: VllmSection, run_dir: Path) -> Transfer:
    if section.transfer == "nccl":
        return NcclTransfer(section.host or "", section.port)
    where = Path(section.folder) if section.folder else run_dir / "weights"
    return PathTransfer(where, head=section.head)


def _longest(recipe: Recipe, model: PreTrainedModel, asking: Asking) -> int:
    """Tokens of the model's context, or of any prompt and its response where that is less."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    given = max(map(len, asking.solutions.values()), default=0)
    prompts = max(max(len(p.tokens) for p in asking.prompts), recipe.data.max_prompt_tokens)
    responses = max(recipe.rollout.max_new_tokens, recipe.eval.max_new_tokens or 0)
    needed = prompts + given + responses
    return min(context, needed) if isinstance(context, int) else needed
