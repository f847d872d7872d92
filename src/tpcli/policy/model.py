"""The policy as the trainer sees it: packed rows in, log-probs of chosen tokens out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcli.errors import UsageError
from tpcli.policy.pack import Packed
from tpcli.policy.score import kl_to_reference, logprob_and_entropy


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What no gradient flows through: log-prob, entropy and KL of response tokens, nats.

    All [b, T], 0 on padding. ``kl_bT`` and ``ref_logprob_bT`` are 0 without a reference.
    """

    logprob_bT: Tensor
    entropy_bT: Tensor
    kl_bT: Tensor
    ref_logprob_bT: Tensor


class Policy(nn.Module):
    """A causal language model that scores packed rows.

    One forward pass serves both uses: ``forward`` gives hidden states, and the head runs only where
    a number is wanted.
    """

    def __init__(self, model: PreTrainedModel, *, head_chunk: int = 256) -> None:
        super().__init__()
        self.model = model
        self.head_chunk = head_chunk
        _check_plain_head(model)

    @property
    def head_VD(self) -> Tensor:
        """The output head's weight."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert isinstance(head, nn.Linear)
        return head.weight

    def forward(
        self, packed: Packed, chosen_bT: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the rows; score the chosen tokens with gradient.

        Args:
            chosen_bT: bool, the tokens whose log-prob and entropy are wanted; None for none.

        Returns:
            hidden_MD: every position's last hidden state, detached.
            logprob_bT, entropy_bT: nats, 0 where not chosen.
        """
        hidden_MD = self.hidden(packed)
        if chosen_bT is None:
            empty_bT = hidden_MD.new_zeros(packed.mask_bT.shape)
            return hidden_MD.detach(), empty_bT, empty_bT
        # index_select, not fancy indexing: its backward adds in a fixed order, and the prompt's
        # last position is chosen once a response.
        chosen_KD = hidden_MD.index_select(0, packed.predictor_bT[chosen_bT])
        logprob_K, entropy_K = logprob_and_entropy(
            chosen_KD,
            self.head_VD,
            packed.target_bT[chosen_bT],
            temperature=temperature,
            chunk=self.head_chunk,
        )
        where = chosen_bT.nonzero(as_tuple=True)
        empty_bT = logprob_K.new_zeros(chosen_bT.shape)
        return (
            hidden_MD.detach(),
            empty_bT.index_put(where, logprob_K),
            empty_bT.index_put(where, entropy_K),
        )

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of all positions, [M, D]."""
        # transformers recomputes activations in training mode only; generation needs the other.
        recompute = self._checkpointing() and torch.is_grad_enabled()
        self.model.train(recompute)
        out = self.model.base_model(
            input_ids=packed.input_RN,
            position_ids=packed.position_RN,
            attention_mask=packed.attend_R1NN,
            use_cache=False,
        )
        self.model.train(False)
        hidden_RND: Tensor = out.last_hidden_state
        return hidden_RND.flatten(0, 1)

    def _checkpointing(self) -> bool:
        return any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )

    @torch.no_grad()
    def score(
        self,
        packed: Packed,
        hidden_MD: Tensor,
        *,
        temperature: float,
        reference: "Policy | None" = None,
    ) -> Scores:
        """Score every response token from hidden states that ``forward`` has already computed."""
        mask_bT = packed.mask_bT
        predictor_K, target_K = packed.predictor_bT[mask_bT], packed.target_bT[mask_bT]
        hidden_KD = hidden_MD.index_select(0, predictor_K)
        if reference is None:
            logprob_K, entropy_K = logprob_and_entropy(
                hidden_KD,
                self.head_VD,
                target_K,
                temperature=temperature,
                chunk=self.head_chunk,
            )
            kl_K = ref_logprob_K = torch.zeros_like(logprob_K)
        else:
            logprob_K, entropy_K, kl_K, ref_logprob_K = kl_to_reference(
                hidden_KD,
                self.head_VD,
                reference.hidden(packed).index_select(0, predictor_K),
                reference.head_VD,
                target_K,
                temperature=temperature,
                chunk=self.head_chunk,
            )

        def spread(value_K: Tensor) -> Tensor:
            return value_K.new_zeros(mask_bT.shape).masked_scatter(mask_bT, value_K)

        return Scores(spread(logprob_K), spread(entropy_K), spread(kl_K), spread(ref_logprob_K))


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
