"""The policy as the trainer sees it: packed lines in, log-probs of chosen tokens out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcli.errors import UsageError
from tpcli.names import AttentionName
from tpcli.policy.attention import attend_by_segments, check_used
from tpcli.policy.lean import keep_less, products_added
from tpcli.policy.pack import Line, Packed
from tpcli.policy.score import Reference, logprob_and_entropy, measure, push_logprobs


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What no gradient flows through: log-prob, entropy and KL of response tokens, nats.

    All [b, T], 0 where not measured. ``kl_bT`` and ``ref_logprob_bT`` are 0 without a reference.
    """

    logprob_bT: Tensor
    entropy_bT: Tensor
    kl_bT: Tensor
    ref_logprob_bT: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What one forward pass gives.

    Attributes:
        logprob_bT, entropy_bT: nats, 0 where not chosen; with gradient, but for a pushed pass.
        surrogate: of a pushed pass, sum of push times log-prob; its gradient is that of the loss,
            and not to be scaled.
        scores: of the measured tokens; of a pushed pass, of the chosen ones as well.
    """

    logprob_bT: Tensor
    entropy_bT: Tensor
    surrogate: Tensor | None = None
    scores: Scores | None = None


class Policy(nn.Module):
    """A causal language model that scores packed lines.

    The body gives hidden states, and the head runs only where a number is wanted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        head_chunk: int | None = None,
        attention: AttentionName = "sdpa",
    ) -> None:
        super().__init__()
        self.model = model
        self.head_chunk = head_chunk
        self._attention = attention
        _check_plain_head(model)
        attend_by_segments(model)
        keep_less(model)

    @property
    def head_VD(self) -> Tensor:
        """The output head's weight."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert isinstance(head, nn.Linear)
        return head.weight

    def forward(
        self,
        packed: Packed,
        chosen_bT: Tensor,
        temperature: float = 1.0,
        *,
        push_bT: Tensor | None = None,
        measured_bT: Tensor | None = None,
        reference: "Policy | None" = None,
    ) -> Pass:
        """Run the lines; score the chosen tokens with gradient, and measure others without.

        The gradients of the head and of gated MLPs are added to the weights' ``grad`` past
        autograd, which would want another tensor of their size; with ``push_bT`` the head's during
        this very pass. So clear gradients before it, not between it and the one ``backward()``, and
        do not ask ``autograd.grad`` instead: for that there is ``hidden``.

        Args:
            chosen_bT: bool, the tokens that learn.
            push_bT: d loss / d logprob of each, where that is known beforehand: then one pass over
                the vocabulary forms the gradient, and ``Pass.surrogate`` carries it. Every factor
                belongs in here: the surrogate cannot be scaled afterwards.
            measured_bT: bool, the tokens that ``Pass.scores`` is about; None for no scores.
            reference: measured against.
        """
        # Before the policy: both may keep keys and values in the layouts of two lines.
        ref_MD = None
        if reference is not None and measured_bT is not None:
            with torch.no_grad():
                ref_MD = reference.hidden(packed)
        with _rows_added(self.model.get_input_embeddings()), products_added():
            hidden_MD = self.hidden(packed)
        if push_bT is not None:
            return self._push(
                packed, hidden_MD, chosen_bT, push_bT, temperature, measured_bT, reference, ref_MD
            )
        # index_select, not fancy indexing: its backward adds in a fixed order, and the prompt's
        # last position is chosen once a response.
        logprob_K, entropy_K = logprob_and_entropy(
            hidden_MD.index_select(0, packed.predictor_bT[chosen_bT]),
            self.head_VD,
            packed.target_bT[chosen_bT],
            temperature=temperature,
            chunk=self.head_chunk,
            grad_into_VD=_grad_to_add_to(self.head_VD),
        )
        scores = None
        if measured_bT is not None:
            scores = self._scores(packed, hidden_MD, measured_bT, temperature, reference, ref_MD)
        return Pass(_spread(logprob_K, chosen_bT), _spread(entropy_K, chosen_bT), scores=scores)

    def _push(
        self,
        packed: Packed,
        hidden_MD: Tensor,
        chosen_bT: Tensor,
        push_bT: Tensor,
        temperature: float,
        measured_bT: Tensor | None,
        reference: "Policy | None",
        ref_MD: Tensor | None,
    ) -> Pass:
        """Chosen tokens first, then those that are only measured: one pass over both."""
        others_bT = torch.zeros_like(chosen_bT)
        if measured_bT is not None:
            others_bT = measured_bT & ~chosen_bT
        predictor_K = torch.cat([packed.predictor_bT[chosen_bT], packed.predictor_bT[others_bT]])
        surrogate, *found = push_logprobs(
            hidden_MD.index_select(0, predictor_K),
            self.head_VD,
            torch.cat([packed.target_bT[chosen_bT], packed.target_bT[others_bT]]),
            push_bT[chosen_bT],
            temperature=temperature,
            chunk=self.head_chunk,
            reference=_reference(reference, ref_MD, predictor_K),
            grad_into_VD=_grad_to_add_to(self.head_VD),
        )
        chosen = len(packed.predictor_bT[chosen_bT])
        spread = [
            _spread(value_K[:chosen], chosen_bT).masked_scatter(others_bT, value_K[chosen:])
            for value_K in found
        ]
        logprob_bT, entropy_bT = spread[0] * chosen_bT, spread[1] * chosen_bT
        return Pass(logprob_bT, entropy_bT, surrogate, Scores(*spread))

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of all positions, [M, D], of both lines where there are two."""
        *context, last = packed.lines
        with torch.no_grad():
            before = [self._run(line) for line in context]
        return torch.cat([*before, self._run(last)])

    def _run(self, line: Line) -> Tensor:
        # transformers recomputes activations in training mode only; generation needs the other.
        recompute = self._checkpointing() and torch.is_grad_enabled()
        line.layout.calls = 0
        self.model.train(recompute)
        out = self.model.base_model(
            input_ids=line.input_M[None],
            position_ids=line.position_M[None],
            # Ready made, as four dimensions say: transformers makes no mask of its own.
            attention_mask=line.position_M.new_zeros(1, 1, 1, 1),
            use_cache=False,
            layout=line.layout,
            kernel=self._attention,
        )
        self.model.train(False)
        check_used(line.layout, self.model)
        hidden_1MD: Tensor = out.last_hidden_state
        return hidden_1MD[0]

    def _checkpointing(self) -> bool:
        return any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )

    @torch.no_grad()
    def score(
        self,
        packed: Packed,
        measured_bT: Tensor,
        *,
        temperature: float,
        reference: "Policy | None" = None,
    ) -> Scores:
        """Measure tokens without learning from any."""
        ref_MD = reference.hidden(packed) if reference is not None else None
        hidden_MD = self.hidden(packed)
        return self._scores(packed, hidden_MD, measured_bT, temperature, reference, ref_MD)

    @torch.no_grad()
    def _scores(
        self,
        packed: Packed,
        hidden_MD: Tensor,
        measured_bT: Tensor,
        temperature: float,
        reference: "Policy | None",
        ref_MD: Tensor | None,
    ) -> Scores:
        predictor_K = packed.predictor_bT[measured_bT]
        found = measure(
            hidden_MD.index_select(0, predictor_K),
            self.head_VD,
            packed.target_bT[measured_bT],
            temperature=temperature,
            chunk=self.head_chunk,
            reference=_reference(reference, ref_MD, predictor_K),
        )
        return Scores(*(_spread(value_K, measured_bT) for value_K in found))


