"""What a build does step by step, and the seconds of each."""

from __future__ import annotations

from types import SimpleNamespace

from sit_deploy.pipeline.work import Work


def test_steps_taken_twice_add_up() -> None:
    work = Work(SimpleNamespace(max_damaged=0), lambda *_: None)
    work.seconds["again"] = 5.0
    with work.step("again"):
        pass
    assert 5.0 <= work.seconds["again"] < 6.0
