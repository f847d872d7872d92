"""Rows of a data set on the Hugging Face hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tpcli.data.rows import Fields, Record, Row, check_keys
from tpcli.errors import OfflineError, TpcliError, UsageError


class GatedError(UsageError):
    """A set that its owner gives only to those whom they have let in."""

    kind = "gated"


class HubSplit(NamedTuple):
    """One split of a hub set, loaded."""

    columns: list[str]
    records: Iterator[Record]


def read_hub(
    name: str, config: Mapping[str, Any], *, revision: str | None, fields: Fields
) -> Iterator[Row]:
    """The questions of one split of a hub set.

    Args:
        name: "OWNER/NAME".
        config: "name" of the configuration (optional) and "split" (default "train").
        revision: branch, tag or commit.
        fields: the columns to read.
    """
    check_keys(config, ("name", "split"), "a hub set")
    split = config.get("split", "train")
    if not isinstance(split, str):
        raise UsageError("[data.config].split is not text", hint='write split = "train"')
    table = hub_split(name, config=config.get("name"), split=split, revision=revision)
    fields.check(table.columns, f"hf:{name}")
    for where, record in table.records:
        yield fields.row(record, where)


def hub_split(name: str, *, config: str | None, split: str, revision: str | None) -> HubSplit:
    """One split of a hub set; code that ships with a set is never run.

    Raises:
        OfflineError: the hub cannot be reached, and the set is not in its cache.
        GatedError: the hub wants to know who asks.
        UsageError: there is no such set, configuration, split or revision.
    """
    import datasets

    try:
        with _no_bars(), _no_retries_offline():
            table = datasets.load_dataset(name, name=config, split=split, revision=revision)
            table = _of_edition(table, split, revision)
    except Exception as error:  # the library raises a dozen unrelated types
        raise _refusal(name, error) from error
    records = (
        (f"hf:{name}, row {number} of {split}", record)
        for number, record in enumerate(table, start=1)
    )
    return HubSplit(table.column_names, records)


def _of_edition(table: Any, split: str, revision: str | None) -> Any:
    """``table``, or the same split of the commit that was asked for: where the hub is away, the
    library takes the edition that was loaded last, whatever it is."""
    import datasets

    folders = {Path(file["filename"]).parent for file in table.cache_files}
    others = [folder for folder in folders if _is_commit(folder.name) and folder.name != revision]
    if revision is None or not _is_commit(revision) or not others:
        return table
    ending = re.compile(rf"-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
    kept = [file for folder in others for file in (folder.parent / revision).glob("*.arrow")]
    files = sorted(str(file) for file in kept if ending.search(file.name))
    if not files:
        raise ConnectionError(f"the cache holds {others[0].name}, not {revision}")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])


def _is_commit(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", name) is not None


@contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _no_retries_offline() -> Iterator[None]:
    """Where the hub does not answer, only look into the cache: the library would ask five times
    over half a minute first, for every file."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    """Whether the hub answers at all, whatever it says, within a few seconds."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError

    # httpx or httpx2, whichever this version of the hub's library is built on.
    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except (transport_error, OSError):
        return False
    return True


def _refusal(name: str, error: Exception) -> TpcliError:
    """One line for what went wrong between us and the hub."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "gated" in said:
        return GatedError(
            f"the hub gives hf:{name} only to those whom its owner has let in",
            hint="ask for access on the data set's page, then log in with `hf auth login` "
            "or set HF_TOKEN",
        )
    if "scripts are no longer supported" in said:
        return UsageError(
            f"hf:{name} is built by a script, which tpcli does not run",
            hint="choose a set, or a revision of it, that holds plain files",
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return UsageError(
            said, hint="check [data].source and [data].revision; log in for a private set"
        )
    if isinstance(error, ConnectionError | TimeoutError) or "Connect" in type(error).__name__:
        return OfflineError(
            f"the hub cannot be reached, and hf:{name} is not in its cache",
            hint="load it where there is a network and point HF_HOME at a copy of that cache, "
            "or name a .jsonl or .parquet file in [data].source; "
            "if HF_HUB_OFFLINE is set, unset it",
        )
    return UsageError(
        f"hf:{name} cannot be loaded: {said[:300]}",
        hint="check [data].source, [data.config].name and [data.config].split",
    )
