"""What a page and a terminal show of a token schedule: how many patch tokens each stage has, and what merges them."""

from __future__ import annotations

from sit_deploy.manifest import Model
from sit_deploy.methods import method_words


def slimming_words(model: Model) -> str:
    """Return the patch tokens of each stage, and what merges them: "49 → 24, by TSMs"."""
    method = model.slims_by
    return " → ".join(map(str, model.tokens)) + (f", by {method_words(method)}" if method else "")


def token_bars(model: Model) -> list[tuple[str, str, float]]:
    """Return a bar for each stage: its name with its blocks, its patch tokens, and how many percent of the most they are."""
    stages, tokens = model.stages or [], model.tokens
    most = max(tokens)
    bars = []
    for i, count in enumerate(tokens):
        blocks = f", {stages[i]} block{'s' if stages[i] != 1 else ''}" if i < len(stages) else ""
        bars.append((f"stage {i + 1}{blocks}", str(count), round(100 * count / most, 1)))
    return bars
