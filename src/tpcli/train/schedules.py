"""From a recipe's scalars to the numbers of one step."""

from collections.abc import Mapping

from tpcli.credit import schedule
from tpcli.optim.adamw import lr_at
from tpcli.recipe.scalar import Scalar, Schedule, moves
from tpcli.recipe.schema import Recipe
from tpcli.train.method import Knobs
from tpcli.train.tempo import Rule


def knobs_at(recipe: Recipe, step: int, shares: Mapping[str, float]) -> Knobs:
    """Every scheduled number at ``step``. Uniform credit has no magnitude.

    Args:
        shares: of the adaptive scalars, by dotted key.
    """
    value = {
        key: value_at(scalar, step, recipe.horizon, shares.get(key))
        for key, scalar in recipe.scalars().items()
    }
    followed = recipe.credit.magnitudes()
    moving = {
        key.partition(".")[2].replace(".", "_"): value[key]
        for key, scalar in recipe.scalars().items()
        if moves(scalar) and key != "credit.schedule" and not key.endswith(".magnitude")
    }
    if len(followed) > 1:
        moving |= {name: value[key] for name, key in followed.items()}
    return Knobs(
        temperature=value["rollout.temperature"],
        top_p=value["rollout.top_p"],
        penalty=value["reward.overlong.penalty"],
        alpha=value["credit.entropy_advantage.alpha"],
        kappa=value["credit.entropy_advantage.kappa"],
        tau_positive=value["loss.tau_positive"],
        tau_negative=value["loss.tau_negative"],
        correction_low=value["loss.correction.low"],
        correction_high=value["loss.correction.high"],
        magnitudes={name: value[key] for name, key in followed.items()},
        clip_low=value["loss.clip_low"],
        clip_high=value["loss.clip_high"],
        kl_coef=value["loss.kl_coef"],
        entropy_coef=value["loss.entropy_coef"],
        lr=lr_at(
            step,
            recipe.horizon,
            peak=value["optim.lr"],
            warmup_steps=recipe.optim.warmup_steps,
            schedule=recipe.optim.schedule,
        ),
        moving=moving,
    )


def value_at(scalar: Scalar, step: int, horizon: int, share: float | None = None) -> float:
    """A number, or what its schedule says at ``step`` (adaptive: at ``share``)."""
    if not isinstance(scalar, Schedule):
        return scalar
    return schedule.value(step, horizon, **scalar.course(), share=share)


def progress_at(recipe: Recipe, step: int, shares: Mapping[str, float]) -> float:
    """How far the first allocation's magnitude has come."""
    key = next(iter(recipe.credit.magnitudes().values()), None)
    scalar = recipe.scalars()[key] if key else None
    if key is None or not isinstance(scalar, Schedule) or not moves(scalar):
        return 0.0
    if scalar.curve == "adaptive":
        return 1.0 - shares[key]
    return schedule.progress(step, recipe.horizon, start=scalar.start, end=scalar.end)


def rules(recipe: Recipe) -> dict[str, Rule]:
    """The scalars that follow a measurement."""
    found = {}
    for key, scalar in recipe.scalars().items():
        if isinstance(scalar, Schedule) and scalar.curve == "adaptive":
            first, last = schedule.window(recipe.horizon, start=scalar.start, end=scalar.end)
            assert scalar.target is not None
            found[key] = Rule(
                signal=scalar.signal,
                target=scalar.target,
                gain=scalar.gain,
                max_change=scalar.max_change,
                smoothing=scalar.smoothing,
                first=first,
                last=last,
            )
    return found
