"""Comparing one step of the pipeline with the step before it and with the PyTorch reference.

Errors are given relative to the standard deviation of the reference's values, so that they mean the same for a model
with random weights and for a trained one. Embeddings, whose direction is what is used of them, have a least cosine too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

# relative: a folder of `package python` takes this file along, without the package around it
from ..errors import GateError, InputError
from ..outputs import DEFAULT, LOGITS
from ..precisions import EIGHT_BITS, LEAST_COSINE, TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    # of every output by name; an array is of logits
    Values = np.ndarray | Mapping[str, np.ndarray]

_ALIKE = 1e-5  # standard deviations that logits of one image differ by in batches of other sizes


@dataclass(frozen=True)
class OutputError:
    """One output's values compared.

    Attributes:
        name: of the output.
        error: largest |value - reference| ÷ std(reference).
        sqnr_db: power of the reference over that of the error, in dB; None where there is no error, or nothing but.
        cosine, lowest_cosine: of each vector and the reference's, mean and least: of an image, or of a token.
        least_cosine: what `lowest_cosine` must be; None where nothing is asked of it.
    """

    name: str
    error: float
    sqnr_db: float | None
    cosine: float
    lowest_cosine: float
    least_cosine: float | None = None

    @property
    def turned(self) -> bool:
        """Whether an embedding points elsewhere than it may."""
        return self.least_cosine is not None and not self.lowest_cosine >= self.least_cosine

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON, which has no infinity."""
        return _plain(asdict(self))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isinf(value) else value
        for key, value in fields.items()
    }


@dataclass(frozen=True)
class Hop:
    """One step's outputs compared. Of several outputs, its figures are the worst.

    Attributes:
        error: largest |value - reference| ÷ std(reference).
        step_error: the same against the step before.
        sqnr_db: power of the reference over that of the error, in dB.
        agreement: share of images whose top class is the reference's; None without logits.
        tolerance: what `error` may be.
        note: how it was compared, or why it was not; then the figures are None.
        precision: that the step wrote into the graph, None for one that wrote none; a report has it in the name.
        outputs: each by itself; none where there are logits alone.
    """

    name: str
    error: float | None = None
    step_error: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    tolerance: float | None = None
    note: str = ""
    precision: str | None = None
    outputs: tuple[OutputError, ...] = ()

    @property
    def passed(self) -> bool:
        """False only for a step that was compared and is out of tolerance (NaN is)."""
        if any(output.turned for output in self.outputs):
            return False
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON, which has no infinity: an error that is infinite is None there."""
        plain = _plain({k: v for k, v in vars(self).items() if k not in ("precision", "outputs")})
        plain |= {"compared": self.error is not None, "passed": self.passed}
        return plain | ({"outputs": [output.to_dict() for output in self.outputs]} if self.outputs else {})


def compare(
    name: str,
    found: Values,
    previous: Values,
    reference: Values,
    tolerance: float | None,
    note: str = "",
    precision: str | None = None,
) -> Hop:
    """Compare the outputs of a step, (images, ...) each, with those of the step before and of the reference.

    NaN or infinite values make the errors infinite, and agree with nothing.

    Args:
        name: of the step.
        found: of the step.
        previous: of the step before.
        reference: of PyTorch.
        tolerance: what the error may be; for an embedding, the least cosine of its precision (`LEAST_COSINE`) goes with it.
        note: how it was compared.
        precision: that the step wrote into the graph.
    """
    found, previous, reference = (by_name(values) for values in (found, previous, reference))
    hops = {
        output: _compare_values(name, found[output], previous[output], reference[output], tolerance, output)
        for output in reference
    }
    wrong = next((hop.note for hop in hops.values() if hop.note), "")
    if tuple(hops) == DEFAULT:
        return replace(hops[LOGITS], note=wrong or note, precision=precision, outputs=())
    sqnr = [hop.sqnr_db for hop in hops.values() if hop.sqnr_db is not None]
    return Hop(
        name,
        max(hop.error for hop in hops.values()),
        max(hop.step_error for hop in hops.values()),
        min(sqnr, default=None),
        hops[LOGITS].agreement if LOGITS in hops else None,
        tolerance,
        wrong or note,
        precision,
        tuple(hop.outputs[0] for hop in hops.values()),
    )


def by_name(values: Values) -> Mapping[str, np.ndarray]:
    """Return outputs by name; an array is of logits."""
    return values if isinstance(values, Mapping) else {LOGITS: values}


def _compare_values(
    name: str,
    found: np.ndarray,
    previous: np.ndarray,
    reference: np.ndarray,
    tolerance: float | None,
    output: str,
) -> Hop:
    """Compare one output."""
    import numpy as np

    wide = reference.astype(np.float64)
    scale = float(wide.std()) or 1.0
    finite = np.isfinite(found).reshape(len(found), -1).all(axis=1)
    note = ""
    if not finite.all():
        note = f"NaN or infinite {output} for {len(found) - finite.sum()} of {len(found)} images"
    with np.errstate(invalid="ignore", over="ignore"):
        difference = found.astype(np.float64) - reference
        noise = float(np.square(difference).mean())
        error = float(np.abs(difference).max()) / scale
        step_error = float(np.abs(found.astype(np.float64) - previous).max()) / scale
        cosine = cosines(found, wide)
    signal = float(np.square(wide).mean())
    sqnr = 10 * math.log10(signal / noise) if 0 < noise < math.inf and signal > 0 else None
    error = error if math.isfinite(error) else math.inf
    least = None if output == LOGITS or tolerance is None else _least_cosine(tolerance)
    return Hop(
        name=name,
        error=error,
        step_error=step_error if math.isfinite(step_error) else math.inf,
        sqnr_db=sqnr,
        agreement=float((finite & (found.argmax(1) == reference.argmax(1))).mean())
        if output == LOGITS
        else None,
        tolerance=tolerance,
        note=note,
        outputs=(OutputError(output, error, sqnr, float(cosine.mean()), float(cosine.min()), least),),
    )


def cosines(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the cosine of each vector, along the last axis, and the reference's: float64, -1 where one is not finite."""
    import numpy as np

    one, other = (values.astype(np.float64) for values in (found, reference))
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    # a vector of zeros has no direction: on both sides it is the same, on one it is not
    same = np.where((one == other).all(axis=-1), 1.0, 0.0)
    cosine = np.where(lengths > 0, (one * other).sum(-1) / np.where(lengths > 0, lengths, 1), same)
    return np.where(np.isfinite(cosine), np.clip(cosine, -1, 1), -1.0)


