"""How a model's tokens are merged between its stages, by name. Imports nothing."""

TSM = "tsm"  # token slimming modules of SiT, which are trained
TRANSFORM, MERGE = "transform", "merge"  # read off the attention, without training (`models.token_reduction`)
TRAINING_FREE = (TRANSFORM, MERGE)
METHODS = (TSM, *TRAINING_FREE)


def method_words(method: str) -> str:
    """Return what merges the tokens, for people: "TSMs", or "transform, without training"."""
    return "TSMs" if method == TSM else f"{method}, without training"
