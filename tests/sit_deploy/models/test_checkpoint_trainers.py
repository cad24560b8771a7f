"""Checkpoints as the trainers' own libraries write them, with all that they put beside the weights."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, load_model, read_checkpoint
from sit_deploy.models.sit import SiT
from tests.helpers.models import images, named_model

State = dict[str, torch.Tensor]
Save = Callable[..., Path]


def same(path: Path, model: SiT, **options: Any) -> tuple[str, ...]:
    """Load a checkpoint, check that it is `model` to the last bit, and return the notes."""
    loaded = load_model("sit_nano", path, **options)
    x = images(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    return loaded.notes


def at(state: State, prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


def other(state: State) -> State:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


# ----------------------------------------------------------------------------------------- written by the libraries


def test_timms_saver(sit_nano: SiT, tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    average = ModelEmaV3(sit_nano)
    optimizer = torch.optim.SGD(sit_nano.parameters(), lr=0.1, momentum=0.9)
    args = argparse.Namespace(
        model="sit_nano", output=tmp_path, seed=np.int64(3), start=datetime.datetime(2026, 1, 1)
    )
    saver = CheckpointSaver(
        sit_nano, optimizer, args, average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=81.5)
    assert same(tmp_path / "last.pth.tar", sit_nano)[0].startswith("state_dict_ema weights of last.pth.tar")


@pytest.mark.slow
@pytest.mark.parametrize("attribute", ["net", "backbone", "model"])
def test_lightning(attribute: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    torchmetrics = pytest.importorskip("torchmetrics")
    network = named_model("sit_nano", num_classes=10)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, attribute, network)
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))
            self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10, average=None)
            self.val_acc.persistent(True)
            self.save_hyperparameters({"folder": pathlib.Path("data"), "lr": np.float64(1e-3)})

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.criterion(getattr(self, attribute)(batch[0]), batch[1])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, 112, 112), 1

    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Classifier(), torch.utils.data.DataLoader(Images()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    notes = same(tmp_path / "last.ckpt", network.eval())
    assert notes[0] == f"state_dict weights of last.ckpt, under the prefix '{attribute}.'"
    assert "no part of the model: criterion.weight, val_acc." in notes[1]


@pytest.mark.slow
def test_transformers_wrapper_of_timm(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5).eval()
    config = transformers.TimmWrapperConfig.from_dict(
        {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": {"img_size": 64}}
    )
    wrapped = transformers.TimmWrapperForImageClassification(config)
    wrapped.timm_model.load_state_dict(plain.state_dict())
    wrapped.save_pretrained(tmp_path)
    loaded = load_model("vit_tiny_patch16_224", tmp_path, 64)  # the folder itself
    x = images(loaded.model)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), plain(x))
    assert loaded.checkpoint is not None
    assert loaded.checkpoint.path == tmp_path / "model.safetensors"


def test_average_of_torch(sit_nano: SiT, save: Save) -> None:
    average = torch.optim.swa_utils.AveragedModel(sit_nano, use_buffers=True)
    average.update_parameters(sit_nano)
    assert "left out 1 entry that is no part of the model: n_averaged" in same(
        save(average.state_dict()), sit_nano
    )


@pytest.mark.slow
def test_compiled_as_a_whole_and_block_by_block(sit_nano: SiT, save: Save) -> None:
    whole = torch.compile(sit_nano)
    assert all(k.startswith("_orig_mod.") for k in whole.state_dict())
    same(save(whole.state_dict()), sit_nano)
    parts = named_model("sit_nano", num_classes=10)
    expected = {k: v.clone() for k, v in parts.state_dict().items()}
    for i, block in enumerate(parts.blocks):
        parts.blocks[i] = torch.compile(block)
    assert "blocks.0._orig_mod.norm1.weight" in parts.state_dict()
    assert read_checkpoint(save(parts.state_dict())).state.keys() == expected.keys()


def test_checkpointed_activations(save: Save) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = named_model("sit_nano", num_classes=10)
    expected = set(model.state_dict())
    state = {}
    for i, block in enumerate(model.blocks):  # its state dict hooks hide the segment; FSDP's files have it
        model.blocks[i] = checkpoint_wrapper(block)
    for name, value in model.named_parameters():
        state[name] = value
    state |= {k: v for k, v in model.state_dict().items() if "bn" in k}
    assert read_checkpoint(save({"model": state})).state.keys() == expected


# ------------------------------------------------------------------------------------------- where the weights stand

PLACES: dict[str, Callable[[State], Any]] = {
    "DeepSpeed's forward": lambda s: at(s, "_forward_module.model."),
    "FSDP in the middle": lambda s: {re.sub(r"^(blocks\.\d+)\.", r"\1._fsdp_wrapped_module.", k): v for k, v in s.items()},
    "PEFT, merged": lambda s: at(s, "base_model.model."),
    "Lightning, compiled, in DDP": lambda s: {"state_dict": at(s, "model._orig_mod.module.")},
    "DDP, compiled, in a wrapper": lambda s: {"state_dict": at(s, "module.net._orig_mod."), "hyper_parameters": {"lr": 0.1}},
    "a backbone beside a decoder": lambda s: {**at(s, "encoder."), "decoder.0.weight": torch.ones(768, 128, 1, 1)},
    "two deep": lambda s: {"checkpoint": {"net": s, "epoch": 3}, "seed": 1},
    "a key of nobody's": lambda s: {"my_best_model": s, "lr": [0.1]},
    "in a list": lambda s: [s, {"optimizer": None}],
    "in a tuple": lambda s: ("sit", s),
    "beside counters": lambda s: {**s, "epoch": 3, "best": 81.5},
    "long prefix": lambda s: {"state_dict": at(s, "student.encoder.trunk.")},
    "with a loss of its own": lambda s: {**at(s, "trunk."), "loss_fn.weight": torch.ones(10), "loss_fn.margin": torch.ones(())},
    "beside an optimiser's flat state": lambda s: {
        "model": s, "optim": {f"state.{k}.{part}": v for k, v in s.items() for part in ("exp_avg", "exp_avg_sq", "step")},
    },
    "the same twice": lambda s: {"model": s, "module": dict(s)},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_where_their_names_stand(
    place: str, state: State, sit_nano: SiT, save: Save
) -> None:
    same(save(PLACES[place](state)), sit_nano)


RIVALS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "DINO": (lambda s: {"student": at(s, "module."), "teacher": other(s)}, "student", "'student', 'teacher'"),
    "BYOL": (lambda s: {**at(s, "online."), **at(other(s), "target.")}, "online", "'online', 'target'"),
    "one state dict": (
        lambda s: {"state_dict": {**at(s, "model."), **at(other(s), "ema_model.module.")}},
        "model",
        "'state_dict.model', 'state_dict.ema_model'",
    ),
    "last and best": (lambda s: {"best": s, "last": other(s)}, "best", "'best', 'last'"),
    "itself and its teacher": (lambda s: {**s, **at(other(s), "teacher.")}, ".", "'.', 'teacher'"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rivals", RIVALS)
def test_where_several_could_be_meant_the_user_is_asked(
    rivals: str, state: State, sit_nano: SiT, save: Save
) -> None:
    write, key, named = RIVALS[rivals]
    path = save(write(state))
    with pytest.raises(InputError, match=r"under each of .*; say which with --checkpoint-key") as caught:
        load_model("sit_nano", path)
    assert named in str(caught.value)
    same(path, sit_nano, checkpoint_key=key)
    with pytest.raises(
        InputError, match="has no weights under 'nobody'; pass --checkpoint-key with one of '"
    ):
        load_model("sit_nano", path, checkpoint_key="nobody")


def test_of_two_the_one_that_fits_is_taken(state: State, sit_nano: SiT, save: Save) -> None:
    """A distillation's own checkpoint: the teacher is no SiT."""
    teacher = named_model("lvvit_nano").state_dict()
    path = save({"state_dict": {**at(state, "student."), **at(teacher, "teacher.")}})
    assert "student." in same(path, sit_nano)[0]
    assert "teacher." in load_model("lvvit_nano", path).notes[0]


