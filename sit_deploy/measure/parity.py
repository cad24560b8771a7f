"""Comparing one step of the pipeline with the step before it and with the PyTorch reference.

Errors are given relative to the standard deviation of the reference logits, so that they mean the same for a model
with random weights and for a trained one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

# relative: a folder of `package python` takes this file along, without the package around it
from ..errors import GateError, InputError
from ..precisions import EIGHT_BITS, TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

_ALIKE = 1e-5  # standard deviations that logits of one image differ by in batches of other sizes


@dataclass(frozen=True)
class Hop:
    """One step's logits compared.

    Attributes:
        error: largest |logit - reference| ÷ std(reference).
        step_error: the same against the step before.
        sqnr_db: power of the reference logits over that of the error, in dB.
        agreement: share of images whose top class is the reference's.
        tolerance: what `error` may be.
        note: how it was compared, or why it was not; then the figures are None.
        precision: that the step wrote into the graph, None for one that wrote none; a report has it in the name.
    """

    name: str
    error: float | None = None
    step_error: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    tolerance: float | None = None
    note: str = ""
    precision: str | None = None

    @property
    def passed(self) -> bool:
        """False only for a step that was compared and is out of tolerance (NaN is)."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON, which has no infinity: an error that is infinite is None there."""
        plain = {
            key: None if isinstance(value, float) and math.isinf(value) else value
            for key, value in asdict(self).items()
            if key != "precision"
        }
        return {**plain, "compared": self.error is not None, "passed": self.passed}


def compare(
    name: str,
    logits: np.ndarray,
    previous: np.ndarray,
    reference: np.ndarray,
    tolerance: float | None,
    note: str = "",
    precision: str | None = None,
) -> Hop:
    """Compare logits (images, classes) of a step with those of the step before and of the reference.

    NaN or infinite logits make the errors infinite, and agree with nothing.

    Args:
        name: of the step.
        logits: of the step.
        previous: of the step before.
        reference: of PyTorch.
        tolerance: what the error may be.
        note: how it was compared.
        precision: that the step wrote into the graph.
    """
    import numpy as np

    scale = float(reference.astype(np.float64).std()) or 1.0
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        note = f"NaN or infinite logits for {len(logits) - finite.sum()} of {len(logits)} images"
    with np.errstate(invalid="ignore", over="ignore"):
        difference = logits.astype(np.float64) - reference
        noise = float(np.square(difference).mean())
        error = float(np.abs(difference).max()) / scale
        step_error = float(np.abs(logits.astype(np.float64) - previous).max()) / scale
    signal = float(np.square(reference.astype(np.float64)).mean())
    return Hop(
        name=name,
        error=error if math.isfinite(error) else math.inf,
        step_error=step_error if math.isfinite(step_error) else math.inf,
        sqnr_db=10 * math.log10(signal / noise) if 0 < noise < math.inf and signal > 0 else None,
        agreement=float((finite & (logits.argmax(1) == reference.argmax(1))).mean()),
        tolerance=tolerance,
        note=note,
        precision=precision,
    )


def compare_golden(
    infer: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    reference: np.ndarray,
    precision: str,
    *,
    random: bool,
    where: object = "golden.npz",
) -> Hop:
    """Compare an engine with the reference logits that a bundle carries.

    Args:
        infer: from images as the engine takes them to logits.
        images: the golden ones.
        reference: their logits (images, classes) by PyTorch.
        precision: of the bundle, for the tolerance.
        random: its weights are nobody's, so that all images may well get one class.
        where: images and logits come from, for the message.

    Raises:
        InputError: logits that everything agrees with, which prove nothing.
    """
    if fault := reference_fault(reference, images):
        raise InputError(f"{where} holds {fault}; build the bundle again from whole weights")
    note = "" if random else agreement_note(reference)
    return compare("golden output", infer(images), reference, reference, TOLERANCE[precision], note)


def reference_fault(reference: np.ndarray, images: np.ndarray) -> str | None:
    """Say what is wrong with logits (images, classes) such that comparing with them would prove nothing, or None.

    Args:
        reference: the logits.
        images: that they are of; where these are one picture, so may be the logits.
    """
    import numpy as np

    if not np.isfinite(reference).all():
        return "NaN or infinite logits on these images"
    if reference.shape[1] > 1 and not np.ptp(reference, axis=1).any():
        return "each class of an image the same logit, so that whatever is compared with them agrees"
    differ = np.abs(reference - reference[0]).max() > _ALIKE * reference.std()
    if not differ and (images != images[0]).any():
        return "the same logits for every image, as if it did not look at them"
    return None


def agreement_note(reference: np.ndarray) -> str:
    """Say so where images all get one class: then their agreement holds by construction; else nothing."""
    best = set(reference.argmax(1).tolist())
    if len(reference) < 2 or len(best) > 1:
        return ""
    return f"PyTorch gives all {len(reference)} images class {best.pop()}: their agreement says nothing"


def require(hops: list[Hop], outcome: str = "nothing was written") -> None:
    """Stop at the first hop that is out of tolerance.

    Args:
        hops: as compared.
        outcome: what that means for the user, for the message.

    Raises:
        GateError: names the hop, its error, its tolerance and what to try.
    """
    for hop in hops:
        if hop.passed:
            continue
        what = (
            f"gives {hop.note}"
            if hop.error == math.inf
            else f"is {hop.error:.2g} standard deviations of the logits off the PyTorch reference "
            f"(tolerance {hop.tolerance:g})"
        )
        raise GateError(f"{hop.name} {what}; {outcome}: {_remedy(hop, hops)}")


def _remedy(failed: Hop, hops: list[Hop]) -> str:
    # an engine writes no precision: what is in its graph, an earlier step wrote
    if any(hop.precision in EIGHT_BITS for hop in hops):
        return "calibrate with more images that are like those to come, keep more layers high with --quantize, or take fp16"
    if failed.precision == "fp16":
        return "try --precision bf16 or fp32, or give real images with --calib-data"
    if failed.precision == "bf16":
        return "try --precision fp16 or fp32"
    return (
        "weights whose float32 sums almost cancel can do that, and so would a defect of sit-deploy or of the runtime: if "
        "PyTorch is right with these weights, report it with `sit-deploy doctor --json`"
    )
