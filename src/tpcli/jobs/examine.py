"""One policy on one benchmark: ask what is not stored yet, grade it, store what it was worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tpcli.bench import evaluate, stats
from tpcli.bench.folder import EvaluationFolder, result_name
from tpcli.bench.items import Item, Loaded, first
from tpcli.errors import NotFoundError, TpcliError, UsageError
from tpcli.jobs.engines import Engines
from tpcli.jobs.provenance import code_identity, machine, package_versions
from tpcli.jobs.runs import runs_dir
from tpcli.names import DtypeName, EngineName, VerifierName
from tpcli.registry.store import Registry
from tpcli.reward.verify import Grader
from tpcli.types import Question

if TYPE_CHECKING:
    from tpcli.bench.spec import Benchmark
    from tpcli.data.prompts import PromptSet
    from tpcli.jobs.subject import Subject
    from tpcli.types import Prompt


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; None leaves a setting to its default.

    Attributes:
        benches: benchmarks and groups by name.
        files: the user's own rows, by benchmark.
        n: samples a question.
        limit: questions a benchmark.
        own_prompt: ask as the run's recipe does: its system message, template and examples.
        rows: responses decoded at once; None is as many as memory has room for, up to 64, and 256
            with vLLM, which queues what does not fit.
        engine: what generates; "vllm-server" is the one at ``server``, which is given the weights.
        tensor_parallel: GPUs that share one copy of the weights, engine "vllm".
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
    rows: int | None = None
    dtype: DtypeName | None = None
    engine: EngineName = "transformers"
    server: str | None = None
    tensor_parallel: int = 1
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


class Observer:
    """Told how the work goes; does nothing itself."""

    def fetching(self, what: str, done: float, total: float) -> None:
        """Weights or rows on their way; ``total`` is 0 where nobody knows it."""

    def generating(self, bench: str, done: int, asked: int, tokens: int) -> None:
        """Responses of a benchmark, and tokens since the command began on it."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One benchmark as it will be asked.

    Attributes:
        items: the questions that are wanted, of all that were loaded.
        prompts: of these, in the same order.
        kind: of the verifier.
        name: the result's file.
    """

    bench: Benchmark
    loaded: Loaded
    items: tuple[Item, ...]
    prompts: tuple[Prompt, ...]
    sampling: evaluate.Sampling
    folder: EvaluationFolder
    kind: str
    name: str

    @property
    def verifier(self) -> str:
        """The verifier and its version: what another one said is graded anew."""
        return f"{self.kind} by {code_identity()}, math-verify {version('math-verify')}"


class Policy:
    """A subject and how it is asked; its model is loaded when the first response is missing.

    ``sampling`` is that of every benchmark but for the room that prompts leave; ``notes`` says
    what differs from what was asked for.
    """

    def __init__(self, subject: Subject, request: Request, observer: Observer) -> None:
        from tpcli.policy.load import context_of, load_tokenizer

        trust = subject.trust_remote_code
        self._subject, self._request, self._observer = subject, request, observer
        self._tokenizer = load_tokenizer(subject.weights, trust_remote_code=trust)
        self._context = context_of(subject.weights, trust_remote_code=trust)
        self._engines = Engines(subject, request, self._tokenizer, observer)
        self.sampling = _sampling(subject, request)
        self.notes: list[str] = []

    def on(self, bench: Benchmark, loaded: Loaded) -> Outcome:
        """Evaluate on one benchmark, answering from what is stored."""
        plan, n, regrade = self._plan(bench, loaded), self._request.n, self._request.regrade
        with plan.folder.alone():
            result = _usable(plan.folder.result(plan.name))
            if result is not None and not _settled(result, plan):
                result = None
            lacks = evaluate.missing(plan.folder, plan.items, n)
            if lacks and regrade:
                raise NotFoundError(
                    f"{bench.name}: {len(lacks)} responses of {len(plan.items) * n} are not "
                    "stored, so there is nothing to grade again",
                    hint="leave --regrade out to generate them",
                )
            if result is None or lacks or regrade:
                with Grader(plan.kind, folders=[bench.folder]) as grader:
                    notes = _unreadable(plan, grader)  # before hours of generating
                    seconds = self._generate(plan) if lacks else 0.0
                    result = self._conclude(plan, grader, seconds, notes)
        self.notes += result["notes"]
        Registry(runs_dir()).index_evaluation(plan.folder.path / plan.name)
        return Outcome(
            bench=bench.name,
            title=bench.spec.title,
            items=plan.items,
            summary=summary_of(result),
            result=result,
            folder=plan.folder.path,
            stored=not lacks,
            made=loaded.made,
        )

    def _plan(self, bench: Benchmark, loaded: Loaded) -> _Plan:
        asking = _asking(self._subject, self._request, bench)
        # Settings are those of all questions: a part of them is stored in the same place.
        every = self._prompts(bench, loaded, asking)
        sampling = self._within(bench, every)
        settings = {
            "bench": bench.name,
            "revision": loaded.revision,
            "questions": loaded.sha256,
            "policy": self._subject.digest,
            "engine": self._request.engine,
            # A server computes in a type of its own.
            "dtype": self._engines.dtype if self._request.server is None else "server",
            "chat_template": every.template_hash,
            "asking": asdict(asking),
            "sampling": asdict(sampling),
        }
        items = first(loaded, self._request.limit)
        wanted = {item.id for item in items}
        kind = self._request.verifier or bench.spec.kind
        part = None if len(items) == len(loaded.items) else len(items)
        return _Plan(
            bench=bench,
            loaded=loaded,
            items=items,
            prompts=tuple(p for p in every.prompts if p.question.id in wanted),
            sampling=sampling,
            folder=EvaluationFolder(self._subject.base, bench.name, settings),
            kind=kind,
            name=result_name(self._request.n, part, kind),
        )

    def _prompts(self, bench: Benchmark, loaded: Loaded, asking: evaluate.Asking) -> PromptSet:
        longest = (self._context or 10**9) - 1
        prompts = evaluate.prompts_of(
            loaded.items, self._tokenizer, asking, max_prompt_tokens=longest
        )
        if prompts.too_long:
            raise UsageError(
                f"{bench.name}: {prompts.too_long} of {len(loaded.items)} prompts do not fit into "
                f"the model's {self._context} tokens",
                hint="a benchmark without some of its questions is another one: leave it out",
            )
        return prompts

    def _within(self, bench: Benchmark, prompts: PromptSet) -> evaluate.Sampling:
        """The sampling with as many tokens as the model's positions have room for."""
        if self._context is None:
            return self.sampling
        room = self._context - max(len(prompt.tokens) for prompt in prompts.prompts)
        if room >= self.sampling.max_tokens:
            return self.sampling
        self.notes.append(
            f"{bench.name}: responses end at {room:,} tokens, not {self.sampling.max_tokens:,}: "
            f"the model's positions end at {self._context:,}"
        )
        return replace(self.sampling, max_tokens=room)

    def _generate(self, plan: _Plan) -> float:
        """Draw what is missing; seconds it took, the loading of the model apart."""
        plan.folder.begin(plan.loaded.items)
        longest = max(len(prompt.tokens) for prompt in plan.prompts) + plan.sampling.max_tokens
        engine, rows = self._engines.of(longest)
        began = time.perf_counter()
        try:
            evaluate.generate(
                plan.folder,
                plan.prompts,
                engine,
                self._tokenizer,
                plan.sampling,
                n=self._request.n,
                rows=rows,
                progress=partial(self._observer.generating, plan.bench.name),
            )
        except (RuntimeError, MemoryError) as error:
            if "memory" not in f"{type(error).__name__} {error}".lower():
                raise
            raise TpcliError(
                f"{plan.bench.name}: {rows} responses of up to {plan.sampling.max_tokens:,} tokens "
                "do not fit into memory at once; those that were done are stored",
                hint=f"--rows {max(rows // 2, 1)}, or a smaller --max-tokens",
            ) from error
        return time.perf_counter() - began

    def release(self) -> None:
        """Give the model's memory back."""
        self._engines.release()

    def _conclude(
        self, plan: _Plan, grader: Grader, seconds: float, notes: Sequence[str]
    ) -> dict[str, Any]:
        """Grade and store the result."""
        request, subject = self._request, self._subject
        self._observer.fetching(f"grading {plan.bench.name}", 0, 0)
        own = plan.kind not in get_args(VerifierName)  # may have been edited since
        verdicts = evaluate.grade(
            plan.folder,
            plan.items,
            grader,
            n=request.n,
            kind=plan.verifier,
            again=request.regrade or own,
        )
        generations = plan.folder.generations()
        summary = evaluate.summarise(plan.items, generations, verdicts, n=request.n)
        part = len(plan.items) < len(plan.loaded.items)
        versions = package_versions()
        result = {
            "bench": plan.bench.name,
            "title": plan.bench.spec.title,
            "label": subject.label,
            "run": subject.run.id if subject.run else None,
            "step": subject.step,
            "digest": subject.digest,
            "limit": len(plan.items) if part else None,
            "verifier": plan.kind,
            "verified_by": plan.verifier,
            "settings": plan.folder.settings,
            "settings_key": plan.folder.key,
            "summary": summary.record(),
            "notes": list(notes),
            "seconds": seconds,
            "created": time.time(),
            "code": code_identity(),
            "packages": {k: versions.get(k) for k in ("math-verify", "torch", "transformers")},
            "machine": machine(),
        }
        plan.folder.write_result(plan.name, result)
        return result


