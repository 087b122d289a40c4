from engines.bundle.manifest import BatchTiming
from engines.serve.core.batching import BatchPlan, Sizes, plan_from


def timings(candidates: int, *speedups: tuple[int, float]) -> list[BatchTiming]:
    """Timings of (users, speed-up) pairs in which one call of one user takes 1 ms."""
    return [BatchTiming(users, candidates, float(users), users / speedup) for users, speedup in speedups]


def sizes(*speedups: tuple[int, float]) -> tuple[int, int]:
    found = plan_from(timings(4, *speedups)).sizes_for(4)
    return found.least, found.most


def test_without_measurements_nobody_shares_a_call() -> None:
    assert plan_from(()) == BatchPlan()
    assert BatchPlan().sizes_for(1) == Sizes(1, 1)


def test_users_are_added_while_each_size_pays() -> None:
    assert sizes((2, 1.5), (4, 2.0), (8, 2.8)) == (2, 8)


def test_a_size_that_does_not_pay_ends_it() -> None:
    assert sizes((2, 1.5), (4, 1.02), (8, 2.8)) == (2, 2)
    assert sizes((2, 0.9), (4, 0.99)) == (1, 1)


def test_users_share_a_call_once_enough_are_there_to_pay() -> None:
    assert sizes((2, 0.99), (4, 1.35), (8, 1.76)) == (4, 8)
    assert sizes((2, 0.9), (4, 1.04), (8, 1.5)) == (8, 8)
    assert sizes((2, 0.9), (4, 1.5), (8, 1.04), (16, 3.0)) == (4, 4)


def test_a_size_at_which_a_user_takes_longer_again_is_not_used() -> None:
    assert sizes((2, 1.5), (4, 2.0), (8, 1.9)) == (2, 4)


def test_a_request_between_two_sizes_counts_as_the_larger() -> None:
    plan = plan_from([*timings(4, (2, 2.0), (8, 3.0)), *timings(64, (2, 1.2)), *timings(16, (2, 1.5), (4, 2.0))])
    assert [plan.sizes_for(n).most for n in (0, 1, 4, 5, 16, 17, 64, 65)] == [8, 8, 8, 4, 4, 2, 2, 1]
