"""Weights from the Hugging Face hub, kept in the hub's own cache."""

import io
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from tpcli.errors import OfflineError, UsageError
from tpcli.policy.store import Report, silent

_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
# Sub-folders hold other formats; "consolidated" is a second copy of the same weights.
_NOT = ["*/*", "consolidated*"]
# httpx or httpx2, whichever this version of the hub's library is built on.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]


def snapshot(
    repo: str, *, revision: str | None, trust_remote_code: bool, report: Report = silent
) -> Path:
    """The local snapshot of a hub repository: weights, config and tokenizer only.

    Python files are fetched only with ``trust_remote_code``, pickled weights never.
    """
    report(f"looking up {repo}", 0, 0)
    at = f"{repo}@{revision}" if revision else repo
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*_FILES, "*.py"] if trust_remote_code else _FILES,
                ignore_patterns=_NOT,
                tqdm_class=_bar(f"downloading {repo}", report),
            )
        )
    except GatedRepoError as error:
        raise UsageError(
            f"the hub gives {repo} only to those whom its owner has let in",
            hint="ask for access on the model's page, then log in with `hf auth login` "
            "or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no model {repo}, or it is private",
            hint="check the spelling of [model].source; for a private model log in with "
            "`hf auth login` or set HF_TOKEN; a folder is written ./NAME",
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repo} has no revision {revision}",
            hint="[model].revision is a branch, a tag or a full commit of that repository",
        ) from error
    except HFValidationError as error:
        raise UsageError(
            f'"{repo}" cannot be a hub id', hint='a hub id is written "OWNER/NAME"'
        ) from error
    except (LocalEntryNotFoundError, _TransportError, ConnectionError) as error:
        raise OfflineError(
            f"the hub cannot be reached, and {at} is not whole in its cache",
            hint=f"download it where there is a network with `hf download {repo}` and point "
            "HF_HOME at a copy of that cache, or name a folder of weights in [model].source; "
            "if HF_HUB_OFFLINE is set, unset it",
        ) from error


def _bar(what: str, report: Report) -> type[tqdm]:
    """A progress bar that draws nothing and reports bytes."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the two byte counters, the one of written bytes: the other may stay at 0.
            self._counts = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
            start: Any = super().__init__
            start(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = bool(super().update(n))
            if self._counts:
                report(what, self.n, self.total or 0)
            return drawn

    return Bar