@pytest.mark.slow
def test_a_part_of_the_model_is_no_rider(state: State, save: Save) -> None:
    headless = {k: v for k, v in state.items() if not k.startswith("head.")}
    head = {k: v for k, v in state.items() if k.startswith("head.")}
    with pytest.raises(InputError, match=r"2 more outside it \(head.weight, head.bias\)"):
        load_model("sit_nano", save({**at(headless, "backbone."), **head}))
    with pytest.raises(InputError, match=r"layers beside it that may follow it \(classifier.weight\)"):
        load_model("sit_nano", save({**at(state, "net."), "classifier.weight": torch.ones(7, 1000)}))
    # neither a norm behind the backbone nor a temperature is another model's
    own = ("neck.norm.weight", "logit_scale")
    for key in (
        "blocks.8.norm1.weight",
        "head.scale",
        "norm.running",
        "fc_norm.weight",
        "unknown.weight",
        *own,
    ):
        with pytest.raises(InputError, match=f"1 unexpected \\({re.escape(key)}\\)"):
            load_model("sit_nano", save({**state, key: torch.ones(128)}))


def test_what_stands_in_a_block_is_no_rider(save: Save) -> None:
    """Names that mean something of no model outside of one: a temperature of cosine attention, norms that other code puts inside."""
    state = {
        "class_embedding": torch.zeros(8),
        "positional_embedding": torch.zeros(17, 8),
        "conv1.weight": torch.zeros(8, 3, 4, 4),
    }
    state["transformer.resblocks.0.attn.in_proj_weight"] = torch.zeros(24, 8)
    inner = {
        f"transformer.resblocks.0.{k}": torch.ones(8)
        for k in ("ln_attn.weight", "attn.logit_scale", "mlp.ln.weight")
    }
    read = read_checkpoint(
        save(at(state | inner, "visual.") | {"transformer.resblocks.0.ln_1.weight": torch.ones(9)})
    )
    assert read.state.keys() >= inner.keys() and "left out 1 entry" in read.notes[-1]
    hugging_face = {
        "embeddings.cls_token": torch.zeros(1, 1, 8),
        "embeddings.patch_embeddings.projection.weight": torch.zeros(8, 3, 4, 4),
    }
    inner = {
        f"encoder.layer.0.{k}": torch.ones(8) for k in ("output.adapter.gate.weight", "attention.logit_scale")
    }
    names = read_checkpoint(
        save(at(hugging_face | inner, "vit.") | {"vit.pooler.dense.weight": torch.ones(8, 8)})
    ).state
    assert names.keys() >= inner.keys() and "pooler.dense.weight" not in names


