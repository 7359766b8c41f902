"""SIGTERM to one of several processes; tests/training/test_loop.py has what a single one does."""

import os
import signal

import numpy as np
import pytest

from t2g_jax.runtime import hosts, preemption


@pytest.fixture
def others(monkeypatch):
    """others(answer) makes this one of two processes: answer() says whether the other was asked."""

    def others(answer):
        def gather(mine):
            return np.array([mine, answer()])

        monkeypatch.setattr(hosts, "several", lambda: True)
        monkeypatch.setattr(preemption.multihost_utils, "process_allgather", gather)

    return others


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    return False


def test_one_of_several_goes_on_until_all_can_stop(others, capfd):
    others(lambda: False)
    done = []

    def work():
        terminate()
        with preemption.finishing():
            preemption.stop_if_asked()
            done.append("the step under way")

    with pytest.raises(preemption.Preempted), preemption.watched():
        work()
    assert done == ["the step under way"]
    assert "SIGTERM: finishing this step and saving" in capfd.readouterr().err


def test_what_another_process_was_asked_stops_this_one_too(others):
    others(lambda: True)
    with pytest.raises(preemption.Preempted), preemption.watched():
        preemption.stop_if_asked()
    assert not preemption._asked


def test_a_signal_that_comes_while_they_agree_is_not_lost(others):
    """All must say the same now, so it counts when they ask again."""
    with preemption.watched():
        others(terminate)
        assert not preemption.asked()
        others(lambda: False)
        assert preemption.asked()


def test_alone_nobody_is_asked(monkeypatch):
    """No collective operation at each step."""
    monkeypatch.setattr(preemption.multihost_utils, "process_allgather", None)
    assert not preemption.asked()
