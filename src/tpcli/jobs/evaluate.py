"""Evaluate a policy on benchmarks, alone or against another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tpcli.bench import evaluate, spec, stats
from tpcli.bench.items import Loaded, load
from tpcli.errors import OfflineError, UsageError
from tpcli.jobs.examine import Observer, Outcome, Policy, Request
from tpcli.jobs.runs import runs_dir
from tpcli.jobs.subject import Subject, resolve
from tpcli.registry.folder import write_json_atomic
from tpcli.registry.store import Registry
from tpcli.reward.verify import Grader


@dataclass(frozen=True, slots=True)
class Against:
    """One benchmark, the policy against another: paired by question."""

    bench: str
    old: stats.Estimate
    paired: stats.Paired
    solved: stats.Table2x2
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Everything a screen shows.

    Attributes:
        notes: what the reader should know before believing the numbers.
    """

    subject: Subject
    sampling: evaluate.Sampling
    outcomes: tuple[Outcome, ...]
    mean: stats.Estimate | None
    other: Subject | None = None
    others: tuple[Outcome, ...] = ()
    against: tuple[Against, ...] = ()
    notes: tuple[str, ...] = ()


def run(request: Request, observer: Observer) -> Evaluated:
    """Evaluate, answering from what is stored wherever it is there.

    Raises:
        OfflineError: rows or weights would have to be downloaded, and cannot be.
        NotFoundError, UsageError: no such run, checkpoint or benchmark, or settings that do not
            go together.
    """
    _check(request)
    benches = _benches(request)
    loaded = _load_all(benches, request)
    subject = resolve(request.target, step=request.step, report=observer.fetching)
    policy = Policy(subject, request, observer)
    outcomes = tuple(policy.on(bench, one) for bench, one in zip(benches, loaded, strict=True))
    mean = stats.macro([o.summary.avg for o in outcomes]) if len(outcomes) > 1 else None
    done = Evaluated(subject, policy.sampling, outcomes, mean, notes=tuple(policy.notes))
    if request.vs is None:
        return done
    policy.release()  # two models at once may not fit
    other = resolve(request.vs, step=None, report=observer.fetching)
    rival = Policy(other, replace(request, **_settled(policy.sampling)), observer)
    others = tuple(rival.on(bench, one) for bench, one in zip(benches, loaded, strict=True))
    against = _against(outcomes, others)
    _remember(subject, other, against, request.n)
    return replace(
        done,
        other=other,
        others=others,
        against=against,
        notes=(*done.notes, *rival.notes),
    )


def _remember(subject: Subject, other: Subject, against: Sequence[Against], n: int) -> None:
    """Store the comparison beside the evaluations; of the same benchmarks the newest counts."""
    asked = hashlib.sha256("\0".join(one.bench for one in against).encode()).hexdigest()
    path = subject.base / f"versus-{subject.digest[:10]}-{other.digest[:10]}-n{n}-{asked[:6]}.json"
    record = {
        "label": subject.label,
        "other": other.label,
        "run": subject.run.id if subject.run else None,
        "step": subject.step,
        "created": time.time(),
        "benches": [asdict(one) for one in against],
    }
    write_json_atomic(path, record)
    Registry(runs_dir()).index_comparison(path)


def _settled(sampling: evaluate.Sampling) -> dict[str, Any]:
    """The other side of a comparison is sampled in the very same way."""
    return {k: v for k, v in asdict(sampling).items() if k != "seed"}


def _against(new: Sequence[Outcome], old: Sequence[Outcome]) -> tuple[Against, ...]:
    pairs = [
        stats.paired(ours.shares(), theirs.shares()) for ours, theirs in zip(new, old, strict=True)
    ]
    # Where all differences are equal there is no t test; the exact one stands in for it.
    adjusted = stats.holm([p.p_sign_flip if p.p_t is None else p.p_t for p in pairs])
    return tuple(
        Against(
            bench=ours.bench,
            old=theirs.summary.avg,
            paired=pair,
            solved=stats.solved(ours.shares(), theirs.shares()),
            p_holm=p,
        )
        for ours, theirs, pair, p in zip(new, old, pairs, adjusted, strict=True)
    )


def _check(request: Request) -> None:
    if request.temperature == 0 and request.n > 1:
        raise UsageError(
            f"{request.n} samples at temperature 0 would be {request.n} times the same",
            hint="add --n 1 for a greedy evaluation, or raise --temperature",
        )
    if request.verifier is not None:
        Grader(request.verifier).close()  # refuses what is no verifier, before anything is loaded


# Benchmarks


def _benches(request: Request) -> list[spec.Benchmark]:
    """The benchmarks, read from the user's files where such are named."""
    benches = spec.find(request.benches)
    names = [bench.name for bench in benches]
    files = dict[str, Path]()
    for name, path in request.files.items():
        members = [name] if name in names else spec.members(name)
        if path.is_dir():
            files |= {member: _in_folder(path, member) for member in members}
        elif len(members) > 1:
            each = " ".join(f"--bench-file {member}=FILE" for member in members)
            raise UsageError(
                f"{name} is {' and '.join(members)}, and {path} is one file",
                hint=f"{each}, or a folder that holds {members[0]}.jsonl and so on",
            )
        else:
            files[members[0]] = path
    for name, path in files.items():
        if name not in names:
            raise UsageError(
                f"--bench-file {name}={path} is for a benchmark that is not asked for",
                hint=f"add it: --bench {','.join([*names, name])}",
            )
        if not path.is_file():
            raise UsageError(f"--bench-file {name}: there is no file {path}", hint="check the path")
    return [
        bench.read_from(files[bench.name]) if bench.name in files else bench for bench in benches
    ]


def _in_folder(folder: Path, name: str) -> Path:
    from tpcli.data.files import SUFFIXES

    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if not found:
        raise UsageError(
            f"{folder} holds no rows of {name}",
            hint=f"name the file {name}.jsonl (.json, .csv or .parquet)",
        )
    return found[0]


def _load_all(benches: Sequence[spec.Benchmark], request: Request) -> list[Loaded]:
    """The questions of every benchmark; all that cannot be reached are named at once."""
    loaded, away = [], []
    for bench in benches:
        try:
            loaded.append(load(bench, seed=request.seed))
        except OfflineError as error:
            away.append((bench, error))
    if len(away) == 1:
        raise away[0][1]
    if away:
        names = [bench.name for bench, _ in away]
        files = " ".join(f"--bench-file {spec.short(bench)}=FILE" for bench, _ in away)
        raise OfflineError(
            f"{', '.join(names[:-1])} and {names[-1]} cannot be loaded: the hub cannot be reached, "
            "and they are not in its cache",
            hint=f"give the rows yourself: {files}",
        )
    return loaded


def mirror(subject: Subject) -> str | None:
    """Log what is stored of a subject in MLflow; what went wrong in one line."""
    from tpcli.jobs.mirror import sync_model, sync_tracked

    if subject.run is not None:
        return sync_tracked(subject.run.folder).error
    return sync_model(subject.base.parent, subject.label)
