"""Google's .npz files: under timm's names they are what timm's own loader copies into its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.load import load_model
from sit_deploy.models.state_dict import filter_state_dict

VIT: dict[str, Any] = {
    "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 3, "num_classes": 6,
}  # fmt: skip
Arrays = dict[str, np.ndarray]


def kernels(at: str, heads: int, width: int = 32) -> Arrays:
    rng = np.random.default_rng(list(at.encode()))
    made = {
        f"{at}out/kernel": rng.normal(size=(heads, width // heads, width)),
        f"{at}out/bias": rng.normal(size=width),
    }
    for role in ("query", "key", "value"):
        made[f"{at}{role}/kernel"] = rng.normal(size=(width, heads, width // heads))
        made[f"{at}{role}/bias"] = rng.normal(size=(heads, width // heads))
    return made


def norm(at: str) -> Arrays:
    rng = np.random.default_rng(list(at.encode()))
    return {f"{at}/scale": rng.normal(size=32), f"{at}/bias": rng.normal(size=32)}


def mlp(at: str, hidden: int = 96) -> Arrays:
    rng = np.random.default_rng(list(at.encode()))
    sizes = {"Dense_0": (32, hidden), "Dense_1": (hidden, 32)}
    made = {f"{at}{name}/kernel": rng.normal(size=size) for name, size in sizes.items()}
    return made | {f"{at}{name}/bias": rng.normal(size=size[1]) for name, size in sizes.items()}


def embedding() -> Arrays:
    rng = np.random.default_rng(7)
    return {"embedding/kernel": rng.normal(size=(16, 16, 3, 32)), "embedding/bias": rng.normal(size=32)}


def augreg() -> Arrays:
    """As google-research/vision_transformer names them."""
    rng = np.random.default_rng(0)
    made = {
        **embedding(), "cls": rng.normal(size=(1, 1, 32)), "head/kernel": rng.normal(size=(32, 6)), "head/bias": rng.normal(size=6),
        "Transformer/posembed_input/pos_embedding": rng.normal(size=(1, 17, 32)), **norm("Transformer/encoder_norm"),
    }  # fmt: skip
    for i in range(2):
        at = f"Transformer/encoderblock_{i}/"
        made |= norm(f"{at}LayerNorm_0") | norm(f"{at}LayerNorm_2") | mlp(f"{at}MlpBlock_3/")
        made |= kernels(f"{at}MultiHeadDotProductAttention_1/", 4)
    return made


def siglip(*, scanned: bool = False) -> Arrays:
    """As google-research/big_vision names them, the text's tower beside."""
    made = {
        **embedding(),
        "pos_embedding": np.random.default_rng(1).normal(size=(1, 16, 32)),
        **norm("Transformer/encoder_norm"),
    }
    blocks = []
    for i in range(2):
        one = (
            norm("LayerNorm_0")
            | norm("LayerNorm_1")
            | mlp("MlpBlock_0/")
            | kernels("MultiHeadDotProductAttention_0/", 4)
        )
        blocks.append({k: v + i for k, v in one.items()})
    if scanned:
        made |= {f"Transformer/encoderblock/{k}": np.stack([block[k] for block in blocks]) for k in blocks[0]}
    else:
        made |= {
            f"Transformer/encoderblock_{i}/{k}": v for i, block in enumerate(blocks) for k, v in block.items()
        }
    pool = {
        "probe": np.random.default_rng(2).normal(size=(1, 1, 32)),
        **norm("LayerNorm_0"),
        **mlp("MlpBlock_0/"),
    }
    pool |= kernels("MultiHeadDotProductAttention_0/", 4)
    made |= {f"MAPHead_0/{k}": v for k, v in pool.items()}
    texts = {"params/t": np.ones(1), "params/b": np.ones(1), "params/txt/Embed_0/embedding": np.ones((9, 32))}
    texts |= {"params/txt/Encoder_0/encoder_norm/bias": np.ones(32)}
    return {**{f"params/img/{k}": v for k, v in made.items()}, **texts}


