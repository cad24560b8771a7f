"""What opening a data set is refused with."""

from __future__ import annotations

from typing import Any

import pytest

from sit_deploy.data.datasets import open_data
from sit_deploy.data.source import DataSource
from sit_deploy.errors import InputError


def refusal(*args: Any, **options: Any) -> str:
    """Open a data set, which must fail in one line; return that."""
    with pytest.raises(InputError) as error:
        open_data(DataSource(*map(str, args), **options))
    message = str(error.value)
    assert "\n" not in message
    return message
