import os
import signal
import threading

from engines.serve.listen.signals import received_signals


def test_signals_arrive_in_order_and_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with received_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        assert received() == signal.SIGHUP
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert received() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
