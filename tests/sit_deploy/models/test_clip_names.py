"""OpenAI's names of CLIP's weights, as open_clip writes them: timm's own reading of them is the reference."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm, QuickGELU
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.clip_names import NOTE
from sit_deploy.models.hugging_face_config import check_config
from sit_deploy.models.state_dict import filter_state_dict
from sit_deploy.models.trainer_config import from_checkpoint

WIDTH, OUTPUTS, PATCHES = 32, 7, 16


def tower(width: int, blocks: int, scales: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer's weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(blocks):
        at = f"transformer.resblocks.{i}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
        shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        for part, (rows, columns) in {
            "attn.out_proj": (1, 1),
            "mlp.c_fc": (2, 1),
            "mlp.c_proj": (1, 2),
        }.items():
            shapes |= {
                f"{at}.{part}.weight": (rows * width, columns * width),
                f"{at}.{part}.bias": (rows * width,),
            }
        shapes |= {f"{at}.ls_{k}.gamma": (width,) for k in (1, 2) if scales}
    return shapes


def clip(text: str = "", scales: bool = False) -> dict[str, torch.Tensor]:
    """Return weights of both towers; `text` is the prefix of the text's."""
    images = {
        "class_embedding": (WIDTH,), "positional_embedding": (PATCHES + 1, WIDTH), "proj": (WIDTH, OUTPUTS),
        "conv1.weight": (WIDTH, 3, 16, 16), "ln_pre.weight": (WIDTH,), "ln_pre.bias": (WIDTH,), "ln_post.weight": (WIDTH,),
        "ln_post.bias": (WIDTH,), **tower(WIDTH, 2, scales),
    }  # fmt: skip
    texts = {
        "positional_embedding": (8, OUTPUTS), "token_embedding.weight": (50, OUTPUTS), "text_projection": (OUTPUTS, OUTPUTS),
        "ln_final.weight": (OUTPUTS,), "ln_final.bias": (OUTPUTS,), **tower(OUTPUTS, 2),
    }  # fmt: skip
    shapes = {f"visual.{k}": v for k, v in images.items()} | {f"{text}{k}": v for k, v in texts.items()}
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=generator) for k, v in shapes.items()} | {
        "logit_scale": torch.ones(())
    }


def counterpart(**options: Any) -> VisionTransformer:
    return VisionTransformer(
        img_size=64, patch_size=16, embed_dim=WIDTH, depth=2, num_heads=4, mlp_ratio=2, num_classes=OUTPUTS, pre_norm=True,
        norm_layer=partial(LayerNorm, eps=1e-5), **options,
    ).eval()  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("prefix", ("", "module."))
@pytest.mark.parametrize("text", ("", "text."))
@pytest.mark.parametrize("scales", (False, True))
def test_weights_are_those_that_timm_reads(prefix: str, text: str, scales: bool, tmp_path: Path) -> None:
    state = clip(text, scales)
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({f"{prefix}{k}": v for k, v in state.items()}, path)
    options = {"init_values": 1.0} if scales else {}
    ours, reference = counterpart(**options), counterpart(**options)
    reads = checkpoint_filter_fn(dict(state), reference)
    reads = {k.replace(".ls_", ".ls"): v for k, v in reads.items()}  # open_clip's LayerScale it does not know
    reference.load_state_dict(reads)
    read = read_checkpoint(path)
    ours.load_state_dict(filter_state_dict(read.state, ours))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), reference(x))
    assert NOTE in read.notes


def test_the_text_s_names_are_left_out_of_clip_s_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({**counterpart().state_dict(), "positional_embedding": torch.ones(4, 4)}, path)
    assert "positional_embedding" in read_checkpoint(path).state  # so that it is told that it does not fit


def write_config(folder: Path, **model: Any) -> None:
    vision = {"width": WIDTH, "layers": 2, "head_width": 8, **model.pop("vision", {})}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    fields = {
        "model_cfg": {"embed_dim": OUTPUTS, "vision_cfg": vision, **model},
        "preprocess_cfg": preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("config", "options", "said"),
    (
        ({}, {}, ""),
        ({"quick_gelu": True}, {"act_layer": QuickGELU}, ""),
        (
            {"vision": {"act_kwargs": {"approximate": "tanh"}}},
            {},
            "is gelu_pytorch_tanh, that of a_vit differs",
        ),
        (
            {"vision": {"norm_kwargs": {"eps": 1e-6}}},
            {},
            "an epsilon of 1e-06 by the open_clip_config.json beside it",
        ),
        (
            {"vision": {"norm_kwargs": {"eps": 0.1}}},
            {},
            "refused: its norms have an epsilon of 0.1, not 1e-05",
        ),
        ({"quick_gelu": True}, {}, "refused: pass the --model of timm with 'quickgelu' in its name"),
        (
            {},
            {"act_layer": QuickGELU},
            "refused: its activation is gelu by the open_clip_config.json beside it",
        ),
        (
            {"vision": {"head_width": 16}},
            {},
            "refused: its attention has 2 heads by the open_clip_config.json",
        ),
        ({"vision": {"pool_type": "avg"}}, {}, "refused: its pooling is 'avg' by the open_clip_config.json"),
        (None, {}, "no open_clip_config.json beside it tells whether its activation is GELU or QuickGELU"),
    ),
)
def test_what_weights_do_not_show(config: dict | None, options: dict, said: str, tmp_path: Path) -> None:
    if config is not None:
        write_config(tmp_path, **config)
    model, path = counterpart(**options), tmp_path / "open_clip_pytorch_model.bin"
    if said.startswith("refused: "):
        with pytest.raises(InputError) as caught:
            check_config(path, model, "a_vit", "--model", open_clip=True)
        assert said.removeprefix("refused: ") in str(caught.value)
    else:
        notes = check_config(path, model, "a_vit", "--model", open_clip=True)
        assert len(notes) == bool(said) and said in "".join(notes)


def test_preprocessing_is_read_beside_them(tmp_path: Path) -> None:
    write_config(tmp_path)
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(clip(), path)
    (config,) = from_checkpoint(path)
    assert (config.mean, config.std, config.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert config.words == f"open_clip_config.json beside {path.name}"
