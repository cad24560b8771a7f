"""Checkpoints that do not load: each is one clear line, nothing in them is ever run, and nothing is half-loaded."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, load_model, read_checkpoint
from tests.helpers.models import shapes_alone

State = dict[str, torch.Tensor]
Save = Callable[..., Path]


def refusal(path: Path | str, model: str = "sit_nano", **options: Any) -> str:
    """Return the message with which a checkpoint is refused, after checking that it is one line that names the file."""
    with warnings.catch_warnings(record=True) as warned, pytest.raises(InputError) as caught:
        warnings.simplefilter("always")
        load_model(model, path, **options)
    assert [str(w.message) for w in warned] == []
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "weights_only" not in message  # torch's advice is to switch the safety off
    assert ";" in message  # what is wrong; what to do
    return message


def zeros(name: str) -> State:
    """Return a state dict of a named model that is small on disk: one zero, seen in every shape."""
    with shapes_alone():
        state = create_model(name).state_dict()
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}


class Payload:
    """Creates a folder when it is unpickled, as real code would be run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def write_pickle(path: Path, content: Any, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "archive": lambda path, content: torch.save(content, path),
    "old format": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle 0": lambda path, content: write_pickle(path, content, 0),
    "pickle 2": lambda path, content: write_pickle(path, content, 2),
    "pickle 4": lambda path, content: write_pickle(path, content, 4),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
def test_pickled_code_is_never_run(writer: str, suffix: str, state: State, tmp_path: Path) -> None:
    created = tmp_path / "created"
    path = tmp_path / f"sit{suffix}"
    WRITERS[writer](path, {"model": state, "extra": Payload(created)})
    message = refusal(path)
    assert not created.exists()
    if writer in ("archive", "old format") and suffix == ".pth":
        assert f"holds a pickled Python object, {os.mkdir.__module__}.mkdir," in message
        assert "torch.save(model.state_dict()" in message


def test_the_payload_is_live(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "extra": Payload(tmp_path / "created")}, tmp_path / "sit.pth")
    torch.load(tmp_path / "sit.pth", weights_only=False)
    assert (tmp_path / "created").is_dir()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": torch.nn.Linear(2, 2), "epoch": 3}, "torch.nn.modules.linear.Linear"),
        ({"best": random.Random(0)}, "random.Random"),
    ],
)
def test_objects_are_refused_and_named(content: Any, named: str, save: Save) -> None:
    assert named in refusal(save(content))


