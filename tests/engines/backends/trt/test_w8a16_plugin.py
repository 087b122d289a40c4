from engines.backends.trt.w8a16_plugin import problem_size


def test_the_plugin_s_problem_size() -> None:
    assert problem_size((8, 33, 64), (8, 64, 96)) == (8, 33, 64, 96)
    assert problem_size((5, 7, 64), (64, 96)) == (1, 35, 64, 96)
    assert problem_size((5, 64), (64, 96)) == (1, 5, 64, 96)