def pooled() -> nn.Module:
    return VisionTransformer(**{**VIT, "num_classes": 0}, class_token=False, global_pool="map")


KINDS: dict[str, tuple[Any, Any]] = {
    "AugReg": (lambda: VisionTransformer(**VIT), augreg),
    "AugReg with its optimizer": (
        lambda: VisionTransformer(**VIT),
        lambda: {**{f"opt/target/{k}": v for k, v in augreg().items()}, "opt/state/step": np.array(3)},
    ),
    "SigLIP": (pooled, siglip),
    "SigLIP, blocks in one array": (pooled, lambda: siglip(scanned=True)),
}


def saved(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **{k: np.asarray(v, np.float32) for k, v in arrays.items()})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_timm_copies(kind: str, tmp_path: Path) -> None:
    make, arrays = KINDS[kind]
    path = saved(tmp_path / "weights.npz", arrays())
    model, theirs = make(), make()
    theirs.load_pretrained(str(path))
    read = read_checkpoint(path)
    assert "Google's names were taken for timm's" in read.notes
    model.load_state_dict(filter_state_dict(read.state, model), strict=True)
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """NumPy has no such type, and stores its bytes."""
    wanted = torch.from_numpy(augreg()["embedding/kernel"]).float().bfloat16()
    arrays = {k: np.asarray(v, np.float32) for k, v in augreg().items()}
    arrays["embedding/kernel"] = wanted.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "weights.npz", **arrays)
    read = read_checkpoint(tmp_path / "weights.npz")
    assert torch.equal(read.state["patch_embed.proj.weight"], wanted.float().permute(3, 2, 0, 1))


def test_a_named_model_takes_them_strictly(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224:embed_dim=32,depth=2,num_heads=4,mlp_ratio=3.0"
    path = saved(tmp_path / "augreg.npz", augreg())
    loaded = load_model(name, path, 64)
    assert loaded.model.num_classes == 6 and any("Google's names" in note for note in loaded.notes)
    for key, said in (("Transformer/encoderblock_1/LayerNorm_2/bias", "1 missing"), ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias", "unexpected")):  # fmt: skip
        saved(path, {k: v for k, v in augreg().items() if k != key})
        with pytest.raises(InputError, match=said) as refusal:
            load_model(name, path, 64)
        assert "\n" not in str(refusal.value)
    saved(path, {**augreg(), "pre_logits/kernel": np.ones((32, 32))})
    with pytest.raises(InputError, match="1 unexpected"):
        load_model(name, path, 64)


@pytest.mark.parametrize("arrays", [augreg, siglip, lambda: siglip(scanned=True)])
def test_heads_are_those_of_the_arrays(arrays: Any, tmp_path: Path) -> None:
    """As one matrix their weights fit any count of heads."""
    assert read_checkpoint(saved(tmp_path / "weights.npz", arrays())).heads == 4
    if arrays is augreg:
        name = "vit_tiny_patch16_224:embed_dim=32,depth=2,num_heads={},mlp_ratio=3.0"
        with pytest.raises(
            InputError, match=r"has 4 heads by the shape of its arrays, not 2; pass the --model that"
        ):
            load_model(name.format(2), tmp_path / "weights.npz", 64)
        # Google's code approximates GELU by tanh
        notes = load_model(name.format(4), tmp_path / "weights.npz", 64).notes
        assert any("its activation is gelu_pytorch_tanh, that of vit_tiny" in note for note in notes)
        exact = load_model(f"{name.format(4)},act_layer=gelu_tanh", tmp_path / "weights.npz", 64).notes
        assert not any("activation" in note for note in exact)


def test_objects_in_an_archive_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.array([{"a": 1}], object)}, allow_pickle=True)
    with pytest.raises(InputError, match="never loaded"):
        read_checkpoint(tmp_path / "w.npz")
    path = saved(tmp_path / "cut.npz", augreg())
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="damaged archive"):
        read_checkpoint(path)
