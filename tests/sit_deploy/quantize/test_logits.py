from __future__ import annotations

import numpy as np

from sit_deploy.quantize.logits import logits_error


def test_a_method_that_gives_no_finite_logits_is_never_taken() -> None:
    logits = np.zeros((2, 3), np.float32)
    assert logits_error(logits + 2, logits) == 4
    assert logits_error(logits * np.nan, logits) == np.inf
