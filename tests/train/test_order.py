"""The order of prompts and the seeds of the sampler."""

from tests.tiny import prompt_of

from tpcli.train.order import further_prompts, prompts_of, response_seed, sampler_seed

PROMPTS = [prompt_of([i], str(i)) for i in range(10)]


def names(step: int, **changes: int) -> list[str]:
    settings = {"count": 4, "seed": 0} | changes
    return [p.question.id for p in prompts_of(step, PROMPTS, **settings)]


def test_an_epoch_asks_every_prompt_once() -> None:
    """Ten prompts, four a step: steps 1 to 5 are two epochs, the third step lies across."""
    asked = [name for step in range(1, 6) for name in names(step)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(str(i) for i in range(10))
    assert asked[:10] != asked[10:]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert names(3) == names(3)
    assert names(1) != names(1, seed=1)


def test_a_step_may_be_longer_than_an_epoch() -> None:
    assert len(names(1, count=25)) == 25


def test_sampler_seeds_differ_between_steps_and_seeds() -> None:
    seeds = {sampler_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_further_prompts_leave_out_what_was_asked_and_differ_by_step() -> None:
    def further(step: int) -> list[str]:
        found = further_prompts(step, PROMPTS, asked={"3", "7"}, seed=0)
        return [p.question.id for p in found]

    assert sorted(further(1)) == sorted(set(map(str, range(10))) - {"3", "7"})
    assert further(1) == further(1)
    assert further(1) != further(2)


def test_seeds_do_not_collide() -> None:
    seeds = [sampler_seed(0, step, round_) for step in range(50) for round_ in range(4)]
    seeds += [response_seed(0, step, b) for step in range(50) for b in range(64)]
    assert len(set(seeds)) == 50 * 4 + 50 * 64
    assert sampler_seed(0, 3) == sampler_seed(0, 3, 0)