def test_torchscript_program(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files are about
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "sit.pt")
    assert "TorchScript" in refusal(tmp_path / "sit.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text\nand more\n", b"GLOBAL text", bytes(range(256)), b"PK\x03\x04", b"\x80\x02"],
)
def test_files_that_are_no_checkpoint(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"sit{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert ("is empty" in message) == (content == b"")
    assert "pickled Python object" not in message


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(share: float, zipped: bool, state: State, save: Save) -> None:
    path = save({"model": state}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "copy" in refusal(path)


def test_truncated_safetensors(state: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "sit.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable safetensors file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_corrupt_bytes_never_give_a_traceback(zipped: bool, save: Save) -> None:
    path = save(
        {"model": {f"blocks.{i}.weight": torch.ones(3, 2) for i in range(6)}},
        _use_new_zipfile_serialization=zipped,
    )
    good = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for _ in range(chance.choice((1, 1, 4))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pth")
    assert "not a file" in refusal(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        torch.zeros(3),
        None,
        5,
        {},
        {"model": [1, 2]},
        {"model": {}},
        {"model": {"norm.weight": 1.0}},
        {"model": {"norm.weight": [1.0]}},
        {"epoch": 3, "optimizer": {}},
        {1: torch.zeros(1)},
        {"model": {None: torch.zeros(1)}},
        {"a\nb": 1},
    ],
)
def test_files_without_weights(content: Any, save: Save) -> None:
    assert "has no weights under model, state_dict, module" in refusal(save(content))


@pytest.mark.parametrize(
    "entries", [{"n_averaged": torch.tensor(1)}, {"module.": torch.zeros(1)}, {"blocks.": torch.ones(1)}]
)
def test_weights_of_nothing(entries: State, save: Save) -> None:
    assert "does not fit sit_nano" in refusal(save(entries))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_and_named(value: float, state: State, save: Save) -> None:
    weight = state["blocks.3.mlp.fc1.weight"].clone()
    weight[0, :2] = value
    message = refusal(save({"model": {**state, "blocks.3.mlp.fc1.weight": weight}}))
    assert "2 NaN or infinite values in 'blocks.3.mlp.fc1.weight'" in message


@pytest.mark.parametrize("key", ["line\nbreak", "\x1b[31mred", "long" * 100])
def test_names_that_would_spoil_the_message(key: str, state: State, save: Save) -> None:
    message = refusal(save({**state, key: torch.zeros(1)}))
    assert message.isprintable()
    assert len(message) < 300 + len(str(key))


def test_prefixes_without_end(save: Save) -> None:
    assert "1 unexpected (x)" in refusal(save({"module." * 25 + "x": torch.zeros(1)}))


def test_values_beyond_float32_are_not_finite(state: State, save: Save) -> None:
    state["norm.weight"] = torch.full((128,), 1e300, dtype=torch.float64)
    assert "128 NaN or infinite values in 'norm.weight'" in refusal(save(state))


NOT_PLAIN: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.ones(128).to_sparse(),
    "meta": lambda: torch.ones(128, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(128), 1.0, 0, torch.qint8),
    "complex": lambda: torch.ones(128, dtype=torch.complex64),
}


@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_tensors_that_are_not_plain_numbers(kind: str, state: State, save: Save) -> None:
    assert "no plain numbers in 'norm.weight'" in refusal(save({**state, "norm.weight": NOT_PLAIN[kind]()}))


def test_integers_are_not_weights(state: State, save: Save) -> None:
    message = refusal(save({**state, "norm.weight": torch.ones(128, dtype=torch.int8)}))
    assert "1 of another type (norm.weight int8 for float32)" in message


ODD_SHAPES = [
    *((key, shape) for key in ("cls_token", "pos_embed", "head.weight", "tsm.1.weight.3.weight", "tsm.1.weight.3.bias")
      for shape in ((), (0,), (5,), (5, 5), (1, 3, 128))),
    *((key, ()) for key in ("head.bias", "norm.weight", "patch_embed.conv1.weight", "tsm.0.scale", "dist_token")),
    *(("pos_embed", shape) for shape in ((1, 0, 128), (1, 1, 128), (2, 50, 128), (2, 65, 128), (1, 50, 64), (1, 65, 64))),
    *(("cls_token", shape) for shape in ((1, 0, 128), (1, 1, 64), (1, 1, 0))),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("key", "shape"), ODD_SHAPES)
def test_tensors_of_odd_shapes(key: str, shape: tuple[int, ...], state: State, save: Save) -> None:
    message = refusal(save({**state, key: torch.ones(shape)}))
    assert f"{key} {shape} for (" in message
    assert "give a checkpoint of exactly this sit_nano" in message
    assert "altered" not in message


def test_dist_token_without_its_head(state: State, save: Save) -> None:
    message = refusal(save({**state, "dist_token": torch.ones(1, 1, 128)}))
    assert "3 missing (dist_pos_embed, head_dist.weight, head_dist.bias)" in message


def test_missing_and_unexpected_keys_are_counted_and_named(state: State, save: Save) -> None:
    del state["head.weight"], state["norm.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
    message = refusal(save(state))
    assert "2 missing (norm.bias, head.weight)" in message
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in message
    assert "2 missing" in refusal(save(state), num_classes=10)  # and no wrong word on the class count


@pytest.mark.parametrize(
    ("trained", "asked", "remedy"),
    [
        ("sit_nano", "sit_t", "it looks like sit_nano; pass --model sit_nano"),
        ("sit_t", "sit_nano", "it looks like sit_t; pass --model sit_t"),
        (
            "lvvit_nano",
            "sit_nano",
            "it looks like lvvit_nano; pass --model lvvit_nano: a teacher must be distilled",
        ),
        ("sit_nano", "lvvit_nano", "it looks like sit_nano; pass --model sit_nano"),
    ],
)
def test_another_architecture_is_named(trained: str, asked: str, remedy: str, save: Save) -> None:
    assert remedy in refusal(save(zeros(trained)), asked)


def test_a_teacher_is_not_taken_for_a_student_even_for_training(save: Save) -> None:
    # training starts a student from its teacher's weights and loads what fits itself; from here it would be a SiT
    # whose TSMs are random
    assert "a teacher must be distilled" in refusal(save(zeros("lvvit_nano")), "sit_nano", reverse_tsm=True)


def test_one_of_two_models_of_the_same_layout(save: Save) -> None:
    assert "it looks like sit_xs or sit_s; pass the --model" in refusal(save(zeros("sit_xs")), "sit_m")


def test_another_network_altogether(save: Save) -> None:
    message = refusal(save(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).state_dict()))
    assert "it holds 0 of the 139 weights" in message


@pytest.mark.parametrize("classes", [0, -1])
def test_class_counts_below_one(classes: int, state: State, save: Save) -> None:
    for checkpoint in (None, save(state)):
        with pytest.raises(InputError, match=f"class count must be at least 2, got {classes}"):
            load_model("sit_nano", checkpoint, num_classes=classes)


@pytest.mark.parametrize("size", [0, -16, 100])
def test_image_sizes(size: int, state: State, save: Save) -> None:
    for checkpoint in (None, save(state)):
        with pytest.raises(InputError, match="divisible by 16"):
            load_model("sit_nano", checkpoint, image_size=size)


def test_unknown_model(state: State, save: Save) -> None:
    with pytest.raises(
        InputError,
        match=r"unknown model 'sit_nana'; did you mean 'sit_nano'.* timm's vision transformers will do too",
    ):
        load_model("sit_nana", save(state))


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Run without root's right to read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def guarded(state: State) -> Iterator[Path]:
    """A folder that all may enter with a file that none may read, and a folder that none may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("sit.pth", "sit.safetensors"):
            torch.save(state, folder / file)
            (folder / file).chmod(0)
        (folder / "closed").mkdir(mode=0)
        yield folder
        (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("name", ["sit.pth", "sit.safetensors", "closed/sit.pth"])
def test_files_that_may_not_be_read(name: str, guarded: Path, as_nobody: None) -> None:
    assert "cannot be read (Permission denied)" in refusal(guarded / name)


def test_names_that_no_file_can_have() -> None:
    assert "cannot be read (File name too long)" in refusal("a" * 300)
    with pytest.raises(InputError, match="does not exist"):
        load_model("sit_nano", "a\0b")


def test_nothing_is_imported_for_a_checkpoint(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that is named in a checkpoint is not looked up either: importing its module would run it."""
    with monkeypatch.context() as there:
        trap = types.ModuleType("trap")
        trap.Model = type("Model", (), {"__module__": "trap"})
        there.setitem(sys.modules, "trap", trap)
        path = save({"model": trap.Model()})
    (tmp_path / "trap.py").write_text("import pathlib; pathlib.Path(__file__).with_name('sprung').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    assert "holds a pickled Python object, trap.Model," in refusal(path)
    assert "trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()
    importlib.import_module("trap")  # the trap is a live one
    assert (tmp_path / "sprung").exists()
    monkeypatch.delitem(sys.modules, "trap")


def test_lv_vit_of_token_labeling_is_named_by_its_stem(save: Save) -> None:
    """It has SiT's names, another stem and another score (zihangJiang/TokenLabeling, tlt/models/lvvit.py)."""
    state = create_model("lvvit_nano").state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("patch_embed.")}
    state |= {f"patch_embed.{k}": torch.zeros(s) for k, s in TOKEN_LABELING_STEM.items()}
    with pytest.raises(
        InputError, match=r"is TokenLabeling's LV-ViT, .* docs/weights\.md says where they are"
    ):
        load_model("lvvit_nano", save({"state_dict": state}))


TOKEN_LABELING_STEM = {
    "conv1.weight": (64, 3, 7, 7), "conv2.weight": (64, 64, 3, 3), "conv3.weight": (64, 64, 3, 3), "proj.weight": (128, 64, 8, 8),
    "proj.bias": (128,),
}  # fmt: skip
