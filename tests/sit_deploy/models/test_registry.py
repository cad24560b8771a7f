"""The models in timm: by name, by official alias, with its options, its data configuration and its loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from sit_deploy.errors import InputError
from sit_deploy.models import CONFIGS, create_model
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import SlimViT
from tests.helpers import forked
from tests.helpers.models import images, named_model, shapes_alone
from tests.helpers.shared import shared_value

NAMES = tuple(n for c in CONFIGS.values() for n in (c.name, *c.aliases))


def test_listed_by_timm() -> None:
    listed = set(timm.list_models("sit_*")) | set(timm.list_models("lvvit_*"))
    assert listed >= set(NAMES)
    assert set(timm.list_models(module="registry")) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_made_by_timm(name: str) -> None:
    with shapes_alone():
        model = timm.create_model(name)
    (config,) = [c for c in CONFIGS.values() if name in (c.name, *c.aliases)]
    assert isinstance(model, SlimViT if config.base else SiT)
    assert (model.embed_dim, model.stage_blocks, model.kept) == (
        config.embed_dim,
        config.stage_blocks,
        config.tokens(),
    )
    assert config.base or model.blocks[0].skip_lam == config.skip_lam
    assert model.pretrained_cfg["architecture"] == name
    assert model.default_cfg["classifier"] == "head"


def test_options_go_to_the_model() -> None:
    model = timm.create_model(
        "sit_nano", num_classes=5, img_size=(64, 96), in_chans=1, drop_path_rate=0.2, keeping_ratio=0.7, dist_token=True,
        reverse_tsm=True,
    )  # fmt: skip
    assert (model.img_size, model.num_classes, model.in_chans) == ((64, 96), 5, 1)
    assert model.kept == (24, 16, 11, 8)
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.2)
    assert model.has_dist_token
    assert len(model.rtsm) == 8
    assert model(images(model)).shape == (2, 5)


def test_data_configuration_is_the_official_evaluation() -> None:
    with shapes_alone():
        config = resolve_model_data_config(timm.create_model("sit_l"))
    assert config["input_size"] == (3, 288, 288)
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    # the shorter side becomes size · 256/224 before the crop
    assert config["crop_pct"] == 224 / 256


@pytest.mark.parametrize("make", [timm.create_model, create_model])
def test_pretrained_weights_do_not_exist(make: object) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        make("sit_nano", pretrained=True)  # type: ignore[operator]


def test_fine_tuning_by_timm_from_a_file(tmp_path: Path) -> None:
    source = named_model("sit_nano", reverse_tsm=True)
    torch.save({"model": source.state_dict()}, tmp_path / "sit.pth")
    model = timm.create_model(
        "sit_nano", pretrained=True, num_classes=5, img_size=128, kept=(64, 24, 12, 6),
        pretrained_cfg_overlay={"file": str(tmp_path / "sit.pth")},
    )  # fmt: skip
    assert model.head.weight.shape == (5, 128)
    assert torch.equal(model.tsm[0].weight[3].weight, source.tsm[0].weight[3].weight)
    assert model.pos_embed.shape == (1, 65, 128)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


def test_create_model_takes_aliases_and_names_the_unknown() -> None:
    with shapes_alone():
        assert create_model("sit_lvvit_small").pretrained_cfg["architecture"] == "sit_s"
    with pytest.raises(InputError, match=r"unknown model 'sit_small'.*did you mean"):
        create_model("sit_small")
    with pytest.raises(InputError, match="divisible by 16"):
        create_model("sit_nano", img_size=100)


ORDERS = {
    "before timm": "import sit_deploy.models, timm",
    "after timm": "import timm, sit_deploy.models",
    "by a part of timm": "import sit_deploy.models; from timm.models import create_model; import timm",
    "by ours": "import sit_deploy.models.timm_vit, timm",
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, forked.Ended]:
    asked = "assert timm.is_model('sit_s'); print(type(timm.create_model('sit_nano')).__name__)"
    programs = [f"{imports}; {asked}" for imports in ORDERS.values()]
    ended = shared_value(tmp_path_factory, "orders-of-imports", lambda: forked.run(programs))
    return dict(zip(ORDERS, ended, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_package_alone_registers_them(order: str, imported: dict[str, forked.Ended]) -> None:
    done = imported[order]
    assert (done.returncode, done.stdout, done.stderr) == (0, "SiT\n", ""), done.stderr


def test_the_package_is_quick() -> None:
    code = "import sys, sit_deploy.models; print([m for m in ('torch', 'timm') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_timm_loads_an_official_checkpoint(tmp_path: Path) -> None:
    """It has the reverse TSMs of training, and its names are in an entry."""
    trained = named_model("sit_nano", reverse_tsm=True)
    path = tmp_path / "official.pth"
    torch.save({"model": trained.state_dict()}, path)
    model = timm.create_model("sit_nano", checkpoint_path=str(path)).eval()
    x = images(model)
    with torch.no_grad():
        assert torch.equal(model(x), trained.eval()(x))
    again = timm.create_model("sit_nano", checkpoint_path=str(path), reverse_tsm=True)
    states = again.state_dict(), trained.state_dict()
    recovering = [k for k in states[1] if k.startswith("rtsm.")]
    assert recovering
    assert all(torch.equal(states[0][k], states[1][k]) for k in recovering)
    torch.save({"model": {**trained.state_dict(), "other.weight": torch.ones(1)}}, path)
    with pytest.raises(RuntimeError, match=r"other\.weight"):
        timm.create_model("sit_nano", checkpoint_path=str(path))
