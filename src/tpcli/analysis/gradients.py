"""Do early and late tokens pull the weights the same way? Gradients by trajectory percentile.

Of N tokens in all, bin q of trajectory percentile holds those of Q_q, and its gradient is the part
that these tokens have in the gradient of the token-mean policy-gradient loss,

    g_q = grad -(1 / N) sum_{t in Q_q} A_t log pi(token_t),   sum_q g_q = the whole gradient.

Under this loss the gradient of a sampled token is that of REINFORCE, and of every clipped objective
as long as the policy that learns is the one that sampled.

Letters: H = 2 halves of the responses, Q bins, W weights of the model in one line; those of
tpcli.policy.pack for packed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# A module that computes with tensors; what loads it wants torch.
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tpcli.analysis import canvas
from tpcli.analysis.canvas import BLUE, GREY, MISSING
from tpcli.errors import UsageError
from tpcli.metrics.stats import percentile
from tpcli.policy.pack import Row, pack, plan_rows
from tpcli.policy.score import logprob_and_entropy
from tpcli.types import Prompt, Question, TokenBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tpcli.policy.model import Policy

HALVES = 2
WEIGHTS_AT_ONCE = 1 << 20
"""Columns of the gradients whose float64 copies exist at once."""

Report = Callable[[int, int], None]
"""Responses done, and how many there are."""


@dataclass(frozen=True, slots=True, eq=False)
class BinGradients:
    """What the responses say, before anything is compared.

    Attributes:
        gradient_HQW: float32 on the CPU; response b belongs to half b % 2.
        tokens_Q: response tokens in each bin.
        gap: mean |sampler's log-prob - this policy's|, nats a token: 0 where the responses were
            sampled by these very weights.
    """

    gradient_HQW: Tensor
    tokens_Q: list[int]
    gap: float


@dataclass(frozen=True, slots=True)
class Interference:
    """Gradients of the bins against each other. None stands where a gradient is 0.

    Attributes:
        tokens: in each bin.
        norm: of each bin's gradient.
        whole: norm of the gradient of all tokens.
        cosine: between the gradients of two bins, over all responses.
        halves: the same, one bin's gradient from one half of the responses and the other's from the
            other half: what two bins have in common beyond the responses they were measured on.
            On its diagonal stands how well a bin agrees with itself.
        gap: see ``BinGradients``.
    """

    tokens: list[int]
    norm: list[float]
    whole: float
    cosine: list[list[float | None]]
    halves: list[list[float | None]]
    gap: float

    @property
    def bins(self) -> int:
        """Q."""
        return len(self.tokens)


def bytes_needed(weights: int, bins: int) -> int:
    """Memory of the gradients: both halves of every bin, and one that is being added."""
    return (HALVES * bins + 1) * weights * 4


def check_memory(weights: int, bins: int, available: int) -> None:
    """Refuse what does not fit before any of it is computed."""
    needed = bytes_needed(weights, bins)
    if needed <= available:
        return
    most = max((q for q in range(2, bins) if bytes_needed(weights, q) <= available), default=0)
    raise UsageError(
        f"the gradients of {bins} bins take {needed / 2**30:.1f} GiB, "
        f"{available / 2**30:.1f} GiB of memory are free",
        hint=f"compare fewer: --bins {most}"
        if most
        else f"even two bins take {bytes_needed(weights, 2) / 2**30:.1f} GiB: use a larger machine",
    )


def to_batch(samples: Sequence[Mapping[str, Any]]) -> TokenBatch:
    """Stored responses as a batch, each under a prompt of its own."""
    ids = [torch.tensor(sample["ids"], dtype=torch.int64) for sample in samples]
    logprobs = [torch.tensor(sample["logprob"], dtype=torch.float32) for sample in samples]
    tokens_BT = pad_sequence(ids, batch_first=True)
    questions = [Question(str(b), s["question"], s["answer"]) for b, s in enumerate(samples)]
    return TokenBatch(
        prompts=[
            Prompt(question, tuple(sample["prompt_ids"]))
            for question, sample in zip(questions, samples, strict=True)
        ],
        tokens_BT=tokens_BT,
        mask_BT=torch.arange(tokens_BT.shape[1]) < torch.tensor([[len(one)] for one in ids]),
        rollout_logprob_BT=pad_sequence(logprobs, batch_first=True),
        reward_B=torch.tensor([float(sample["reward"]) for sample in samples]),
        advantage_B=torch.tensor([float(sample["group_advantage"]) for sample in samples]),
        group_size=1,
    )


def bin_gradients(
    policy: Policy,
    batch: TokenBatch,
    *,
    bins: int,
    temperature: float,
    budget: int,
    report: Report | None = None,
) -> BinGradients:
    """The gradient of every bin, from one forward and Q backward passes a micro-batch.

    Args:
        policy: in float32; every parameter that requires a gradient counts.
        batch: responses with ``group_size`` 1 and their advantages.
        bins: Q equal bins of trajectory percentile; a token lies where the middle of it does.
        temperature: that the responses were sampled at.
        budget: tokens of a micro-batch.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    sum_HQW = torch.zeros(HALVES, bins, sum(p.numel() for p in parameters))
    bin_BT = (percentile(batch.mask_BT) * bins).long().clamp(max=bins - 1)
    gap, done, responses = 0.0, 0, len(batch.mask_BT)
    for half in range(HALVES):
        for rows in plan_rows(batch, range(half, responses, HALVES), budget=budget):
            gap += _add(sum_HQW[half], policy, parameters, rows, batch, bin_BT, temperature)
            done += sum(len(every) for row in rows for _, every in row.branches)
            if report:
                report(done, responses)
    tokens_Q = [int(((bin_BT == q) & batch.mask_BT).sum()) for q in range(bins)]
    return BinGradients(sum_HQW, tokens_Q, gap / max(sum(tokens_Q), 1))


