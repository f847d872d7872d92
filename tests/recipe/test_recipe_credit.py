"""What a recipe says of credit: allocations, the scalars they follow, and their schedules."""

import inspect
from typing import Any, get_args

import pytest

from tpcli import names
from tpcli.credit import schedule
from tpcli.recipe.credit import CreditSection, LossSection, MagnitudeSection
from tpcli.recipe.scalar import Schedule, bounds, moves
from tpcli.recipe.schema import Recipe

SMALL = {"model": {"source": "m"}, "data": {"source": "running_sum"}, "train": {"steps": 10}}


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate(SMALL | tables)


def test_one_allocation_is_a_word_and_several_are_a_list() -> None:
    one = CreditSection.model_validate({"allocation": "forking_tokens"})
    assert (one.allocations, one.label) == (("forking_tokens",), "forking_tokens")
    several = CreditSection.model_validate({"allocation": ["trajectory_percentile", "shuffled"]})
    assert several.allocations == ("trajectory_percentile", "shuffled")
    assert several.label == "trajectory_percentile+shuffled"


def test_magnitudes_follow_the_schedule_or_their_own() -> None:
    """A list: the first has its own number, the second follows the schedule, the last has none."""
    credit = CreditSection.model_validate(
        {
            "allocation": ["forking_tokens", "low_probability", "shuffled"],
            "forking_tokens": {"magnitude": 0.8},
            "random_tokens": {"magnitude": 0.1},
        }
    )
    assert credit.magnitudes() == {
        "forking_tokens": "credit.forking_tokens.magnitude",
        "low_probability": "credit.schedule",
    }
    assert CreditSection(allocation="uniform").magnitudes() == {}


def test_every_allocation_with_a_magnitude_has_a_table() -> None:
    tables = {
        name
        for name in CreditSection.model_fields
        if isinstance(getattr(CreditSection(), name), MagnitudeSection)
    }
    assert tables == set(get_args(names.AllocationName)) - {"uniform", "shuffled"}


def test_scalars_are_those_of_the_recipe() -> None:
    """Also an allocation's own, where it has one."""
    own = recipe(credit={"forking_tokens": {"magnitude": 0.8}}).scalars()
    assert own["credit.forking_tokens.magnitude"] == 0.8
    assert own.keys() - recipe().scalars().keys() == {"credit.forking_tokens.magnitude"}
    assert recipe().scalars()["credit.schedule"] == Schedule()


@pytest.mark.parametrize("focus", ["late", "early", "middle", (0.2, 0.4), (0.0, 1.0), (0.5, 0.5)])
def test_a_focus_is_a_name_or_a_stretch(focus: Any) -> None:
    written = list(focus) if isinstance(focus, tuple) else focus
    section = {"trajectory_percentile": {"focus": written}}
    assert CreditSection.model_validate(section).trajectory_percentile.focus == focus


def test_the_course_is_what_the_schedule_takes() -> None:
    """Every keyword of ``schedule.value`` but the state of an adaptive one, and no other."""
    taken = set(inspect.signature(schedule.value).parameters) - {"step", "horizon", "share"}
    assert Schedule().course().keys() == taken
    piecewise = Schedule(curve="piecewise", points=((0.0, 1.0), (1.0, 0.5)))
    assert schedule.value(8, 10, **piecewise.course()) == 0.5
    assert schedule.value(0, 10, **Schedule(reverse=True).course()) == 0.0


@pytest.mark.parametrize("curve", sorted({*get_args(names.CurveName)} - {"piecewise", "adaptive"}))
def test_defaults_are_those_of_the_credit_functions(curve: names.CurveName) -> None:
    written = Schedule(curve=curve).course()
    for step in range(11):
        assert schedule.value(step, 10, **written) == schedule.value(step, 10, curve=curve)


def test_adaptive_defaults_are_those_of_the_rule() -> None:
    rule = inspect.signature(schedule.adapt).parameters
    assert Schedule().gain == rule["gain"].default
    assert Schedule().max_change == rule["max_change"].default


def test_bounds_are_the_extremes_of_the_course() -> None:
    assert bounds(0.5) == [("the value", 0.5)]
    assert bounds(Schedule(curve="constant", initial=0.3)) == [("initial", 0.3)]
    assert bounds(Schedule(curve="adaptive", target=1.0)) == [("initial", 0.99), ("final", 0.0)]
    points = ((0.0, 1.0), (0.5, 0.2), (1.0, 0.4))
    piecewise = Schedule(curve="piecewise", points=points)
    assert bounds(piecewise) == [("points", 1.0), ("points", 0.2), ("points", 0.4)]
    assert [moves(s) for s in (0.5, Schedule(curve="constant"), piecewise)] == [False, False, True]


@pytest.mark.parametrize("objective", get_args(names.ObjectiveName))
def test_every_objective_is_accepted_without_dual_clip(objective: str) -> None:
    loss = LossSection.model_validate({"objective": objective, "dual_clip": False})
    assert loss.objective == objective
    Recipe.model_validate(SMALL | {"loss": loss.model_dump()})


@pytest.mark.parametrize("advantage", get_args(names.AdvantageName))
def test_every_advantage_is_accepted(advantage: str) -> None:
    k = {"k": 4} if advantage == "pass_at_k" else {}
    assert recipe(credit={"advantage": advantage, **k}).credit.advantage == advantage