def test_a_pooler_before_a_classifier_is_no_rider(save: Save) -> None:
    """A module of one's own that classifies transformers' pooler_output: a layer and tanh, which timm's model has not."""
    vit = {
        "embeddings.cls_token": torch.zeros(1, 1, 8),
        "embeddings.patch_embeddings.projection.weight": torch.zeros(8, 3, 4, 4),
    }
    pooler = {"pooler.dense.weight": torch.ones(8, 8), "pooler.dense.bias": torch.ones(8)}
    classifier = {"classifier.weight": torch.ones(5, 8), "classifier.bias": torch.ones(5)}
    path = save(at(vit | pooler, "vit.") | classifier)
    with pytest.raises(
        InputError,
        match=r"a pooler before its classifier \(vit.pooler.dense.weight\).*--checkpoint-key \. to leave",
    ) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "head.weight" in read_checkpoint(path, key=".").state
    assert read_checkpoint(save(at(vit | pooler, "vit."))).state  # of a backbone alone nothing reads it


# --------------------------------------------------------------------------------------------- data beside the weights


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """A dict of a trainer's own, as mmengine's and ml_collections' are."""


class Holder:
    class Inner:
        pass


def _slots() -> Any:
    made = Holder.Inner()
    made.path = pathlib.PurePosixPath("x")
    return made