def _add(
    sum_QW: Tensor,
    policy: Policy,
    parameters: Sequence[Tensor],
    rows: Sequence[Row],
    batch: TokenBatch,
    bin_BT: Tensor,
    temperature: float,
) -> float:
    """Add one micro-batch's gradients in place; returns its sum of log-prob gaps."""
    packed = pack(rows, batch).to(parameters[0].device)
    responses_b = packed.responses_b.cpu()
    advantage_bT = batch.advantage_B[responses_b, None].expand(packed.mask_bT.shape)
    tokens = int(batch.mask_BT.sum())
    hidden_MD = policy.hidden(packed)
    gap = 0.0
    for q, sum_W in enumerate(sum_QW):
        chosen_bT = (bin_BT[responses_b] == q) & batch.mask_BT[responses_b]
        if not chosen_bT.any():
            continue
        here_bT = chosen_bT.to(hidden_MD.device)
        logprob_K, _ = logprob_and_entropy(
            hidden_MD.index_select(0, packed.predictor_bT[here_bT]),
            policy.head_VD,
            packed.target_bT[here_bT],
            temperature=temperature,
            chunk=policy.head_chunk,
        )
        loss = -(advantage_bT[chosen_bT].to(logprob_K) * logprob_K).sum() / tokens
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        at = 0
        for gradient in gradients:
            sum_W[at : at + gradient.numel()] += gradient.flatten().cpu()
            at += gradient.numel()
        sampled_K = batch.rollout_logprob_BT[responses_b][chosen_bT]
        gap += float((sampled_K - logprob_K.detach().cpu()).abs().sum())
    return gap


