import os
import signal

import pytest

from mobilenas.core.signals import StopRequest, catch_terminations, handlers_kept


def test_a_first_signal_is_noted_and_raised_when_left() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert not stop.number
        stop.leave()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number, "the step goes on"
        stop.leave()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_noted_signal_is_never_lost(number: int) -> None:
    with pytest.raises(SystemExit) as ended, StopRequest():
        os.kill(os.getpid(), number)
    assert ended.value.code == 143


def test_a_second_signal_acts_at_once() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert not reached


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_library_that_takes_the_signals_does_not_keep_them() -> None:
    with handlers_kept():
        catch_terminations()
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
