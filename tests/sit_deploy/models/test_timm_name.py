"""timm's name of the model that a config.json describes: transformers writes these files, timm has the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import ConfigJson
from sit_deploy.models.load import load_model
from sit_deploy.models.timm_name import _FAMILIES, _facts, made_otherwise, timm_architecture
from sit_deploy.pipeline.float_graph import load_request
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from tests.helpers.models import randomise

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
HUGE = {"hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 32, "intermediate_size": 5120}


def name_of(kind: str, model: str, **fields: Any) -> str:
    return timm_architecture(ConfigJson({"model_type": kind, "architectures": [model], **fields}), "me/x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "fields", "name"),
    (
        ("vit", "ViTForImageClassification", {}, "vit_base_patch16_224"),
        ("vit", "ViTModel", {"image_size": 384}, "vit_base_patch16_384"),
        ("vit", "ViTForImageClassification", {**LARGE, "patch_size": 32, "image_size": 384}, "vit_large_patch32_384"),
        ("vit", "ViTForImageClassification", {"image_size": 96}, "vit_base_patch16_224"),
        ("deit", "DeiTForImageClassification", SMALL, "deit_small_patch16_224:reg_tokens=1"),
        ("deit", "DeiTModel", SMALL, "deit_small_patch16_224"),
        ("vit", "ViTModel", {"num_hidden_layers": 9}, "vit_base_patch16_224:depth=9"),
        ("vit", "ViTModel", {"num_hidden_layers": 9, "image_size": 384}, "vit_base_patch16_384:depth=9"),
        ("deit", "DeiTForImageClassificationWithTeacher", SMALL, "deit_small_distilled_patch16_224"),
        ("dinov2", "Dinov2Model", {"hidden_size": 384, "num_attention_heads": 6}, "vit_small_patch14_dinov2"),
        ("dinov2_with_registers", "Dinov2WithRegistersModel", {"patch_size": 14}, "vit_base_patch14_reg4_dinov2"),
        ("dinov3_vit", "DINOv3ViTModel", {"num_register_tokens": 4}, "vit_small_patch16_dinov3_qkvb"),
        ("siglip", "SiglipModel", {"vision_config": {}}, "vit_base_patch16_siglip_224"),
        ("siglip", "SiglipForImageClassification", {"vision_config": {}}, "vit_base_patch16_siglip_gap_224"),
        ("siglip2", "Siglip2Model", {"vision_config": {"num_patches": 256}}, "vit_base_patch16_siglip_256"),
        ("clip", "CLIPModel", {"vision_config": {}}, "vit_base_patch32_clip_quickgelu_224"),
        ("clip", "CLIPModel", {"vision_config": {"hidden_act": "gelu"}}, "vit_base_patch32_clip_224"),
        ("beit", "BeitForImageClassification", {}, "beit_base_patch16_224"),
        ("data2vec-vision", "Data2VecVisionForImageClassification", {}, "beit_base_patch16_224"),
        ("ijepa", "IJepaModel", {**HUGE, "patch_size": 14}, "vit_huge_patch14_gap_224"),
    ),
)  # fmt: skip
def test_models_of_transformers(kind: str, model: str, fields: dict, name: str) -> None:
    assert name_of(kind, model, **fields) == name


def test_a_gated_mlp_tells_models_of_the_same_width_apart() -> None:
    gated = {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"}
    assert _facts("dinov3_vit", _FAMILIES["dinov3_vit"].usual, gated)["gated"]
    giant = {"hidden_size": 1536, "mlp_ratio": 4, "use_swiglu_ffn": True}
    facts = _facts("dinov2", _FAMILIES["dinov2"].usual, giant)
    assert (facts["gated"], facts["hidden"]) == (True, 4096)


@pytest.mark.parametrize(
    ("kind", "model", "fields", "words"),
    (
        ("swin", "SwinForImageClassification", {}, "model_type swin., none of the vision transformers that timm has"),
        ("vit", "ViTForMaskedImageModeling", {}, "for another task .ViTForMaskedImageModeling.; give a classifier"),
        ("beit", "BeitForSemanticSegmentation", {}, "for another task .BeitForSemanticSegmentation."),
        ("dinov2", "Dinov2ForImageClassification", {}, "class token and the mean of the patches beside each other"),
        ("clip", "CLIPForImageClassification", {}, "reads the mean of the patches without a norm"),
    ),
)  # fmt: skip
def test_models_that_timm_has_not(kind: str, model: str, fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        name_of(kind, model, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_differs_from_the_nearest_is_named() -> None:
    with pytest.raises(
        InputError,
        match=r"beside vit_base_patch16_224, its depth is 9, not 12 and its attention has 6 heads, not 12; give",
    ):
        name_of("vit", "ViTModel", num_hidden_layers=9, num_attention_heads=6)


@pytest.mark.slow
@pytest.mark.parametrize("depth", (0, -1, "12", 10**9, True, 2.5))
def test_a_depth_that_is_none(depth: Any) -> None:
    with pytest.raises(InputError) as error:
        name_of("vit", "ViTModel", num_hidden_layers=depth)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", _FAMILIES)
def test_what_a_file_leaves_out_is_what_transformers_takes(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    default = transformers.AutoConfig.for_model(kind)
    fields = json.loads(default.to_json_string())
    fields = ConfigJson(fields).vision
    full = getattr(default, "vision_config", default).to_dict()
    usual = _FAMILIES[kind].usual
    assert _facts(kind, usual, {}) == _facts(kind, usual, fields) == _facts(kind, usual, full)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "name"),
    (
        ("ViT", "ViTForImageClassification", "vit_tiny_patch16_224:depth=3"),
        ("DeiT", "DeiTForImageClassificationWithTeacher", "deit_tiny_distilled_patch16_224:depth=3"),
        ("DeiT", "DeiTForImageClassification", "deit_tiny_patch16_224:depth=3,reg_tokens=1"),
    ),
)
def test_a_classifier_of_transformers_loads_by_its_place_alone(
    kind: str, model: str, name: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = {0: "ant", 1: "bee", 2: "cat"}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=32, layer_norm_eps=1e-6, num_hidden_layers=3,
        id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    theirs = getattr(transformers, model)(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    request = BuildRequest(f"local-dir:{tmp_path / 'model'}", None).completed()
    assert (request.model, request.image_size) == (name, 32)
    loaded, _, classes = load_request(Work(request, lambda *_: None))
    assert classes == ["ant", "bee", "cat"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), theirs(images).logits, rtol=0, atol=1e-5)


def test_a_model_of_timm_in_a_wrapper_of_transformers_is_timm_s() -> None:
    config = ConfigJson(
        {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "num_classes": 3}
    )
    assert timm_architecture(config, "me/x") == "vit_tiny_patch16_224"
    assert not config.vision


def test_a_file_of_timm_s_own(tmp_path: Path) -> None:
    """What `save_for_hf` writes of a model is that model again, its size too; what only training knows makes no other."""
    timm = pytest.importorskip("timm", minversion="1.0.31")
    arguments = {"depth": 2, "drop_path_rate": 0.1, "reg_tokens": 2, "img_size": 64, "num_classes": 3}
    saved = timm.create_model("vit_tiny_patch16_224", **arguments)
    timm.models.save_for_hf(saved, tmp_path / "model", safe_serialization=True)
    request = BuildRequest(f"local-dir:{tmp_path / 'model'}", None).completed()
    assert (request.model, request.image_size) == ("vit_tiny_patch16_224:depth=2,reg_tokens=2", 64)
    loaded, _, _ = load_request(Work(request, lambda *_: None))
    assert not any("resampled" in note for note in loaded.notes)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), saved.eval()(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments", ({"act_layer": "relu"}, {"num_heads": 4}, {"global_pool": "avg", "fc_norm": False})
)
def test_weights_of_a_model_that_fit_another_are_refused_beside_its_config(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Activation, heads, pooling: none shows in the weights, and a file of timm's tells them."""
    timm = pytest.importorskip("timm", minversion="1.0.31")
    saved = timm.create_model("test_vit", num_classes=3, img_size=64, **arguments)
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
    name = timm_architecture(ConfigJson.read(tmp_path, "me/x"), "me/x")
    assert name == "test_vit:" + ",".join(f"{k}={json.dumps(v).strip(chr(34))}" for k, v in arguments.items())
    with pytest.raises(InputError, match=f"is of {name} by the config.json beside it") as error:
        load_model("test_vit", tmp_path)
    assert f"pass --model {name}" in str(error.value)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        loaded = load_model(name, tmp_path, image_size=64).model(images)
        torch.testing.assert_close(loaded, saved.eval()(images), rtol=0, atol=1e-5)


