"""Whether what a search compares by can be believed: what the unslimmed model makes of the images, before anything is slimmed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.baseline import find_doubts
from sit_deploy.measure.chance import doubts
from sit_deploy.measure.tally import Tally
from sit_deploy.pipeline.manifest import weights_of

if TYPE_CHECKING:
    from sit_deploy.data.labelled import Labelled
    from sit_deploy.models.load import LoadedModel
    from sit_deploy.pipeline.request import BuildRequest

_WHO = "the unslimmed model"


@dataclass(frozen=True)
class Soundness:
    """What speaks against the comparisons of a search.

    Attributes:
        notes: what to tell the user, in sentences.
        unsound: why no limit of accuracy can be judged; None where one can.
    """

    notes: tuple[str, ...] = ()
    unsound: str | None = None


@dataclass(frozen=True)
class _Known:
    """What is known of a model beforehand, as `find_doubts` asks for it."""

    num_classes: int
    published_top1: float | None


def soundness(
    logits: np.ndarray,
    labels: np.ndarray | None,
    samples: Labelled | None,
    loaded: LoadedModel,
    request: BuildRequest,
) -> Soundness:
    """Return what speaks against comparing slimmed models with the unslimmed one.

    Random weights are told for what they are, and nothing is expected of them.

    Args:
        logits: of the unslimmed model, (n, classes) float32.
        labels: of the images, (n,), where they have some.
        samples: which images these are, where they have labels.
        loaded: the unslimmed model.
        request: that it was loaded by.
    """
    weights, given = weights_of(request, loaded), logits.argmax(1)
    if weights.is_random:
        return Soundness()
    if labels is None:
        if len(set(given.tolist())) > 1:
            return Soundness()
        text = f"{_WHO} gives all {len(given)} images one class: that others agree with it says little; check weights, preprocessing and --data"
        return Soundness((text,))
    tally = Tally()
    tally.add(logits, logits, labels, [str(i) for i in range(len(labels))], range(len(labels)))
    accuracy = Accuracy.of(tally)
    found = doubts(accuracy, _WHO, _WHO)
    known = _Known(loaded.model.num_classes, loaded.config.top1)
    guesses = Counter(zip(labels.tolist(), given.tolist(), strict=True))
    doubt = find_doubts(accuracy, weights, known, guesses, samples or ())
    texts = [one.text for one in found]
    stops = next((one.text for one in found if one.stops), None)
    return Soundness(
        tuple(dict.fromkeys((*([doubt.warning] if doubt.warning else []), *texts))), doubt.unsound or stops
    )
