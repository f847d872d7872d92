"""Evaluate a policy on benchmarks: load, ask what is not stored yet, grade, sum up, remember."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.bench import evaluate, spec, stats
from tpcli.bench.folder import EvaluationFolder, result_name
from tpcli.bench.items import Item, Loaded, first, load
from tpcli.errors import NotFoundError, OfflineError, TpcliError, UsageError
from tpcli.jobs.provenance import code_identity, machine, package_versions
from tpcli.jobs.runs import runs_dir
from tpcli.jobs.subject import Subject, resolve
from tpcli.names import DtypeName
from tpcli.registry.store import Registry
from tpcli.reward.verify import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tpcli.data.prompts import PromptSet
    from tpcli.rollout.engine import RolloutEngine

ENGINE = "transformers"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; None leaves a setting to its default.

    Attributes:
        benches: benchmarks and groups by name.
        files: the user's own rows, by benchmark.
        n: samples a question.
        limit: questions a benchmark.
        own_prompt: ask as the run's recipe does: its system message, template and examples.
        rows: responses decoded at once.
        verifier: in place of the benchmark's own.
        regrade: grade what is stored again; generate nothing.
    """

    benches: tuple[str, ...]
    target: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    n: int = 8
    limit: int | None = None
    step: int | None = None
    vs: str | None = None
    seed: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    thinking: bool | None = None
    own_prompt: bool = False
    rows: int = 64
    dtype: DtypeName | None = None
    verifier: str | None = None
    regrade: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy on one benchmark.

    Attributes:
        items: the questions that were asked, in order.
        result: what is stored, as JSON.
        stored: nothing was generated: the result, or all responses, were there already.
        made: questions made to find these, where they are generated.
    """

    bench: str
    title: str
    items: tuple[Item, ...]
    summary: evaluate.Summary
    result: dict[str, Any]
    folder: Path
    stored: bool
    made: int | None

    def shares(self) -> list[float]:
        """c_q / n of every question, in order."""
        return [self.summary.correct[item.id] / self.summary.n for item in self.items]


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


class Observer:
    """Told how the work goes; does nothing itself."""

    def fetching(self, what: str, done: float, total: float) -> None:
        """Weights or rows on their way; ``total`` is 0 where nobody knows it."""

    def generating(self, bench: str, done: int, asked: int, tokens: int) -> None:
        """Responses of a benchmark, and tokens since the command began on it."""


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
    policy = _Policy(subject, request, observer)
    outcomes = tuple(policy.on(bench, one) for bench, one in zip(benches, loaded, strict=True))
    mean = stats.macro([o.summary.avg for o in outcomes]) if len(outcomes) > 1 else None
    done = Evaluated(subject, policy.sampling, outcomes, mean, notes=tuple(policy.notes))
    if request.vs is None:
        return done
    other = resolve(request.vs, step=None, report=observer.fetching)
    rival = _Policy(other, replace(request, **_settled(policy.sampling)), observer)
    others = tuple(rival.on(bench, one) for bench, one in zip(benches, loaded, strict=True))
    return replace(
        done,
        other=other,
        others=others,
        against=_against(outcomes, others),
        notes=(*done.notes, *rival.notes),
    )


def _settled(sampling: evaluate.Sampling) -> dict[str, Any]:
    """The other side of a comparison is sampled in the very same way."""
    return {k: v for k, v in asdict(sampling).items() if k != "seed"}


def _against(new: Sequence[Outcome], old: Sequence[Outcome]) -> tuple[Against, ...]:
    pairs = [
        stats.paired(ours.shares(), theirs.shares()) for ours, theirs in zip(new, old, strict=True)
    ]
    adjusted = stats.holm([pair.p_t for pair in pairs])
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


# Benchmarks


def _benches(request: Request) -> list[spec.Benchmark]:
    """The benchmarks, read from the user's files where such are named."""
    benches = spec.find(request.benches)
    names = [bench.name for bench in benches]
    files = dict[str, Path]()
    for name, path in request.files.items():
        members = spec.members(name)
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


# One policy