def test_what_reset_classifier_made_of_the_pooling_is_read(tmp_path: Path) -> None:
    """Older releases of timm wrote it beside the arguments alone; newer ones among them."""
    timm = pytest.importorskip("timm", minversion="1.0.31")
    saved = randomise(timm.create_model("test_vit", num_classes=3, img_size=64))
    saved.reset_classifier(3, "avg")
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["global_pool"] == fields["model_args"]["global_pool"] == "avg"
    fields["model_args"] = {
        k: v for k, v in fields["model_args"].items() if k not in ("global_pool", "fc_norm")
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    name = "test_vit:global_pool=avg,fc_norm=false"
    with pytest.raises(InputError, match=f"is of {name} by the config.json beside it.*pass --model {name}"):
        load_model("test_vit", tmp_path, 64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(name, tmp_path, 64).model(images), saved.eval()(images), rtol=0, atol=1e-5
        )
    fields["global_pool"] = "token"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert load_model("test_vit", tmp_path, 64)


def test_a_distilled_model_of_other_heads_is_another_model() -> None:
    names = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"
    for name in names:
        plain, other = (
            ConfigJson({"architecture": names[0], "model_args": a}) for a in ({}, {"num_heads": 6})
        )
        assert made_otherwise(plain, name, (64, 64)) is None
        assert made_otherwise(other, name, (64, 64)) == f"{names[0]}:num_heads=6"
    cached = ConfigJson({"architecture": "test_vit", "model_args": {"num_heads": 4, "cache_dir": "/tmp"}})
    assert (
        made_otherwise(cached, "test_vit", (64, 64)) == "test_vit:num_heads=4"
    )  # what reads files tells of no model


def test_another_name_of_the_same_model_takes_its_weights(tmp_path: Path) -> None:
    config = ConfigJson({"architecture": "vit_base_patch32_384", "model_args": {"drop_path_rate": 0.1}})
    assert made_otherwise(config, "vit_base_patch32_224", (64, 64)) is None
    assert made_otherwise(ConfigJson({"architecture": "no_such_vit"}), "test_vit", (64, 64)) is None
    quick = ConfigJson({"architecture": "vit_base_patch32_clip_quickgelu_224"})
    assert (
        made_otherwise(quick, "vit_base_patch32_clip_224", (64, 64)) == "vit_base_patch32_clip_quickgelu_224"
    )


@pytest.mark.parametrize("arguments", ("rope_temperature=50", "rope_grid_offset=1", "rope_grid_indexing=xy"))
def test_rotary_positions_of_other_angles_are_another_model(arguments: str) -> None:
    key, _, value = arguments.partition("=")
    given = {key: int(value) if value.isdigit() else value}
    config = ConfigJson({"architecture": "vit_tiny_patch16_dinov3_qkvb", "model_args": given})
    made = made_otherwise(config, "vit_tiny_patch16_dinov3_qkvb", (64, 64))
    assert made == f"vit_tiny_patch16_dinov3_qkvb:{arguments}"


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"model_args": {"in_chans": 1}}, "me/x takes images of 1 channels, and pictures have three here"),
        ({"model_args": {"img_size": [96, 128]}}, "me/x is of images of 96x128 pixels, and only square ones are taken"),
        ({"architecture": "no_such_vit", "model_args": {"in_chans": 3, "a b": 1}}, "is a no_such_vit made otherwise: the argument 'a b'"),
        ({"model_args": {"depth": 10**9}}, "made otherwise: a depth of 1000000000 is that of no vision transformer"),
        ({"model_args": {f"a{i}": 1 for i in range(5000)}}, "made otherwise: it has 5000 arguments, more than any"),
    ),
)  # fmt: skip
def test_files_of_timm_s_own_that_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        timm_architecture(ConfigJson({"architecture": "vit_tiny_patch16_224", **fields}), "me/x")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
