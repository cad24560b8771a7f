"""`sit-deploy validate`: is this bundle's engine, on this machine, what was built and measured?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sit_deploy.accuracy import Accuracy, match_labels, measure
from sit_deploy.bundle import Bundle
from sit_deploy.parity import TOLERANCE, Hop, compare


def check_golden(bundle: Bundle, classifier: Any) -> Hop:
    """Compare an open `inference.Classifier` with the reference logits that the bundle carries."""
    images, reference = bundle.golden()
    precision = bundle.manifest["precision"]
    return compare("golden output", classifier.logits(images), reference, reference, TOLERANCE[precision])


def check_accuracy(
    bundle: Bundle,
    classifier: Any,
    data: Path,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Accuracy:
    """Measure reference and engine on an ImageFolder.

    Raises:
        InputError: a data set that does not fit the classes, or reference weights that are not there.
    """
    from sit_deploy.data import ImageFolder
    from sit_deploy.make_graph import torch_logits
    from sit_deploy.reference import reference_model

    classes = bundle.manifest["classes"]
    samples = match_labels(ImageFolder(data), classes, bundle.manifest["model"]["num_classes"])
    model = reference_model(bundle, checkpoint)
    batch = max(8, bundle.batch_range[0])
    return measure(
        lambda images: torch_logits(model, images),
        classifier.logits,
        samples,
        bundle.preprocessing(),
        batch,
        progress,
    )
