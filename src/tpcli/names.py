"""The words a recipe may use. Imports nothing of ours: every layer may read it."""

from typing import Literal

CurveName = Literal[
    "constant",
    "linear",
    "cosine",
    "sigmoid",
    "gamma",
    "exponential",
    "stairs",
    "piecewise",
    "adaptive",
]
SignalName = Literal["entropy", "accuracy"]
AllocationName = Literal[
    "uniform",
    "trajectory_percentile",
    "forking_tokens",
    "entropy_advantage",
    "low_probability",
    "random_tokens",
    "shuffled",
    "expert_prefix",
]
FocusName = Literal["late", "early", "middle"]
AdvantageName = Literal["group_std", "group_mean", "leave_one_out", "batch_std", "pass_at_k", "gpg"]
ObjectiveName = Literal["ppo_clip", "gspo", "cispo", "cispo_upper", "reinforce", "sapo"]
ReductionName = Literal[
    "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
]
DenominatorName = Literal["selected", "all", "constant"]
KlName = Literal["k1", "k2", "k3"]
CorrectionName = Literal["none", "truncate", "mask"]
CorrectionLevel = Literal["token", "sequence", "geometric"]
VerifierName = Literal["int", "number", "math", "choice", "exact", "reference"]
OWN_VERIFIER = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.-]*$"
"""How a user's own verifier is named: "MODULE:FUNCTION" or "plugin:NAME"."""
EngineName = Literal["transformers", "vllm", "vllm-server"]
TransferName = Literal["path", "nccl"]
AttentionName = Literal["sdpa", "varlen"]
DtypeName = Literal["float32", "bfloat16"]
PrecisionName = Literal["no", "bf16"]
LrScheduleName = Literal["constant", "linear", "cosine"]
VerdictStatus = Literal["correct", "wrong", "no_answer", "unfinished", "timeout", "crash"]
RunStatus = Literal["created", "running", "finished", "stopped", "failed", "dead"]
