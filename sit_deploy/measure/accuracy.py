"""Top-1 and top-5 of a reference and an engine on the same pixels, how often the two agree, and where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import GateError
from sit_deploy.measure.chance import FigureDoubt, doubts
from sit_deploy.measure.evaluate import Logits, Progress, evaluate
from sit_deploy.measure.tally import Flip, Tally

if TYPE_CHECKING:
    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.preprocessing import Preprocessing

ENGINE = "the engine"  # as messages call it


@dataclass(frozen=True)
class ClassDrop:
    """What became of the images of one class: how many there are, and how many each side has right."""

    label: int
    images: int
    reference: int
    engine: int


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of reference and engine on the same images, as shares in percent.

    A top-5 is None with five classes or fewer: it would be 100 % whatever they are.

    Attributes:
        reference_top1, reference_top5, engine_top1, engine_top5: of each side.
        agreement: same top class on both.
        drop: reference top1 − engine top1, in points.
        lost, gained: images that only the reference, and only the engine, classifies right.
        sqnr_db: power of the reference's logits over that of the difference; None where there is none.
        cosine, lowest_cosine: of the two sides' logits, mean and least.
        by_class: classes that one side has more images of right, the worst for the engine first.
        flips: images whose class changed, those where the reference was surest.
        classes: that there are logits of, 0 where nobody counted.
        present: classes that have images.
        majority: percent of the images in the commonest class.
        reference_classes, engine_classes: how many each side gives.
        ties: images with several highest logits.
        alike: all images have the same logits.
    """

    images: int
    reference_top1: float
    reference_top5: float | None
    engine_top1: float
    engine_top5: float | None
    agreement: float
    lost: int = 0
    gained: int = 0
    sqnr_db: float | None = None
    cosine: float = 1.0
    lowest_cosine: float = 1.0
    by_class: tuple[ClassDrop, ...] = ()
    flips: tuple[Flip, ...] = ()
    classes: int = 0
    present: int = 0
    majority: float = 0.0
    reference_classes: int = 0
    engine_classes: int = 0
    ties: int = 0
    alike: bool = False

    @classmethod
    def of(cls, tally: Tally) -> Accuracy:
        """Return what a tally of at least one image says."""
        names = ("reference_top1", "reference_top5", "top1", "top5", "agree")
        shares = {name: 100.0 * tally.counts[name] / tally.images for name in names}
        if tally.classes <= 5:
            shares |= dict.fromkeys(("reference_top5", "top5"))
        changed = [ClassDrop(label, *row) for label, row in tally.by_class.items() if row[1] != row[2]]
        changed.sort(key=lambda row: (row.engine - row.reference, row.label))
        return cls(
            tally.images,
            *shares.values(),
            tally.counts["lost"],
            tally.counts["gained"],
            tally.sqnr_db,
            tally.cosine / tally.images,
            tally.lowest_cosine,
            tuple(changed),
            tuple(tally.flips),
            tally.classes,
            len(tally.by_class),
            100 * max(row[0] for row in tally.by_class.values()) / tally.images,
            len(tally.reference_given),
            len(tally.given),
            tally.counts["ties"],
            tally.alike,
        )

    @property
    def drop(self) -> float:
        # shares of whole images: what is beyond 9 digits is rounding, and must not break a limit kept exactly
        return round(self.reference_top1 - self.engine_top1, 9)

    @property
    def reference_top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of the reference's top-1, in percent."""
        return interval(self.reference_top1, self.images)

    @property
    def engine_top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of the engine's top-1, in percent."""
        return interval(self.engine_top1, self.images)

    @property
    def p_value(self) -> float:
        """Of the paired test whether the two differ in top-1: McNemar's, exact. Below 0.05 the difference is no chance."""
        from scipy.stats import binomtest

        discordant = self.lost + self.gained
        return float(binomtest(self.lost, discordant).pvalue) if discordant else 1.0

    def interval(self, top1: float) -> tuple[float, float]:
        """Return the 95 % interval of a top-1 of these images, in percent."""
        return interval(top1, self.images)

    def require(
        self, max_drop: float | None = None, min_agreement: float | None = None, rehearsal: bool = False
    ) -> None:
        """Hold the engine to a largest drop of top-1, in points, and a smallest agreement, in percent.

        Args:
            max_drop: points of top-1 that may be lost.
            min_agreement: percent of the images.
            rehearsal: random weights, whose figures nobody believes: they may prove nothing.

        Raises:
            GateError: one of them is not kept, or would be kept by whatever engine (`chance.doubts`); the figures are in
                the message.
        """
        # "not <=", so that a limit of NaN refuses rather than passes everything
        if max_drop is not None and not self.drop <= max_drop:
            raise GateError(
                f"top-1 falls by {self.drop:.2f} points, from {self.reference_top1:.2f} to {self.engine_top1:.2f} % on "
                f"{self.images} images (--max-accuracy-drop {max_drop:g}); try a higher precision"
            )
        if min_agreement is not None and not self.agreement >= min_agreement:
            raise GateError(
                f"engine and reference agree on {self.agreement:.2f} % of {self.images} images "
                f"(--min-agreement {min_agreement:g}); try a higher precision"
            )
        asked = (max_drop, min_agreement) != (None, None)
        stops = [doubt.text for doubt in self.doubts() if doubt.stops]
        if asked and not rehearsal and stops:
            raise GateError(f"the limit is kept, and that proves nothing: {stops[0]}")

    def doubts(self) -> list[FigureDoubt]:
        """Return what makes these figures worthless, gravest first."""
        return doubts(self)

    def _facts(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "drop": self.drop,
            "reference_top1_interval": list(self.reference_top1_interval),
            "engine_top1_interval": list(self.engine_top1_interval),
        }

    def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """Return JSON values.

        Args:
            classes: names in label order, to go with the labels.
        """

        def name(label: int) -> str:
            return classes[label] if classes else str(label)

        return {
            **self._facts(),
            "doubts": [doubt.text for doubt in self.doubts()],
            "p_value": self.p_value,
            "by_class": [{"name": name(row.label), **asdict(row)} for row in self.by_class],
            "flips": [
                {
                    **asdict(flip),
                    **{
                        f"{side}_name": name(getattr(flip, side)) for side in ("label", "reference", "engine")
                    },
                }
                for flip in self.flips
            ],
        }


def interval(top1: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of images, in percent (Wilson's)."""
    from scipy.stats import binomtest

    shares = binomtest(round(top1 * images / 100), images).proportion_ci(0.95, "wilson")
    return 100 * float(shares.low), 100 * float(shares.high)


def measure(
    reference: Logits,
    engine: Logits,
    samples: Sequence[tuple[Any, int]],
    preprocessing: Preprocessing,
    batch_size: int = 8,
    progress: Progress | None = None,
    damaged: DamagedImages | None = None,
) -> Accuracy:
    """Classify labelled images with a reference and an engine; arguments and errors as `evaluate`."""
    evaluation = evaluate(
        reference, {ENGINE: engine}, samples, preprocessing, batch_size, progress, damaged=damaged
    )
    return Accuracy.of(evaluation.tallies[ENGINE])