def _least_cosine(tolerance: float) -> float:
    """Return the least cosine of the finest precision that is allowed this error."""
    return next((LEAST_COSINE[name] for name, own in TOLERANCE.items() if tolerance <= own), -1.0)


def compare_golden(
    infer: Callable[[np.ndarray], Values],
    images: np.ndarray,
    reference: Values,
    precision: str,
    *,
    random: bool,
    where: object = "golden.npz",
) -> Hop:
    """Compare an engine with the reference's outputs that a bundle carries.

    Args:
        infer: from images as the engine takes them to outputs.
        images: the golden ones.
        reference: their outputs by PyTorch.
        precision: of the bundle, for the tolerance.
        random: its weights are nobody's, so that all images may well get one class.
        where: images and logits come from, for the message.

    Raises:
        InputError: outputs that everything agrees with, which prove nothing.
    """
    if fault := reference_fault(reference, images):
        raise InputError(f"{where} holds {fault}; build the bundle again from whole weights")
    note = "" if random else agreement_note(reference)
    return compare("golden output", infer(images), reference, reference, TOLERANCE[precision], note)


def reference_fault(reference: Values, images: np.ndarray) -> str | None:
    """Say what is wrong with outputs such that comparing with them would prove nothing, or None.

    Args:
        reference: the outputs.
        images: that they are of; where these are one picture, so may be the outputs.
    """
    faults = (_fault(name, values, images) for name, values in by_name(reference).items())
    return next(filter(None, faults), None)


def _fault(name: str, values: np.ndarray, images: np.ndarray) -> str | None:
    import numpy as np

    if not np.isfinite(values).all():
        return f"NaN or infinite {name} on these images"
    if values.shape[-1] > 1 and not np.ptp(values, axis=-1).any():
        if name == LOGITS:
            return "each class of an image the same logit, so that whatever is compared with them agrees"
        return f"{name} whose numbers are all the same, so that whatever is compared with them agrees"
    differ = np.abs(values - values[0]).max() > _ALIKE * values.std()
    if not differ and (images != images[0]).any():
        return f"the same {name} for every image, as if it did not look at them"
    return None


def agreement_note(reference: Values) -> str:
    """Say so where images all get one class: then their agreement holds by construction; else nothing."""
    reference = by_name(reference)
    if LOGITS not in reference:
        return ""
    best = set(reference[LOGITS].argmax(1).tolist())
    count = len(reference[LOGITS])
    if count < 2 or len(best) > 1:
        return ""
    return f"PyTorch gives all {count} images class {best.pop()}: their agreement says nothing"


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
        raise GateError(f"{hop.name} {_out_of_tolerance(hop)}; {outcome}: {_remedy(hop, hops)}")


def _out_of_tolerance(hop: Hop) -> str:
    """Say how a hop is out of tolerance."""
    if hop.error == math.inf:
        return f"gives {hop.note}"
    worst = max(hop.outputs, key=lambda output: output.error, default=None)
    if not hop.error <= hop.tolerance:
        what = worst.name if worst else LOGITS
        return f"is {hop.error:.2g} standard deviations of the {what} off the PyTorch reference (tolerance {hop.tolerance:g})"
    turned = min((one for one in hop.outputs if one.turned), key=lambda output: output.lowest_cosine)
    return (
        f"gives {turned.name} whose cosine with the PyTorch reference's is {turned.lowest_cosine:.4f} at the least, "
        f"and must be {turned.least_cosine:g}"
    )


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
