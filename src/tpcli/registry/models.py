"""The registry's tables as SQLAlchemy sees them. ``migrations`` must build exactly these."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Index, Integer, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Python's types as SQLite stores them."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        str: Text,
        int: Integer,
        float: Float,
        list[str]: JSON,
        list[float]: JSON,
        dict[str, float]: JSON,
        dict[str, Any]: JSON,
    }


class RunRow(Base):
    """One run folder: who it is, how it stands, and the numbers that a list of runs shows."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created: Mapped[float]
    fingerprint: Mapped[str]
    seed: Mapped[int]
    recipe: Mapped[str]
    model: Mapped[str]
    allocation: Mapped[str]
    curve: Mapped[str]
    window_start: Mapped[float | None]
    window_end: Mapped[float | None]
    steps: Mapped[int]
    horizon: Mapped[int]
    tags: Mapped[list[str]]
    note: Mapped[str]
    code: Mapped[str]
    git: Mapped[str]
    status: Mapped[str]
    pid: Mapped[int | None]
    pid_started: Mapped[float | None]
    host: Mapped[str | None]
    heartbeat: Mapped[float | None]
    finished: Mapped[float | None]
    exit_code: Mapped[int | None]
    error: Mapped[str | None]
    hint: Mapped[str | None]
    step: Mapped[int]
    reward_first: Mapped[float | None]
    reward_last: Mapped[float | None]
    entropy_first: Mapped[float | None]
    entropy_last: Mapped[float | None]
    sampled_first: Mapped[float | None]
    sampled_last: Mapped[float | None]
    greedy_first: Mapped[float | None]
    greedy_last: Mapped[float | None]
    reward_history: Mapped[list[float]]
    parent: Mapped[str | None]
    parent_step: Mapped[int | None]
    removed: Mapped[float | None]
    settings: Mapped[dict[str, Any]]  # the widest come last: the others are read without them
    metrics: Mapped[dict[str, float]]

    __table_args__ = (
        Index("runs_by_name", "name"),
        Index("runs_by_created", "created"),
        Index("runs_by_fingerprint", "fingerprint"),
        Index("runs_unread", "id", sqlite_where=text("settings = 'null'")),
    )


class EvaluationRow(Base):
    """One result of a benchmark: whose, on what, and the numbers that a leaderboard shows."""

    __tablename__ = "evaluations"

    path: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str | None]
    step: Mapped[int | None]
    label: Mapped[str]
    digest: Mapped[str]
    bench: Mapped[str]
    settings: Mapped[str]
    verifier: Mapped[str]
    n: Mapped[int]
    questions: Mapped[int]
    limit: Mapped[int | None]
    seed: Mapped[int]
    value: Mapped[float]
    se: Mapped[float | None]
    low: Mapped[float]
    high: Mapped[float]
    maj: Mapped[float]
    truncated: Mapped[float]
    no_answer: Mapped[float]
    timeout: Mapped[float]
    crash: Mapped[float]
    passed: Mapped[dict[str, float]]
    tokens: Mapped[float]
    created: Mapped[float]

    __table_args__ = (
        Index("evaluations_by_run", "run"),
        Index("evaluations_by_bench", "bench"),
    )


class ComparisonRow(Base):
    """One policy against another on one benchmark, paired by question."""

    __tablename__ = "comparisons"

    path: Mapped[str] = mapped_column(primary_key=True)
    bench: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str | None]
    step: Mapped[int | None]
    label: Mapped[str]
    other: Mapped[str]
    difference: Mapped[float]
    se: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    p_t: Mapped[float | None]
    p_holm: Mapped[float | None]
    p_sign_flip: Mapped[float]
    only_new: Mapped[int]
    lost: Mapped[int]
    both: Mapped[int]
    neither: Mapped[int]
    created: Mapped[float]
