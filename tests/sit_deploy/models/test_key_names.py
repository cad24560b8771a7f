"""Other libraries' names for the same weights: the logits are those of the library's own model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import load_model
from tests.helpers.models import images, randomise

Save = Callable[..., Path]
SIZE = 64
TINY: dict[str, Any] = {
    "hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 12, "intermediate_size": 768, "image_size": SIZE,
    "patch_size": 16, "num_labels": 5,
}  # fmt: skip


def hugging_face(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**TINY)
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def zeros(kind: str) -> dict[str, torch.Tensor]:
    """Return a state dict of such a model that is small on disk: one zero, seen in every shape."""
    with torch.device("meta"):
        state = hugging_face(kind).state_dict()
    return {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("saved", ["folder", "state dict", "wrapped"])
def test_hugging_face_vit(saved: str, tmp_path: Path, save: Save) -> None:
    theirs = randomise(hugging_face("ViT"))
    if saved == "folder":  # under the names of its files, which are not those of its modules
        theirs.save_pretrained(tmp_path)
        path = tmp_path
    else:
        prefix = "model." if saved == "wrapped" else ""
        path = save({"state_dict": {prefix + k: v for k, v in theirs.state_dict().items()}})
    loaded = load_model("vit_tiny_patch16_224", path, SIZE)
    x = images(loaded.model)
    torch.testing.assert_close(loaded.model(x), theirs(x).logits, atol=2e-5, rtol=1e-5)
    assert any("Hugging Face" in note for note in loaded.notes)


def of_torchvision(size: int = SIZE) -> nn.Module:
    """Make torchvision's vision transformer of ViT-Ti's measures, randomised, in eval mode."""
    models = pytest.importorskip("torchvision").models
    return randomise(
        models.VisionTransformer(
            image_size=size,
            patch_size=16,
            num_layers=12,
            num_heads=3,
            hidden_dim=192,
            mlp_dim=768,
            num_classes=5,
        )
    ).eval()


@torch.no_grad()
def test_torchvision(save: Save) -> None:
    theirs = of_torchvision()
    for layer in theirs.encoder.layers:
        layer.self_attention.in_proj_weight.normal_(std=0.07)
        layer.self_attention.in_proj_bias.normal_(std=0.2)
    theirs.encoder.pos_embedding.normal_(std=0.5)
    theirs.class_token.normal_(std=0.5)
    loaded = load_model("vit_tiny_patch16_224", save(theirs.state_dict()), SIZE)
    x = images(loaded.model)
    torch.testing.assert_close(loaded.model(x), theirs(x), atol=2e-5, rtol=1e-5)
    assert any("torchvision's names were taken for timm's" in note for note in loaded.notes)


def test_torchvision_with_one_layer_for_its_heads(save: Save) -> None:
    """As tutorials fine-tune it: model.heads = nn.Linear(...)."""
    state = of_torchvision().state_dict()
    plain = {k.replace("heads.head.", "heads."): v for k, v in state.items()}
    loaded = load_model("vit_tiny_patch16_224", save(plain), SIZE)
    assert torch.equal(loaded.model.head.weight, state["heads.head.weight"])


def test_torchvision_s_name_and_timm_s_for_one_weight_are_refused(save: Save) -> None:
    state = {**of_torchvision().state_dict(), "blocks.0.norm1.weight": torch.ones(3)}
    with pytest.raises(
        InputError, match=r"has 'blocks\.0\.norm1\.weight' twice, under the names of timm and of torchvision"
    ):
        load_model("vit_tiny_patch16_224", save(state), SIZE)


@torch.no_grad()
def test_swag_names_are_torchvision_s_with_the_batch_second(save: Save) -> None:
    plain = of_torchvision().state_dict()
    changes = {"encoder.layers.encoder_layer_": "encoder.layers.layer_", "mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2.",
               "heads.head.": "head.layers.head."}  # fmt: skip
    swag = {}
    for key, value in plain.items():
        for old, new in changes.items():
            key = key.replace(old, new)
        swag[key] = value.transpose(0, 1) if key == "encoder.pos_embedding" else value
    one, other = (load_model("vit_tiny_patch16_224", save(state), SIZE).model for state in (plain, swag))
    x = images(one)
    assert torch.equal(one(x), other(x))


@torch.no_grad()
def test_a_larger_image_keeps_torchvision_s_positions(save: Save) -> None:
    """As SWAG's are for 384 pixels: given that size, they are taken as they are."""
    theirs = of_torchvision(96)
    loaded = load_model("vit_tiny_patch16_384", save(theirs.state_dict()), 96)
    assert torch.equal(loaded.model.pos_embed, theirs.encoder.pos_embedding)
    assert not any("resampled" in note for note in loaded.notes)
    x = images(loaded.model)
    torch.testing.assert_close(loaded.model(x), theirs(x), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_what_differs_is_not_taken_for_the_same(save: Save) -> None:
    with pytest.raises(InputError, match=r"pass --model vit_tiny_patch16_224:reg_tokens=1"):
        load_model("vit_tiny_patch16_224", save(zeros("DeiT")), SIZE)
    with pytest.raises(InputError, match="layer scale") as caught:
        load_model("vit_tiny_patch16_224", save(zeros("Dinov2")), SIZE)
    assert "head.weight (5, 384)" in str(caught.value) or "does not fit" in str(caught.value)
    with pytest.raises(InputError, match="does not fit"):
        load_model("vit_tiny_patch16_224", save(zeros("Beit")), SIZE)
