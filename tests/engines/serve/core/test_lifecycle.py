from engines.serve.core.lifecycle import Lifecycle


def test_listeners_hear_the_state_now_and_each_later_one_once() -> None:
    lifecycle = Lifecycle()
    heard: list[str] = []
    lifecycle.on_change(heard.append)
    assert not lifecycle.ready
    for state in ("ready", "ready", "draining", "ready", "loading"):
        lifecycle.change(state)
    assert heard == ["loading", "ready", "draining"]
    assert lifecycle.state == "draining"
    assert not lifecycle.ready
