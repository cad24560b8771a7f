"""Files of Hugging Face's transformers, written by it: under timm's names they give its own model's outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm, SwiGLUPacked, get_act_layer
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.hugging_face_config import check_config
from sit_deploy.models.load import load_model
from sit_deploy.models.state_dict import filter_state_dict
from tests.helpers.models import randomise

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

VISION: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
TEXT = {**VISION, "num_hidden_layers": 1, "vocab_size": 50, "max_position_embeddings": 8}
TEXT = {k: v for k, v in TEXT.items() if k not in ("image_size", "patch_size")}
TIMM: dict[str, Any] = {
    "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "num_classes": 0,
}  # fmt: skip
REGISTERS = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}
CLIP = {
    "pre_norm": True,
    "norm_layer": partial(LayerNorm, eps=1e-5),
    "act_layer": get_act_layer("quick_gelu"),
}
POOL = {"class_token": False, "global_pool": "map", "act_layer": get_act_layer("gelu_tanh")}
ROTARY: dict[str, Any] = {
    "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "dinov3", "rope_temperature": 100, "init_values": 1.0,
    "rope_rotate_half": True, "num_reg_tokens": 4, "use_fc_norm": False, "global_pool": "token",
    "norm_layer": partial(LayerNorm, eps=1e-5),
}  # fmt: skip


def made(kind: str, config: str, **options: Any) -> nn.Module:
    """Make a model of transformers, every weight random."""
    whole = config in ("SiglipConfig", "CLIPConfig")
    fields = {"vision_config": VISION, "text_config": TEXT} if whole else VISION
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**fields, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.ndim > 1 and parameter.shape[0] > 1
            parameter.normal_(std=parameter[0].numel() ** -0.5 if wide else 0.3)
    return model


def pooled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).pooler_output


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).logits


Origin = tuple[
    Callable[[], nn.Module], Callable[[], nn.Module], Callable[[nn.Module, torch.Tensor], torch.Tensor]
]
FIVE = {"num_labels": 5}
GATED = {
    "query_bias": False,
    "value_bias": False,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "num_register_tokens": 4,
}
ORIGINS: dict[str, Origin] = {
    "ViT": (
        lambda: made("ViTForImageClassification", "ViTConfig", **FIVE),
        lambda: VisionTransformer(**TIMM | {"num_classes": 5}), logits),
    "DeiT, distilled": (
        lambda: made("DeiTForImageClassificationWithTeacher", "DeiTConfig", **FIVE),
        lambda: VisionTransformerDistilled(**TIMM | {"num_classes": 5}), logits),
    "DeiT, its class token alone read": (
        lambda: made("DeiTForImageClassification", "DeiTConfig", **FIVE),
        lambda: VisionTransformer(**TIMM | {"num_classes": 5}, reg_tokens=1), logits),
    "DINOv2": (
        lambda: made("Dinov2Model", "Dinov2Config", mlp_ratio=2),
        lambda: VisionTransformer(**TIMM, init_values=1.0), pooled),
    "DINOv2, gated": (
        lambda: made("Dinov2Model", "Dinov2Config", mlp_ratio=2, use_swiglu_ffn=True),
        lambda: VisionTransformer(**TIMM | {"mlp_ratio": 3}, init_values=1.0, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU), pooled),
    "DINOv2 with registers": (
        lambda: made("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", mlp_ratio=2),
        lambda: VisionTransformer(**TIMM, **REGISTERS), pooled),
    "DINOv3": (
        lambda: made("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
        lambda: Eva(**TIMM, **ROTARY, qkv_bias=True), pooled),
    "DINOv3, gated": (
        lambda: made("DINOv3ViTModel", "DINOv3ViTConfig", **GATED),
        lambda: Eva(**TIMM, **ROTARY, qkv_bias=False, swiglu_mlp=True, swiglu_align_to=8), pooled),
    "SigLIP": (
        lambda: made("SiglipModel", "SiglipConfig"),
        lambda: VisionTransformer(**TIMM, **POOL), lambda m, x: m.get_image_features(pixel_values=x).pooler_output),
    "SigLIP, images alone": (
        lambda: made("SiglipVisionModel", "SiglipVisionConfig"), lambda: VisionTransformer(**TIMM, **POOL), pooled),
    "SigLIP, classifier": (
        lambda: made("SiglipForImageClassification", "SiglipConfig", **FIVE),
        lambda: VisionTransformer(**TIMM | POOL | {"num_classes": 5, "global_pool": "avg", "fc_norm": False}), logits),
    "BEiT": (
        lambda: made("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True, **FIVE),
        lambda: Beit(**TIMM | {"num_classes": 5}, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.1), logits),
    "Data2Vec": (
        lambda: made("Data2VecVisionForImageClassification", "Data2VecVisionConfig", use_relative_position_bias=True, **FIVE),
        lambda: Beit(**TIMM | {"num_classes": 5}, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.1), logits),
    "BEiT, class token": (
        lambda: made("BeitModel", "BeitConfig", use_relative_position_bias=True, use_mean_pooling=False),
        lambda: Beit(**TIMM, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.1, global_pool="token"), pooled),
    "I-JEPA": (
        lambda: made("IJepaForImageClassification", "IJepaConfig", **FIVE),
        lambda: VisionTransformer(**TIMM | {"num_classes": 5}, class_token=False, global_pool="avg", fc_norm=False), logits),
    "CLIP, images alone": (
        lambda: made("CLIPVisionModel", "CLIPVisionConfig"), lambda: VisionTransformer(**TIMM, **CLIP), pooled),
    "CLIP, projected": (
        lambda: made("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=7),
        lambda: VisionTransformer(**TIMM | {"num_classes": 7}, **CLIP), lambda m, x: m(pixel_values=x).image_embeds),
}  # fmt: skip


def written(model: nn.Module, how: str, folder: Path) -> Path:
    """Write a model as its library does, or its state dict as a trainer does."""
    if how == "safetensors":
        model.save_pretrained(folder)  # under the names of its files, which are not those of its modules
        return folder
    state = {f"model.net.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    return folder / "last.ckpt"


@torch.no_grad()
@pytest.mark.parametrize("how", ["safetensors", "trainer"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_the_outputs_are_those_of_the_origins_own_model(origin: str, how: str, tmp_path: Path) -> None:
    make, counterpart, outputs = ORIGINS[origin]
    theirs, ours = make(), counterpart().eval()
    read = read_checkpoint(written(theirs, how, tmp_path))
    ours.load_state_dict(filter_state_dict(read.state, ours), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = outputs(theirs, x)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert "the names of Hugging Face's transformers were taken for timm's" in read.notes


def test_siglip_2_of_any_size_stores_its_patches_as_a_matrix(tmp_path: Path) -> None:
    theirs = transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(
            **{k: v for k, v in VISION.items() if k != "image_size"}, num_patches=16
        )
    )
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformer(**TIMM, **POOL)
    ours.load_state_dict(filter_state_dict(read_checkpoint(tmp_path).state, ours), strict=True)
    patch = torch.randn(16, 16, 3)  # rows, columns, channels
    expected = theirs.embeddings.patch_embedding(patch.flatten())
    torch.testing.assert_close(ours.patch_embed.proj(patch.permute(2, 0, 1))[:, 0, 0], expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_positions_at_another_size_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Without antialiasing, but with it where there are registers; timm always has it."""
    measures = {"hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 224}
    patch, name = (16, "vit_tiny_patch16_224") if kind == "ViT" else (14, "vit_small_patch14_dinov2")
    more = {"intermediate_size": 768} if kind == "ViT" else {}
    theirs = made(f"{kind}Model", f"{kind}Config", patch_size=patch, **measures, **more)
    theirs.embeddings.position_embeddings.normal_()
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    name = {"Dinov2WithRegisters": "vit_small_patch14_reg4_dinov2"}.get(kind, name)
    loaded = load_model(
        f"{name}:depth=1,embed_dim=192,num_heads=3", tmp_path / "m.pth", 7 * patch, headless=True
    )
    assert any("positions resampled from" in note for note in loaded.notes)
    x = torch.randn(2, 3, 7 * patch, 7 * patch, generator=torch.Generator().manual_seed(0))
    options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    features = theirs(x, **options).last_hidden_state[:, 0]
    torch.testing.assert_close(loaded.model(x), features, atol=1e-4, rtol=1e-4)


def test_biases_of_zeros_are_no_weights_of_a_model_without(tmp_path: Path) -> None:
    """DINOv3 is published with them, and timm has it without."""
    theirs = made("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4)
    for name, parameter in theirs.named_parameters():
        if name.endswith(("q_proj.bias", "v_proj.bias")):
            nn.init.zeros_(parameter)
    theirs.save_pretrained(tmp_path)
    state, ours = read_checkpoint(tmp_path).state, Eva(**TIMM, **ROTARY, qkv_bias=False)
    ours.load_state_dict(filter_state_dict(state, ours), strict=True)
    state["blocks.1.attn.q_bias"] = state["blocks.1.attn.q_bias"] + 1
    assert "blocks.1.attn.q_bias" in filter_state_dict(state, ours)


OTHERS: dict[str, tuple[str, str, str]] = {
    "masked images": ("ViTForMaskedImageModeling", "ViTConfig", "masked images"),
    "MAE": ("ViTMAEForPreTraining", "ViTMAEConfig", "masked images"),
    "detection": ("YolosForObjectDetection", "YolosConfig", "detection"),
    "texts": ("CLIPTextModel", "CLIPTextConfig", "text"),
    "CLIP, classifier": (
        "CLIPForImageClassification",
        "CLIPConfig",
        "CLIP's averaged patches without a norm",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_tasks_are_named(kind: str, tmp_path: Path) -> None:
    name, config, task = OTHERS[kind]
    options: dict[str, Any] = {"image_size": [64, 64]} if kind == "detection" else {}
    if kind == "MAE":
        options |= {
            "decoder_hidden_size": 32,
            "decoder_num_attention_heads": 4,
            "decoder_num_hidden_layers": 1,
        }
    if kind == "texts":
        options |= {"vocab_size": 50, "max_position_embeddings": 8}
    made(name, config, **options).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"is a transformers model for {task}, and not a classifier"):
        read_checkpoint(tmp_path)


def test_segmentation_is_named(tmp_path: Path) -> None:
    theirs = transformers.BeitForSemanticSegmentation(
        transformers.BeitConfig(**VISION | {"num_hidden_layers": 4}, out_indices=[1, 2, 3, 4])
    )
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a transformers model for segmentation"):
        read_checkpoint(tmp_path)


def test_student_and_teacher_are_both_translated_and_told_apart(tmp_path: Path) -> None:
    student = {k: v for k, v in made("ViTForImageClassification", "ViTConfig", **FIVE).state_dict().items()}
    state = {f"student.{k}": v for k, v in student.items()} | {
        f"teacher.{k}": v + 1 for k, v in student.items()
    }
    torch.save(state, tmp_path / "both.pth")
    with pytest.raises(
        InputError, match="under each of 'student', 'teacher'; say which with --checkpoint-key"
    ):
        read_checkpoint(tmp_path / "both.pth")
    read = read_checkpoint(tmp_path / "both.pth", key="teacher")
    assert torch.equal(read.state["head.bias"], student["classifier.bias"] + 1)


def test_one_name_for_two_weights_is_refused(tmp_path: Path) -> None:
    """A mixture of two naming schemes: neither is chosen in silence."""
    state = made("ViTForImageClassification", "ViTConfig", **FIVE).state_dict()
    torch.save(
        {**state, "head.weight": torch.ones(5, 32), "head.bias": torch.ones(5)}, tmp_path / "mixed.pth"
    )
    with pytest.raises(
        InputError, match=r"has 'head\.weight' twice, under the names of timm and of transformers"
    ):
        read_checkpoint(tmp_path / "mixed.pth")


def test_the_pooling_of_dinov3_is_timm_s(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", "num_attention_heads": 4}))
    averaging = Eva(**TIMM, **ROTARY | {"global_pool": "avg"}, qkv_bias=True)
    (note,) = check_config(tmp_path / "model.safetensors", averaging, "a_vit", "--model")
    assert "pooler_output is its class token, which --outputs cls gives" in note
    assert not check_config(tmp_path / "model.safetensors", Eva(**TIMM, **ROTARY), "a_vit", "--model")


@pytest.mark.parametrize("where", ({"rope_theta": 1000.0}, {"rope_parameters": {"rope_theta": 1000.0}}))
def test_other_angles_of_rotary_positions_are_refused(where: dict[str, Any], tmp_path: Path) -> None:
    model, path = Eva(**TIMM, **ROTARY), tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "dinov3_vit", "hidden_act": "gelu", **where})
    )
    with pytest.raises(InputError, match=r"have a theta of 1000\.0, not 100, by the config\.json"):
        check_config(path, model, "a_vit", "--model")


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "vit", "hidden_act": "gelu", "num_attention_heads": 4}, ""),
    ({"model_type": "siglip", "vision_config": {}}, "is gelu_pytorch_tanh, that of a_vit differs from it by up to 5e-04"),
    ({"model_type": "clip", "vision_config": {}}, "refused: pass the --model of timm with 'quickgelu'"),
    ({"model_type": "vit", "hidden_act": "relu"}, "refused: its activation is relu by the config.json"),
    ({"model_type": "vit", "num_attention_heads": 2}, "refused: its attention has 2 heads by the config.json beside it, not 4"),
    ({"model_type": "vit", "hidden_act": "mish"}, "refused: its activation is mish by the config.json"),
    ({"model_type": "vit", "hidden_act": None, "layer_norm_eps": 1e-12}, "refused: its activation is None by the config.json"),
    ({"model_type": "vit", "layer_norm_eps": 0.1}, "refused: its norms have an epsilon of 0.1, not 1e-06, by the config.json"),
    ({"model_type": "vit", "layer_norm_eps": math.nan}, "refused: its norms have an epsilon of nan, not"),
    ({"model_type": "vit", "layer_norm_eps": 1e-12}, ""),
    ({"model_type": "vit", "layer_norm_eps": 1e-5}, "its norms have an epsilon of 1e-05 by the config.json beside it, those of a_vit 1e-06"),
    ({"model_type": "vit", "hidden_act": "gelu_python"}, ""),
    ({"model_type": "chinese_clip", "vision_config": {}}, "refused: pass the --model of timm with 'quickgelu'"),
    # a model of texts too, whose images' part is of a kind of its own
    ({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}, "refused: pass the --model of timm with 'quickgelu'"),
    ({"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}, "is gelu_pytorch_tanh"),
    ({"model_type": "vit", "problem_type": "regression"}, "its outputs are numbers of a regression (problem_type"),
    ({"model_type": "vit", "problem_type": "multi_label_classification"}, "its classes may hold together (problem_type"),
    ({"model_type": "vit", "problem_type": "single_label_classification"}, ""),
    ({"num_attention_heads": 2}, ""),  # of nobody's
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), CONFIGS)
def test_what_weights_do_not_show_is_read_beside_them(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = randomise(VisionTransformer(**TIMM))
    path = tmp_path / "model.safetensors"
    if said.startswith("refused: "):
        with pytest.raises(InputError) as caught:
            check_config(path, model, "a_vit", "--model")
        assert said.removeprefix("refused: ") in str(caught.value)
    else:
        notes = check_config(path, model, "a_vit", "--model")
        assert len(notes) == bool(said)
        assert said in "".join(notes)
