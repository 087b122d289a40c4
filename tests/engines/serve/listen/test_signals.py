import os
import signal
import threading

from engines.serve.listen.signals import hang_up_noted, received_signals


def test_signals_arrive_in_order_and_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with received_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        assert received() == signal.SIGHUP
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert received() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hang_up_is_noted_instead_of_ending_the_process() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with hang_up_noted() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.wait(10)
    assert signal.getsignal(signal.SIGHUP) == before