def compare(found: BinGradients) -> Interference:
    """Norms and cosines, from inner products summed in float64.

    The inner product of two bins over all responses is (a_q + b_q) . (a_r + b_r), with a and b the
    gradients of the halves; between halves it is a_q . b_r, and the cosine is the mean of the two
    ways to exchange them.
    """
    bins = len(found.tokens_Q)
    product_HQHQ = gram(found.gradient_HQW.flatten(0, 1)).view(HALVES, bins, HALVES, bins)
    whole_QQ = product_HQHQ.sum((0, 2))
    norm_Q = whole_QQ.diagonal().clamp(min=0).sqrt()
    norm_HQ = torch.stack([product_HQHQ[h, :, h].diagonal() for h in range(HALVES)]).sqrt()
    across_QQ = product_HQHQ[0, :, 1] / torch.outer(norm_HQ[0], norm_HQ[1])
    return Interference(
        tokens=found.tokens_Q,
        norm=norm_Q.tolist(),
        whole=float(whole_QQ.sum().clamp(min=0).sqrt()),
        cosine=_finite(whole_QQ / torch.outer(norm_Q, norm_Q)),
        halves=_finite((across_QQ + across_QQ.T) / 2),
        gap=found.gap,
    )


def gram(gradient_KW: Tensor) -> Tensor:
    """Inner products of the rows, [K, K] float64, without a float64 copy of them all."""
    product_KK = torch.zeros(len(gradient_KW), len(gradient_KW), dtype=torch.float64)
    for part_Kw in torch.split(gradient_KW, WEIGHTS_AT_ONCE, dim=1):
        wide_Kw = part_Kw.double()
        product_KK += wide_Kw @ wide_Kw.T
    return product_KK


def _finite(cosine_QQ: Tensor) -> list[list[float | None]]:
    """0 / 0 is no cosine, and rounding must not leave [-1, 1]."""
    return [
        [None if value != value else min(max(value, -1.0), 1.0) for value in row]
        for row in cosine_QQ.tolist()
    ]


def draw(found: Interference, title: str) -> Figure:
    """Norms as bars, and the cosines of all responses and between their halves."""
    figure = canvas.sheet(15, 4.9)
    bars, cosine, halves = figure.subplots(1, 3, width_ratios=(1.0, 1.2, 1.2))
    figure.suptitle(title, fontsize="medium")
    _bars(bars, found)
    _matrix(cosine, found.cosine, "Cosine, all responses", "")
    _matrix(halves, found.halves, "Cosine between halves of the responses", "reliability")
    return figure


def _bars(axis: Axes, found: Interference) -> None:
    width = 100 / found.bins
    middles = [width * (q + 0.5) for q in range(found.bins)]
    axis.bar(middles, found.norm, 0.85 * width, color=BLUE)
    axis.axhline(found.whole, color=GREY, ls="--", lw=1)
    axis.annotate(
        "whole gradient",
        (100, found.whole),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize="small",
    )
    axis.set_title("Norm of the gradient of each bin")
    axis.set_xlabel("trajectory percentile")
    axis.set_ylabel("Euclidean norm")
    axis.set_xlim(0, 100)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _matrix(
    axis: Axes, cosine: Sequence[Sequence[float | None]], title: str, diagonal: str
) -> None:
    """Blue pulls together, red pulls apart; the numbers stand in the cells while there is room."""
    from matplotlib import colormaps

    values = [[float("nan") if v is None else v for v in row] for row in cosine]
    bins, width = len(values), 100 / len(values)
    image = axis.imshow(
        values,
        cmap=colormaps["RdBu"].with_extremes(bad=MISSING),
        vmin=-1.0,
        vmax=1.0,
        extent=(0, 100, 0, 100),
        origin="lower",
        interpolation="nearest",
    )
    for q, row in enumerate(cosine if bins <= 12 else ()):
        for r, value in enumerate(row):
            axis.text(
                width * (r + 0.5),
                width * (q + 0.5),
                "–" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value is not None and abs(value) > 0.6 else "black",
            )
    axis.set_title(title)
    axis.set_xlabel("trajectory percentile")
    axis.set_ylabel("trajectory percentile")
    note = f"cosine (diagonal: {diagonal})" if diagonal else "cosine"
    axis.figure.colorbar(image, ax=axis, label=note, pad=0.02, shrink=0.85)