def _unreadable(plan: _Plan, grader: Grader) -> list[str]:
    """Right answers that are none to the verifier: their questions can only be wrong.

    Raises:
        UsageError: a user's own verifier that is not there.
    """
    questions = [Question(item.id, item.text, item.gold) for item in plan.items]
    try:
        grader.check(questions)
    except UsageError as error:
        if plan.kind not in get_args(VerifierName):
            raise
        return [f"{plan.bench.name}: {error.message}; these questions can only be wrong"]
    return []


def _usable(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stored result, unless another version wrote it in another form: that is summed up anew."""
    try:
        return result if result and summary_of(result) and "verified_by" in result else None
    except (KeyError, TypeError):
        return None


def _settled(result: Mapping[str, Any], plan: _Plan) -> bool:
    """Whether grading again could change nothing: the same built-in verifier of the same version,
    and no response that it could not judge for want of time."""
    shares = result["summary"]["shares"]
    same = result["verified_by"] == plan.verifier and plan.kind in get_args(VerifierName)
    return bool(same and not shares["timeout"] and not shares["crash"])


def summary_of(result: Mapping[str, Any]) -> evaluate.Summary:
    """The summary of a stored result."""
    found, estimate = dict(result["summary"]), stats.Estimate
    passed = {int(k): estimate(**one) for k, one in found["passed"].items()}
    averages = {key: estimate(**found[key]) for key in ("avg", "maj")}
    return evaluate.Summary(**found | averages | {"passed": passed})


def _sampling(subject: Subject, request: Request) -> evaluate.Sampling:
    """Flags over the run's own limit of tokens over the defaults."""
    usual = evaluate.Sampling(seed=request.seed)
    if subject.run is not None and subject.recipe is not None:
        trained = subject.recipe.rollout.max_new_tokens
        usual = replace(usual, max_tokens=subject.recipe.eval.max_new_tokens or trained)
    given = {key: getattr(request, key) for key in ("temperature", "top_p", "top_k", "max_tokens")}
    return replace(usual, **{key: value for key, value in given.items() if value is not None})


def _asking(subject: Subject, request: Request, bench: Benchmark) -> evaluate.Asking:
    """As the benchmark asks, or as the recipe does; thinking is the model's matter."""
    recipe, thinking = subject.recipe, request.thinking
    if thinking is None and recipe is not None:
        thinking = recipe.data.thinking
    if not request.own_prompt:
        return evaluate.Asking(system=bench.spec.system, thinking=thinking)
    if recipe is None:
        raise UsageError(
            f"{subject.label} has no recipe whose prompt could be used",
            hint="--prompt recipe is for runs and recipes",
        )
    data = recipe.data
    examples = tuple((e.question, e.solution) for e in data.examples)
    return evaluate.Asking(data.system, data.template, examples, thinking)
