"""Vision transformers of timm that are taken as they are, and what is said where they are wanted otherwise."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.models import create_model, get_config
from sit_deploy.models.outputs import with_outputs
from sit_deploy.models.whole import WholeModel
from tests.helpers.models import WHOLE, images, shapes_alone, whole_model

SMALLEST = {
    "beit_base_patch16_224": "another architecture (beit.Beit)",
    "cait_xxs24_224": "another architecture (cait.Cait)",
    "naflexvit_base_patch16_gap": "another architecture (naflexvit.NaFlexVit)",
    "vit_srelpos_small_patch16_224": "another architecture (vision_transformer_relpos.VisionTransformerRelPos)",
    "samvit_base_patch16_224": "another architecture (vision_transformer_sam.VisionTransformerSAM)",
}


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_it_computes_what_timms_does(name: str) -> None:
    model = whole_model(name)
    assert isinstance(model, WholeModel)
    plain = copy.deepcopy(model)
    plain.__class__ = type(WHOLE[name]())
    pixels = images(model)
    assert torch.equal(model(pixels), plain(pixels))
    assert torch.equal(model.forward_frd(pixels, tokens=False).logits, plain(pixels))
    assert (model.img_size, model.grid_size, model.kept, model.slim_after) == ((64, 64), (4, 4), (16,), {})


@pytest.mark.parametrize(("name", "reason"), SMALLEST.items())
def test_named_ones_are_taken_whole_and_not_slimmed(name: str, reason: str) -> None:
    with shapes_alone():
        config = get_config(name)
        assert config.unslimmable == reason
        assert config.tokens() == (config.tokens()[0],)
        model = create_model(config, num_classes=3)
        assert isinstance(model, WholeModel)
        assert model.stage_blocks == config.stage_blocks
        assert model.kept == config.tokens()
        with pytest.raises(InputError) as caught:
            get_config(name, (config.depth - 2, 2))
    assert str(caught.value).startswith(
        f"{name} cannot be slimmed, for it has {reason}; take it as it is, without --stages"
    )


def test_its_tokens_are_no_students() -> None:
    model = whole_model("BEiT")
    with pytest.raises(InputError, match="pass --token-weight 0 to distil its logits"):
        model.forward_frd(images(model))


def test_sizes_and_dist_tokens_that_it_does_not_take() -> None:
    with shapes_alone(), pytest.raises(InputError, match="divisible by 16, got 100x100; take 96 or 112"):
        create_model("naflexvit_base_patch16_gap", img_size=100)
    with shapes_alone(), pytest.raises(InputError, match="takes no dist token; leave it out"):
        create_model("beit_base_patch16_224", dist_token=True)


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_it_gives_features_too(name: str) -> None:
    model = whole_model(name)
    pixels = images(model)
    names = ("logits", "features")
    logits, features = with_outputs(model, names)(pixels)
    assert torch.equal(logits, model(pixels))
    for found, expected in zip(to_deploy_form(model, names)(pixels), (logits, features), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="taken as it is, and its tokens are not looked at"):
        to_deploy_form(model, ("patches",))


@torch.no_grad()
def test_it_is_copied_and_pickled() -> None:
    model = whole_model("NaFlex")
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model)
        assert torch.equal(again(images(model)), model(images(model)))