class _Policy:
    """A subject with its settings; its model is loaded when the first response is missing."""

    def __init__(self, subject: Subject, request: Request, observer: Observer) -> None:
        self._subject, self._request, self._observer = subject, request, observer
        self._engine: RolloutEngine | None = None
        self._tokenizer = self._load_tokenizer()
        self._asking = _asking(subject, request)
        self.notes: list[str] = []
        self.sampling = self._sampling()
        self._dtype = request.dtype or _best_dtype()

    def on(self, bench: spec.Benchmark, loaded: Loaded) -> Outcome:
        """Evaluate on one benchmark."""
        request = self._request
        prompts = self._prompts(bench, loaded)
        sampling = self._within(bench, prompts)
        folder = EvaluationFolder(
            self._subject.base, bench.name, self._settings(bench, loaded, prompts, sampling)
        )
        items = first(loaded, request.limit)
        kind = request.verifier or bench.spec.kind
        name = result_name(request.n, None if items == loaded.items else len(items), kind)
        with folder.alone():
            before = folder.result(name)
            lacks = evaluate.missing(folder, items, request.n)
            if lacks and request.regrade:
                raise NotFoundError(
                    f"{bench.name}: {len(lacks)} responses of {len(items) * request.n} are not "
                    "stored, so there is nothing to grade again",
                    hint="leave --regrade out to generate them",
                )
            if before is None or lacks or request.regrade:
                folder.begin(loaded.items)
                seconds = self._generate(folder, bench, prompts, items, sampling) if lacks else 0.0
                before = self._conclude(folder, bench, loaded, items, kind, name, seconds)
        Registry(runs_dir()).index_evaluation(folder.path / name)
        return Outcome(
            bench=bench.name,
            title=bench.spec.title,
            items=items,
            summary=summary_of(before),
            result=before,
            folder=folder.path,
            stored=not lacks,
            made=loaded.made,
        )

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        from tpcli.policy.load import load_tokenizer

        return load_tokenizer(
            self._subject.weights, trust_remote_code=self._subject.trust_remote_code
        )

    def _sampling(self) -> evaluate.Sampling:
        """Flags over the run's own limit of tokens over the defaults."""
        request, recipe = self._request, self._subject.recipe
        usual = evaluate.Sampling()
        longest = usual.max_tokens
        if self._subject.run is not None and recipe is not None:
            longest = recipe.eval.max_new_tokens or recipe.rollout.max_new_tokens

        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        return evaluate.Sampling(
            temperature=given(request.temperature, usual.temperature),
            top_p=given(request.top_p, usual.top_p),
            top_k=given(request.top_k, usual.top_k),
            max_tokens=given(request.max_tokens, longest),
            seed=request.seed,
        )

    def _prompts(self, bench: spec.Benchmark, loaded: Loaded) -> PromptSet:
        from tpcli.policy.load import context_of

        asking = self._asking
        if bench.spec.system is not None and not self._request.own_prompt:
            asking = replace(asking, system=bench.spec.system)
        context = context_of(
            self._subject.weights, trust_remote_code=self._subject.trust_remote_code
        )
        self._context = context
        prompts = evaluate.prompts_of(
            loaded.items, self._tokenizer, asking, max_prompt_tokens=(context or 10**9) - 1
        )
        if prompts.too_long:
            raise UsageError(
                f"{bench.name}: {prompts.too_long} of {len(loaded.items)} prompts do not fit into "
                f"the model's {context} tokens",
                hint="a benchmark without some of its questions is another one: leave it out",
            )
        return prompts

    def _within(self, bench: spec.Benchmark, prompts: PromptSet) -> evaluate.Sampling:
        """The sampling with as many tokens as the model's positions have room for."""
        if self._context is None:
            return self.sampling
        room = self._context - max(len(prompt.tokens) for prompt in prompts.prompts)
        if room >= self.sampling.max_tokens:
            return self.sampling
        if self._request.max_tokens is not None:
            self.notes.append(
                f"{bench.name}: responses end at {room} tokens, not {self.sampling.max_tokens}: "
                f"the model's positions end at {self._context}"
            )
        return replace(self.sampling, max_tokens=room)

    def _settings(
        self,
        bench: spec.Benchmark,
        loaded: Loaded,
        prompts: PromptSet,
        sampling: evaluate.Sampling,
    ) -> dict[str, Any]:
        """What decides which responses come; how many of them is not among it."""
        return {
            "bench": bench.name,
            "revision": loaded.revision,
            "questions": loaded.sha256,
            "policy": self._subject.digest,
            "engine": ENGINE,
            "dtype": self._dtype,
            "chat_template": prompts.template_hash,
            "asking": asdict(self._asking),
            "sampling": asdict(sampling),
        }

    def _generate(
        self,
        folder: EvaluationFolder,
        bench: spec.Benchmark,
        prompts: PromptSet,
        items: Sequence[Item],
        sampling: evaluate.Sampling,
    ) -> float:
        engine = self._loaded()
        chosen = {item.id for item in items}
        began = time.perf_counter()
        evaluate.generate(
            folder,
            [prompt for prompt in prompts.prompts if prompt.question.id in chosen],
            engine,
            self._tokenizer,
            sampling,
            n=self._request.n,
            rows=self._request.rows,
            progress=lambda done, asked, tokens: self._observer.generating(
                bench.name, done, asked, tokens
            ),
        )
        return time.perf_counter() - began

    def _loaded(self) -> RolloutEngine:
        if self._engine is None:
            import torch

            from tpcli.policy.load import eos_ids, load_model, pad_id
            from tpcli.rollout.transformers import TransformersEngine

            self._observer.fetching("loading the model", 0, 0)
            model, tokenizer = load_model(
                self._subject.weights,
                dtype=self._dtype,
                trust_remote_code=self._subject.trust_remote_code,
            )
            model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
            self._engine = TransformersEngine(
                model,
                eos_ids=eos_ids(model, tokenizer),
                pad_id=pad_id(tokenizer),
                max_rows=max(self._request.rows, evaluate.BLOCK),
            )
        return self._engine

    def _conclude(
        self,
        folder: EvaluationFolder,
        bench: spec.Benchmark,
        loaded: Loaded,
        items: Sequence[Item],
        kind: str,
        name: str,
        seconds: float,
    ) -> dict[str, Any]:
        """Grade and store the result."""
        request, subject = self._request, self._subject
        with Grader(kind) as grader:
            verdicts = evaluate.grade(
                folder, items, grader, n=request.n, kind=kind, again=request.regrade
            )
        summary = evaluate.summarise(items, folder.generations(), verdicts, n=request.n)
        versions = package_versions()
        result = {
            "bench": bench.name,
            "title": bench.spec.title,
            "label": subject.label,
            "run": subject.run.id if subject.run else None,
            "step": subject.step,
            "digest": subject.digest,
            "limit": None if len(items) == len(loaded.items) else len(items),
            "verifier": kind,
            "settings": folder.settings,
            "settings_key": folder.key,
            "summary": summary.record(),
            "seconds": seconds,
            "created": time.time(),
            "code": code_identity(),
            "packages": {k: versions.get(k) for k in ("math-verify", "torch", "transformers")},
            "machine": machine(),
        }
        folder.write_result(name, result)
        return result


