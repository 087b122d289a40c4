from engines.bundle.manifest import BatchTiming
from engines.serve.core.batching import BatchPlan, plan_from


def timings(candidates: int, *speedups: tuple[int, float]) -> list[BatchTiming]:
    """Timings of (users, speed-up) pairs in which one call of one user takes 1 ms."""
    return [BatchTiming(users, candidates, float(users), users / speedup) for users, speedup in speedups]


def test_without_measurements_nobody_shares_a_call() -> None:
    assert plan_from(()) == BatchPlan()
    assert BatchPlan().most_users(1) == 1


def test_users_are_added_while_each_size_pays() -> None:
    assert plan_from(timings(4, (2, 1.5), (4, 2.0), (8, 2.8))).most_users(4) == 8


def test_a_size_that_does_not_pay_ends_it_because_fewer_may_be_waiting() -> None:
    assert plan_from(timings(4, (2, 1.5), (4, 1.02), (8, 2.8))).most_users(4) == 2
    assert plan_from(timings(4, (2, 0.9), (4, 2.0))).most_users(4) == 1


def test_a_size_at_which_a_user_takes_longer_again_is_not_used() -> None:
    assert plan_from(timings(4, (2, 1.5), (4, 2.0), (8, 1.9))).most_users(4) == 4


def test_a_request_between_two_sizes_counts_as_the_larger() -> None:
    plan = plan_from([*timings(4, (2, 2.0), (8, 3.0)), *timings(64, (2, 1.2)), *timings(16, (2, 1.5), (4, 2.0))])
    assert [plan.most_users(n) for n in (0, 1, 4, 5, 16, 17, 64, 65)] == [8, 8, 8, 4, 4, 2, 2, 1]
