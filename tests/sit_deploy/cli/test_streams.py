"""Standard streams while a command runs."""

from __future__ import annotations

import io
import sys

import pytest

from sit_deploy.cli.streams import watched


def test_who_closes_a_watched_stream_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """absl's logging closes at the end of the process whatever stream it met that is not standard error by then."""
    own = io.StringIO()
    monkeypatch.setattr(sys, "stderr", own)
    with watched() as (_, err):
        kept = sys.stderr
    assert err is kept and sys.stderr is own
    kept.close()
    print("still here", file=sys.stderr)
    assert own.getvalue() == "still here\n"