class TestWarnings:
    def warnings(self, **tables: Any) -> list[str]:
        return recipe(**tables).warnings()

    def test_a_plain_recipe_has_none(self) -> None:
        assert self.warnings() == []

    @pytest.mark.parametrize(
        ("credit", "expected"),
        [
            ({"allocation": "uniform", "schedule": 0.5}, "credit.schedule"),
            (
                {"forking_tokens": {"magnitude": 0.5}},
                'credit.forking_tokens has no effect under allocation = "trajectory_percentile"',
            ),
            (
                {
                    "allocation": ["forking_tokens", "shuffled"],
                    "forking_tokens": {"magnitude": 0.5},
                    "schedule": {"end": 0.5},
                },
                'credit.schedule has no effect under allocation = "forking_tokens+shuffled"',
            ),
            ({"schedule": {"gamma": 3.0}}, 'credit.schedule.gamma has no effect under curve = "l'),
            ({"schedule": {"rate": 3.0}}, "credit.schedule.rate"),
            ({"schedule": {"stairs": 3}}, "credit.schedule.stairs"),
            ({"schedule": {"points": [[0, 1], [1, 0]]}}, "credit.schedule.points"),
            ({"schedule": {"target": 0.3}}, "credit.schedule.target"),
            ({"schedule": {"curve": "constant", "end": 0.5}}, "credit.schedule.end"),
            (
                {"schedule": {"curve": "piecewise", "points": [[0, 1], [1, 0]], "final": 0.5}},
                "credit.schedule.final",
            ),
            ({"advantage": "gpg", "ddof": 0}, 'credit.ddof has no effect under advantage = "gpg"'),
        ],
    )
    def test_a_key_of_credit_that_nothing_reads(
        self, credit: dict[str, Any], expected: str
    ) -> None:
        (warning,) = self.warnings(credit=credit)
        assert warning.startswith(expected)

    @pytest.mark.parametrize(
        ("loss", "key"),
        [
            ({"tau_positive": 2.0}, "loss.tau_positive"),
            ({"objective": "reinforce", "dual_clip": False, "clip_low": 0.1}, "loss.clip_low"),
            ({"objective": "cispo_upper", "dual_clip": False, "clip_low": 0.1}, "loss.clip_low"),
            ({"objective": "sapo", "dual_clip": False, "clip_high": 0.1}, "loss.clip_high"),
            ({"kl_estimator": "k2"}, "loss.kl_estimator"),
            ({"correction": {"high": 3.0}}, "loss.correction.high"),
            ({"correction": {"kind": "truncate", "low": 0.5}}, "loss.correction.low"),
        ],
    )
    def test_a_key_of_the_loss_that_nothing_reads(self, loss: dict[str, Any], key: str) -> None:
        (warning,) = self.warnings(loss=loss)
        assert warning.startswith(f"{key} has no effect under ")

    def test_keys_that_are_read_and_keys_at_their_default_are_silent(self) -> None:
        """A recipe that was written out in full warns of nothing new."""
        credit = {
            "allocation": ["trajectory_percentile", "low_probability"],
            "trajectory_percentile": {"focus": "early"},
            "low_probability": {"magnitude": {"curve": "stairs", "stairs": 7}},
            "forking_tokens": {},
            "schedule": {"curve": "gamma", "gamma": 3.0, "rate": 5.0},
        }
        loss = {
            "objective": "sapo",
            "dual_clip": False,
            "tau_positive": 2.0,
            "kl_coef": 0.1,
            "kl_estimator": "k2",
            "correction": {"kind": "mask", "low": 0.5, "level": "sequence"},
        }
        full = recipe(credit=credit, loss=loss)
        assert full.warnings() == []
        assert Recipe.model_validate(full.model_dump()).warnings() == []

    def test_ramps_that_training_does_not_live_to_see(self) -> None:
        """Horizon 100, 20 steps: a window from 20 never opens, one to 80 is cut, one to 20 fits."""
        train = {"steps": 20, "horizon": 100}
        late = {"start": 0.2, "end": 0.8}
        never = "credit.schedule never moves: it begins after step 20, of 20"
        assert self.warnings(train=train, credit={"schedule": late}) == [never]
        assert self.warnings(train=train, credit={"schedule": {"end": 0.2}}) == []
        warm = {"temperature": {"initial": 1.0, "final": 0.8}}
        assert self.warnings(train=train, credit={"schedule": 0.5}, rollout=warm) == [
            "rollout.temperature is cut short: it would end at step 80, of 20"
        ]

    def test_a_schedule_that_never_acts(self) -> None:
        """A window of the first step alone is over when that step is taken."""
        short = self.warnings(train={"steps": 6}, credit={"schedule": {"end": 0.2}})
        assert short == [
            "credit.schedule never acts: its window ends with step 1, which has the value after it"
        ]
        assert self.warnings(train={"steps": 6}, credit={"schedule": {"end": 0.4}}) == []
        assert self.warnings(credit={"schedule": {"initial": 0.0}}) == [
            "credit.schedule never moves: initial and final are both 0"
        ]

    def test_a_ramp_that_nothing_follows_is_no_ramp(self) -> None:
        train = {"steps": 20, "horizon": 100}
        assert self.warnings(train=train, credit={"allocation": "uniform"}) == []
        own = {"forking_tokens": {"magnitude": {"end": 1.0}}}
        (warning,) = self.warnings(credit=own)
        assert "forking_tokens has no effect" in warning

    def test_a_sampler_that_is_not_the_trainer(self) -> None:
        (warning,) = self.warnings(rollout={"top_p": 0.9})
        assert "loss.correction can weigh the two" in warning
        corrected = {"correction": {"kind": "truncate"}}
        assert self.warnings(rollout={"top_p": 0.9}, loss=corrected) == []

    def test_a_penalty_without_a_buffer(self) -> None:
        (warning,) = self.warnings(reward={"overlong": {"penalty": 0.5}})
        assert warning == "reward.overlong.penalty has no effect under buffer = 0"
        assert self.warnings(reward={"overlong": {"penalty": 0.5, "buffer": 8}}) == []
