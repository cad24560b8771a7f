"""What the vectors of an embedding bundle come to: their directions and their nearest neighbours, by both sides."""

from __future__ import annotations

from sit_deploy.measure.chance import NEAR
from sit_deploy.precisions import LEAST_COSINE
from sit_deploy.report import embedding_text, verdict_text
from sit_deploy.report.build_types import PairedRecord
from sit_deploy.report.paired import weigh_drop
from sit_deploy.report.reasons import MAX_DROP, Limits, Reasons, Topic, Weight
from sit_deploy.report.types import EmbeddingRecord

# Vectors as near as this are the same but for the rounding of float32, and so are their neighbours: no label is needed to compare them.
EQUAL_COSINE = 1 - 1e-8


def judge_embedding(found: EmbeddingRecord, precision: str, limits: Limits, why: Reasons) -> None:
    """Add what speaks for and against an engine's vectors.

    Args:
        found: as measured.
        precision: of the bundle, for its least cosine (`LEAST_COSINE`).
        limits: what may be lost; of `max_drop`, points of nearest-neighbour accuracy.
        why: the reasons so far.
    """
    least = LEAST_COSINE[precision]
    kept = found.cosine_min >= least
    weight = Weight.FAVOUR if kept else Weight.AGAINST
    why.add(weight, Topic.COSINE, embedding_text.cosine(found, least))
    if found.paired is not None:
        _judge_basis(found, why)
        _judge_neighbours(found, found.paired, MAX_DROP if limits.max_drop is None else limits.max_drop, why)
    elif limits.max_drop is not None or not (found.is_data and found.cosine_min >= EQUAL_COSINE):
        why.add(Weight.MISSING, Topic.NEIGHBOURS, embedding_text.NO_LABELS)
    if limits.min_agreement is not None:
        same = found.agreement if found.is_data else None
        if same is None:
            why.add(Weight.MISSING, Topic.AGREEMENT, embedding_text.NO_AGREEMENT)
        elif same < limits.min_agreement:
            why.add(Weight.AGAINST, Topic.AGREEMENT, embedding_text.agreement(found, limits.min_agreement))


def _judge_basis(found: EmbeddingRecord, why: Reasons) -> None:
    """Say where neighbours are right no oftener than guessing is: then nothing is lost, whatever the engine gives."""
    guess = max(found.majority or 0.0, 100 / found.classes if found.classes else 0.0)
    enough = guess + NEAR * (100 - guess)
    for who, right, interval in (
        ("PyTorch", found.reference, found.reference_interval),
        (embedding_text.side(found), found.engine, found.engine_interval),
    ):
        if right is None or interval is None or interval[0] > enough:
            continue
        weight = Weight.AGAINST if right <= enough else Weight.MISSING
        why.add(
            weight, Topic.BASIS, embedding_text.by_chance(who, right, guess, grave=weight is Weight.AGAINST)
        )


def _judge_neighbours(found: EmbeddingRecord, paired: PairedRecord, limit: float, why: Reasons) -> None:
    if found.cosine_min >= EQUAL_COSINE and not paired.lost + paired.gained:
        why.add(Weight.FAVOUR, Topic.NEIGHBOURS, embedding_text.equal(found))
        return
    weight = weigh_drop(paired, paired.drop, limit)
    text = verdict_text.of_drop(weight, embedding_text.neighbours_drop(found), paired, limit)
    why.add(weight, Topic.NEIGHBOURS, text)