def summary_of(result: Mapping[str, Any]) -> evaluate.Summary:
    """The summary of a stored result."""
    found = dict(result["summary"])
    estimate = stats.Estimate
    return evaluate.Summary(
        **found
        | {
            "avg": estimate(**found["avg"]),
            "maj": estimate(**found["maj"]),
            "passed": {int(k): estimate(**one) for k, one in found["passed"].items()},
        }
    )


def _asking(subject: Subject, request: Request) -> evaluate.Asking:
    recipe = subject.recipe
    thinking = request.thinking
    if thinking is None and recipe is not None:
        thinking = recipe.data.thinking
    if not request.own_prompt:
        return evaluate.Asking(thinking=thinking)
    if recipe is None:
        raise UsageError(
            f"{subject.label} has no recipe whose prompt could be used",
            hint="--prompt recipe is for runs and recipes",
        )
    data = recipe.data
    examples = tuple((e.question, e.solution) for e in data.examples)
    return evaluate.Asking(data.system, data.template, examples, thinking)


def _best_dtype() -> DtypeName:
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def mirror(subject: Subject) -> str | None:
    """Log the results of a run in MLflow; what went wrong in one line."""
    if subject.run is None:
        return None
    from tpcli.jobs.mirror import sync_tracked

    with contextlib.suppress(TpcliError):
        return sync_tracked(subject.run.folder).error
    return None