BESIDE: dict[str, Callable[[], Any]] = {
    "numpy scalar": lambda: np.float32(0.5),
    "numpy array": lambda: np.arange(6.0).reshape(2, 3),
    "numpy strings": lambda: np.array(["a", "b"]),
    "random state": lambda: np.random.default_rng(0).bit_generator.state,
    "old random state": lambda: np.random.RandomState(0).get_state(),
    "path": lambda: pathlib.Path("runs") / "1",
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "counter": lambda: collections.Counter("abca"),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "ordered": lambda: collections.OrderedDict(a=1),
    "namespace": lambda: argparse.Namespace(out=pathlib.Path("x"), inner=argparse.Namespace(lr=np.float64(1))),
    "simple namespace": lambda: types.SimpleNamespace(a=1),
    "enum": lambda: Colour.RED,
    "own dict": lambda: Config(a=Config(b=1)),
    "class in a class": _slots,
    "function": lambda: re.sub,
    "date": lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "torch's own": lambda: [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided],
    "set": lambda: [{1, 2}, frozenset("ab"), slice(1, 2), range(3), 1j, b"bytes", bytearray(b"x")],
    "scheduler": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), 3
    ).state_dict(),
    "large number": lambda: 10**60,
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", BESIDE)
def test_data_beside_the_weights_is_no_code(kind: str, old: bool, save: Save) -> None:
    state = {"norm.weight": torch.ones(3), "blocks.0.norm1.weight": torch.zeros(3)}
    path = save({"extra": BESIDE[kind](), "model": state}, _use_new_zipfile_serialization=not old)
    assert read_checkpoint(path).state.keys() == state.keys()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, save: Save) -> None:
    content = {"model": {"norm.weight": torch.arange(3.0)}, "extra": [BESIDE[kind]() for kind in BESIDE]}
    read = read_checkpoint(save(content, pickle_protocol=protocol))
    assert torch.equal(read.state["norm.weight"], torch.arange(3.0))


def test_arrays_are_weights_too(state: State, sit_nano: SiT, save: Save) -> None:
    same(save({k: v.numpy() for k, v in state.items()}), sit_nano)
    assert read_checkpoint(save({"norm.weight": np.asfortranarray(np.arange(6.0).reshape(2, 3))})).state[
        "norm.weight"
    ].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_views_share_one_storage(save: Save) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"norm.a": base, "norm.b": base.t(), "norm.c": base[1:3, ::2], "norm.d": base.flatten()[5:5]}
    read = read_checkpoint(save(state)).state
    assert all(torch.equal(read[k], v) for k, v in state.items())


def test_class_count_one_is_no_softmax(save: Save) -> None:
    """One output is refused; asked for as two classes it is them exactly."""
    one = named_model("sit_nano", num_classes=1, dist_token=True)
    path = save(one.state_dict())
    with pytest.raises(InputError, match=r"has one output: .* pass --num-classes 2"):
        load_model("sit_nano", path)
    with pytest.raises(InputError, match="pass --num-classes 2"):
        load_model("sit_nano", path, num_classes=1)
    with pytest.raises(InputError, match=r"has one output"):
        load_model("sit_nano", path, num_classes=3)
    with pytest.raises(InputError, match="pass --num-classes 2"):
        load_model("vit_tiny_patch16_224", num_classes=1)
    two = load_model("sit_nano", path, num_classes=2)
    x = images(one)
    with torch.no_grad():
        logits, z = two.model(x), one(x)
    assert torch.equal(logits[:, 0], torch.zeros(2))
    torch.testing.assert_close(logits.softmax(1)[:, 1], z[:, 0].sigmoid())
    assert "one output z became two" in two.notes[-1]
    assert create_model("sit_nano", num_classes=2).num_classes == 2
