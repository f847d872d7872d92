"""The words a recipe may use. Imports nothing of ours: every layer may read it."""

from typing import Literal

CurveName = Literal["constant", "linear", "cosine", "sigmoid", "gamma"]
AllocationName = Literal["uniform", "trajectory_percentile", "forking_tokens", "entropy_advantage"]
AdvantageName = Literal["group_std", "group_mean"]
ObjectiveName = Literal["ppo_clip", "gspo"]
ReductionName = Literal[
    "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
]
DenominatorName = Literal["selected", "all", "constant"]
KlName = Literal["k1", "k2", "k3"]
VerifierName = Literal["int", "exact"]
EngineName = Literal["transformers"]
DtypeName = Literal["float32", "bfloat16"]
PrecisionName = Literal["no", "bf16"]
LrScheduleName = Literal["constant", "linear", "cosine"]
VerdictStatus = Literal["correct", "wrong", "no_answer", "unfinished", "timeout", "crash"]
RunStatus = Literal["created", "running", "finished", "stopped", "failed", "dead"]
