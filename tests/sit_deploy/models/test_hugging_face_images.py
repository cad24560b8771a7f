"""From a photograph to scores as transformers computes them: its image processor, its model, its folder, and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sit_deploy.pipeline.float_graph import load_request
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
CENTRE = {"do_center_crop": True, "crop_size": SQUARE}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Of scikit-learn, 640 × 427, and parts of them: tall, and such that a crop begins between two pixels."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    tall = whole[0].crop((0, 0, 200, 427))
    return [*whole, tall, *(whole[1].crop((9, 5, 9 + 320 + 10 * i, 5 + 320)) for i in range(12))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": SQUARE, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
        ("DeiT", {"size": {"height": 40, "width": 40}, **CENTRE}),
        ("Bit", {"size": {"shortest_edge": 36}, **CENTRE}),
        ("CLIP", {"size": {"shortest_edge": SIDE}, **CENTRE}),
    ],
)
def test_a_photograph_gets_the_scores_that_transformers_gives_it(
    kind: str, options: dict[str, Any], photographs: list[Image.Image], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=SIDE, layer_norm_eps=1e-6, num_hidden_layers=2,
        num_labels=3, initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    processor.save_pretrained(tmp_path / "model")
    request = BuildRequest(f"local-dir:{tmp_path / 'model'}", None).completed()
    loaded, choice, _ = load_request(Work(request, lambda *_: None))
    ours = np.stack([choice.preprocessing(image) for image in photographs])
    expected = processor(photographs, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-6)
    with torch.no_grad():
        scores = theirs(expected).logits
        torch.testing.assert_close(loaded.model(torch.from_numpy(ours)), scores, rtol=0, atol=1e-4)
    assert scores.std(0).min() > 0.01  # so that another picture would have others