def _grad_to_add_to(weight: Tensor) -> Tensor | None:
    """The weight's ``grad``, made where there is none yet; None where autograd is to add it up.

    Half precision would lose what many chunks add.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad) or weight.dtype.itemsize < 4:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


@contextmanager
def _rows_added(embedding: Any) -> Iterator[None]:
    """Inside, an embedding on a CPU gives the rows of its gradient instead of one of its size.

    They are added to the ``grad`` that is there. Only inside: DDP looks at the flag when it wraps
    the model, and would send rows. On a GPU they would be added in no fixed order.
    """
    weight: Tensor = embedding.weight
    embedding.sparse = weight.device.type == "cpu" and _grad_to_add_to(weight) is not None
    try:
        yield
    finally:
        embedding.sparse = False


def _reference(
    reference: Policy | None, ref_MD: Tensor | None, predictor_K: Tensor
) -> Reference | None:
    if reference is None or ref_MD is None:
        return None
    return Reference(ref_MD.index_select(0, predictor_K), reference.head_VD)


def _spread(value_K: Tensor, where_bT: Tensor) -> Tensor:
    """Values at their places, 0 elsewhere; differentiable."""
    empty_bT = value_K.new_zeros(where_bT.shape)
    return empty_bT.index_put(where_bT.nonzero(as_tuple=True), value_K)


def _check_plain_head(model: PreTrainedModel) -> None:
    """Refuse heads that are more than ``hidden @ W.T``: their logits would be silently wrong."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    extras = [
        name
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        if getattr(config, name, None) not in (None, 1, 1.0)
    ]
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    if getattr(config, "sliding_window", None) or set(layers) != {"full_attention"}:
        extras.append("attention over a sliding window")
    if not isinstance(head, nn.Linear) or head.bias is not None or extras:
        why = extras[0] if extras else "an output head that is not a plain linear map"
        raise UsageError(
            f"{type(model).__name__} has {why}, which scoring does not compute",
            hint="use a model of the Llama or Qwen families",
        )
