"""The one reader of config.json, of timm and of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import ConfigJson


def test_names_of_classes() -> None:
    named = {"0": "ant", "1": "bee"}
    assert ConfigJson({"model_type": "vit", "id2label": named}).class_names(2) == ["ant", "bee"]
    assert ConfigJson({"model_type": "vit", "id2label": named}).class_names(3) is None
    assert (
        ConfigJson({"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}).class_names(2) is None
    )
    # of a trainer who gave transformers the one alone, beside which it writes placeholders
    turned = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"bee": 0, "ant": 1}}
    assert ConfigJson({"model_type": "vit", **turned}).class_names(2) == ["bee", "ant"]
    assert ConfigJson({"model_type": "vit", "label2id": {"bee": 0, "ant": 0}}).class_names(2) is None
    assert ConfigJson({"model_type": "vit", "label2id": {"bee": "0", "ant": 1}}).class_names(2) is None
    assert ConfigJson({"architecture": "x", "label_names": ["ant", "bee"]}).class_names(2) == ["ant", "bee"]
    assert ConfigJson({"label_names": ["ant", "bee"]}).class_names(2) is None  # some other program's
    # what timm reads too: by index, within pretrained_cfg, and as older releases wrote it
    for fields in (
        {"label_names": {"1": "bee", "0": "ant"}},
        {"pretrained_cfg": {"label_names": ["ant", "bee"]}},
        {"pretrained_cfg": {"labels": ["ant", "bee"]}},
        {"labels": ["ant", "bee"], "input_size": [3, 96, 96]},
    ):
        assert ConfigJson({"architecture": "x", **fields}).class_names(2) == ["ant", "bee"]
    assert ConfigJson({"architecture": "x", "label_names": {"0": "ant", "7": "bee"}}).class_names(2) is None


@pytest.mark.parametrize(
    ("fields", "size"),
    (
        ({"architecture": "x", "pretrained_cfg": {"input_size": [3, 96, 96]}}, 96),
        (
            {
                "architecture": "x",
                "model_args": {"img_size": [64, 64]},
                "pretrained_cfg": {"input_size": [3, 96, 96]},
            },
            64,
        ),
        ({"architecture": "x", "model_args": {"img_size": 64}}, 64),
        ({"architecture": "x", "model_args": {"img_size": [64, 96]}}, None),
        ({"architecture": "x", "image_size": 5}, None),
        ({"architecture": "x", "input_size": [3, 96, 96]}, 96),
        ({"model_type": "vit", "image_size": 64}, 64),
        ({"model_type": "vit", "image_size": [48, 48]}, 48),
        ({"model_type": "clip", "image_size": 5, "vision_config": {"image_size": 336}}, 336),
        ({"model_type": "vit", "image_size": True}, None),
        ({"model_type": "vit"}, None),
        ({"image_size": 64}, None),
    ),
)
def test_image_size(fields: dict, size: int | None) -> None:
    assert ConfigJson(fields).image_size == size


def test_backbones() -> None:
    def lacks(kind: str, *classes: str) -> bool:
        return ConfigJson({"model_type": kind, "architectures": list(classes)}).lacks_classifier

    assert lacks("vit", "ViTModel")
    assert not lacks("vit", "ViTForImageClassification")
    assert not lacks("clip", "CLIPModel")  # its projection is a head
    assert not lacks("vit")
    assert not ConfigJson({"architecture": "x", "architectures": ["XModel"]}).lacks_classifier


def test_one_reader(tmp_path: Path) -> None:
    """Damaged, a file says nothing beside weights, and is an error where it is all that could name the model."""
    (tmp_path / "config.json").write_text('{"architecture": "vit')
    assert not ConfigJson.beside(tmp_path / "model.safetensors").fields
    with pytest.raises(InputError, match="cannot be read"):
        ConfigJson.read(tmp_path, "x")
