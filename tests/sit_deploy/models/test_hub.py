"""Models by repository, folder and timm's own name: through the hub's real client, offline, on a cache of its layout."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.hub import local_file, origin, timm_weights
from sit_deploy.pipeline.request import BuildRequest
from tests.helpers.hub import COMMIT, CONFIG, Hub, fill, head_alone

constants = pytest.importorskip("huggingface_hub.constants")


TIMM = json.dumps(CONFIG).encode()


def completed(**fields) -> BuildRequest:
    return BuildRequest(**({"model": None, "output": Path("out")} | fields)).completed()


@pytest.mark.parametrize("prefix", ("hf-hub:me/vit", f"hf_hub:me/vit@{COMMIT}", "hf-hub:me/vit@main"))
def test_a_repository_is_its_model_and_its_safetensors(cached, prefix: str) -> None:
    snapshot = cached("me/vit", CONFIG, "model.safetensors", "pytorch_model.bin")
    request = completed(model=prefix)
    assert (request.model, request.checkpoint) == ("vit_tiny_patch16_224", snapshot / "model.safetensors")
    assert request.image_size == 64
    assert origin(request.checkpoint) == ("me/vit", COMMIT)
    assert request.completed() == request


@pytest.mark.parametrize(
    ("name", "meant"),
    (
        ("google/vit-base-patch16-224", "hf-hub:google/vit-base-patch16-224"),
        ("https://huggingface.co/google/vit-base-patch16-224", "hf-hub:google/vit-base-patch16-224"),
        ("https://huggingface.co/timm/x/tree/main", "hf-hub:timm/x"),
        ("https://hf.co/timm/x/blob/v2/model.safetensors", "hf-hub:timm/x@v2"),
        (".", "local-dir:."),
    ),
)
def test_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"write {meant}$"):
        _ = BuildRequest(name, None).config


def test_another_name_of_the_file_is_taken_from_the_cache(cached) -> None:
    snapshot = cached("me/best", CONFIG, "best.safetensors")
    assert completed(model="hf-hub:me/best").checkpoint == snapshot / "best.safetensors"


def test_weights_alone_in_the_cache_will_do_for_a_model_that_is_named(cached) -> None:
    """As timm's own client leaves it, which fetches no config.json."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    snapshot = cached(f"timm/{name}", None, "model.safetensors")
    request = completed(model=name, pretrained=True)
    assert (request.model, request.checkpoint) == (name, snapshot / "model.safetensors")


def test_arguments_that_make_another_model_are_part_of_its_name(cached) -> None:
    cached("me/own", {**CONFIG, "model_args": {"reg_tokens": 4, "img_size": 64}}, "model.safetensors")
    assert completed(model="hf-hub:me/own").model == "vit_tiny_patch16_224:reg_tokens=4"


def test_a_pickle_is_taken_where_there_is_nothing_else(cached) -> None:
    snapshot = cached("me/old", CONFIG, "pytorch_model.bin")
    assert completed(model="hf-hub:me/old").checkpoint == snapshot / "pytorch_model.bin"


def test_pretrained_is_the_weights_of_the_tag(cached) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    snapshot = cached(f"timm/{name}", CONFIG, "model.safetensors")
    request = completed(model=name, pretrained=True)
    assert (request.model, request.checkpoint) == (name, snapshot / "model.safetensors")
    assert timm_weights("vit_tiny_patch16_224").startswith("hf-hub:timm/vit_tiny_patch16_224.")


def test_a_folder_is_its_model(tmp_path: Path) -> None:
    path = fill(tmp_path / "a", CONFIG, "model.safetensors", "other.safetensors")
    request = completed(model=f"local-dir:{path}")
    assert (request.model, request.checkpoint) == ("vit_tiny_patch16_224", path / "model.safetensors")
    assert origin(request.checkpoint) is None


def test_one_shard_alone_is_no_model(tmp_path: Path) -> None:
    """With its index, whose other files are not there, or without."""
    path = fill(tmp_path / "a", CONFIG, "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    for name in (path, path / "model-00001-of-00002.safetensors", local_file(f"local-dir:{path}")):
        with pytest.raises(InputError, match="is one of 2 shards of a model; save it in one file"):
            read_checkpoint(name)
    whole = (path / "model-00001-of-00002.safetensors").rename(path / "model-00001-of-00001.safetensors")
    assert read_checkpoint(whole).state


def test_an_adapter_beside_weights_is_not_passed_over(cached, tmp_path: Path) -> None:
    """transformers adds it to them wherever it loads the folder."""
    path = fill(tmp_path / "a", CONFIG, "model.safetensors", "adapter_model.safetensors")
    (path / "adapter_config.json").write_text("{}")
    for name in (path, path / "model.safetensors", local_file(f"local-dir:{path}")):
        with pytest.raises(
            InputError, match=r"model.safetensors has an adapter \(PEFT\) beside it .*merge it"
        ):
            read_checkpoint(name)
    with pytest.raises(InputError, match=r"is an adapter \(PEFT\), not a model; merge it"):
        read_checkpoint(path / "adapter_model.safetensors")
    for file in ("model.safetensors", "config.json"):
        (path / file).unlink()
    with pytest.raises(InputError, match=r"has adapters \(PEFT\) of a model, not a model; merge them"):
        completed(model=f"local-dir:{path}")


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"model": "hf-hub:me/none"}, "is not in the cache .*HF_HUB_OFFLINE is set.*hf download me/none"),
        ({"model": "hf-hub:a/b/c"}, "is no name of a repository"),
        ({"model": "hf-hub:me/bert"}, r"is a model of transformers \(model_type bert\)"),
        ({"model": "hf-hub:me/own"}, "made otherwise: the argument 'pretrained' is not taken"),
        ({"model": "hf-hub:me/empty"}, "model.safetensors of hf-hub:me/empty is not in the cache"),
        ({"model": "sit_s", "pretrained": True}, "sit_s.*; pass --checkpoint FILE"),
        ({"model": "vit_tiny_patch16_224.nobody", "pretrained": True}, "leave out what follows the dot"),
        ({"model": "vit_huge_patch14_gap_224.in1k_ijepa", "pretrained": True}, "not on the hub; download http"),
        ({"pretrained": True}, "pass its name with --model"),
        ({"model": "deit_small_patch16_224", "pretrained": True, "stages": (6, 2, 2, 2)},
         "slim it first: sit-deploy train --model deit_small_patch16_224 --stages 6,2,2,2 --pretrained"),
        ({"model": "sit_s", "pretrained": True, "checkpoint": "a.pth"}, "pass one of them"),
        ({"model": "local-dir:nowhere"}, "local-dir:nowhere: nowhere is not there; check its path"),
        ({"model": "local-dir:.", "pretrained": True}, "local-dir:. has weights of its own; leave it out"),
        ({"checkpoint": "https://dl.org/a.pth"}, "is an address, and nothing is fetched from one; download it"),
        ({"model": "local-dir:"}, "local-dir: names no folder; write local-dir:PATH"),
        ({"model": "hf-hub:"}, "hf-hub: names no repository; write hf-hub:OWNER/NAME"),
        ({"model": "hf-hub:@main"}, "hf-hub:@main names no repository"),
        ({"checkpoint": "hf-hub:me/plain"}, "has neither a config.json nor a model card that names its model; name the one"),
    ),
)  # fmt: skip
def test_what_is_refused(cached, fields: dict, words: str) -> None:
    cached("me/bert", {"model_type": "bert"}, "model.safetensors")
    cached("me/own", {**CONFIG, "model_args": {"pretrained": True}}, "model.safetensors")
    cached("me/empty", CONFIG)
    cached("me/plain", None, "model.safetensors")
    with pytest.raises(InputError, match=words) as error:
        completed(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ("local-dir", "hf-hub"))
def test_a_name_of_thousands_of_characters_is_not_shown_whole(cached, cli, kind: str) -> None:
    assert len(cli.refuses("build", "--model", f"{kind}:{'x' * 5000}")) < 600


def test_two_files_that_may_be_meant(tmp_path: Path) -> None:
    path = fill(tmp_path / "two", CONFIG, "a.safetensors", "b.safetensors")
    with pytest.raises(InputError, match="2 files of weights"):
        completed(model=f"local-dir:{path}")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    (
        (404, "RepoNotFound", "has no model me/x, or a private one"),
        (401, "GatedRepo", "hf-hub:me/x is gated; ask for access"),
        (403, "GatedRepo", "hf-hub:me/x is gated; ask for access"),
        (401, "", "status 401.: the token is not valid there; run: hf auth login, or take HF_TOKEN out"),
        (403, "", "status 403.: the token may not read it"),
        (429, "", "status 429.: too many requests"),
        (500, "", "status 500.: try again later"),
    ),
)
def test_what_the_hub_refuses(hub: Hub, status: int, code: str, words: str) -> None:
    hub.refusal = (status, code)
    with pytest.raises(InputError, match=words) as error:
        completed(model="hf-hub:me/x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "files", "words"),
    (
        ("me/x@v9", {}, "has no revision v9; leave out @v9"),
        ("me/empty", {}, "has no config.json and no model.safetensors or pytorch_model.bin, so it is no model of timm's"),
        ("me/photos", None, "hf-hub:me/photos is a data set, not a model"),
        ("me/demo", None, "hf-hub:me/demo is a space, not a model"),
        ("me/paints", {"model_index.json": b"{}"}, "is a pipeline of diffusers, which makes images; take another"),
        ("me/flax", {"flax_model.msgpack": b"1"}, "has Flax's weights alone"),
        ("me/lora", {"adapter_config.json": b"{}"}, "has adapters"),
        ("me/bare", {"model.safetensors": b"1"}, "has neither a config.json nor a model card that names its model"),
        ("me/parts", {"config.json": b'{"model_type": "beit", "architectures": ["BeitForSemanticSegmentation"]}'}, "for another task"),
        ("me/two", {"config.json": TIMM, "a.safetensors": b"1", "b.pth": b"2", "optimizer.bin": b"3"},
         "has 2 files of weights, and none is called model.safetensors or pytorch_model.bin; download one of a.safetensors, b.pth"),
        ("me/text", {"config.json": b'{"model_type": "bert"}'}, "model_type bert., none of the vision transformers"),
        ("me/large", {"config.json": b'{"model_type": "vit"}', "model.safetensors.index.json": b"{}"}, "in shards"),
        ("me/torn", {"config.json": b'{"architecture": '}, "config.json of hf-hub:me/torn cannot be read"),
        ("me/list", {"config.json": b"[]"}, "is no set of named fields"),
    ),
)  # fmt: skip
def test_repositories_of_another_kind(hub: Hub, name: str, files: dict | None, words: str) -> None:
    hub.others = {"datasets/me/photos", "spaces/me/demo"}
    if files is not None:
        hub.models[name.partition("@")[0]] = files
    with pytest.raises(InputError, match=words) as error:
        completed(model=f"hf-hub:{name}")
    assert "\n" not in str(error.value)


def test_one_file_of_weights_may_have_any_name(hub: Hub) -> None:
    hub.models["me/vit"] = {"config.json": TIMM, "best.pth": b"1", "optimizer.pt": b"2"}
    assert completed(model="hf-hub:me/vit").checkpoint.name == "best.pth"


def test_fetching_is_shown_where_there_is_something_to_fetch(hub: Hub) -> None:
    hub.models["me/vit"] = {"config.json": TIMM, "pytorch_model.bin": b"0" * 3_000_000}
    seen: list[tuple[str, int, int]] = []
    request = BuildRequest("hf-hub:me/vit", None)
    request.completed(progress=lambda *step: seen.append(step))
    assert {text for text, _, _ in seen} == {"Fetching hf-hub:me/vit"}
    assert seen[0][1:] == (0, 0) and seen[-1][1:] == (1, 1)
    assert all(done < total == 4 for _, done, total in seen[2:-1])  # MB, and the file in its place
    seen.clear()
    request.completed(progress=lambda *step: seen.append(step))
    assert seen == []


def test_weights_are_fetched_last(hub: Hub, cli, tmp_path: Path) -> None:
    """Whatever is wrong besides is said before: nobody waits for a large file to learn of a typo."""
    hub.models["me/vit"] = {"config.json": TIMM, "model.safetensors": head_alone()}
    hub.models["me/card"] = {
        "model.safetensors": head_alone()
    }  # whose card, if it has one, is in the weights
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for command, *options in (
        ("build", "--batch-size", "0"),
        ("build", "--precision", "fp13"),
        ("build", "--mean", "2,2,2"),
        ("build", "--image-size", "65"),
        ("build", "--engine", "openvino", "--precision", "fp8"),
        ("build", "--precision", "int8"),
        ("build", "-o", "taken"),
        ("build", "--labels", "nowhere.txt"),
        ("build", "--calib-data", "nowhere"),
        ("build", "--val-data", "nowhere"),
        ("export", "--calib-data", "nowhere"),
        ("export", "-o", "model.pb"),
        ("export", "--opset", "16"),
        ("calibrate", "--calib-data", "nowhere", "-o", "c.json"),
        ("calibrate", "--calib-data", "nowhere", "-o", "none/c.json"),
        ("train", "--data", "nowhere"),
        ("train", "--data", "digits", "--lr", "0"),
        ("train", "--data", "digits", "-o", "taken/file"),
    ):
        cli.refuses(command, "--model", "hf-hub:me/vit", *options)
        assert hub.fetched.count("model.safetensors") == 0, (command, options)
    cli.refuses("build", "--checkpoint", "hf-hub:me/card", "--batch-size", "0")
    backbone = {"model_type": "vit", "architectures": ["ViTModel"]}
    hub.models["me/vit21k"] = {
        "config.json": json.dumps(backbone).encode(),
        "model.safetensors": head_alone(),
    }
    message = cli.refuses("build", "--model", "hf-hub:me/vit21k")
    assert "is a backbone without a classifier (ViTModel); build it with --outputs features" in message
    assert set(hub.fetched) == {"config.json"}


def test_a_download_that_ends_early(hub: Hub) -> None:
    hub.models["me/vit"] = {"config.json": TIMM}
    hub.cut = True
    with pytest.raises(
        InputError, match=r"config.json of hf-hub:me/vit could not be fetched .*run the command again"
    ) as error:
        completed(model="hf-hub:me/vit")
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["me/vit"] = {"config.json": TIMM}
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(InputError, match="see that it can be written, or say another place by HF_HOME"):
        completed(model="hf-hub:me/vit")


def test_a_full_disk(hub: Hub, cli) -> None:
    """A limit on the size of files stands in for it: the client's own write fails."""
    large = head_alone() + b"0" * 300_000
    hub.models["me/vit"] = {"config.json": TIMM, "model.safetensors": large}
    before, previous = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        message = cli.refuses("export", "--model", "hf-hub:me/vit", "-o", "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert "model.safetensors of hf-hub:me/vit could not be fetched to" in message
    assert "File too large" in message and message.endswith(
        "make room there, or say another place by HF_HOME"
    )
    assert not list(Path(constants.HF_HUB_CACHE).rglob("model.safetensors"))


def test_a_pickle_with_code_is_never_run(cached, cli, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    snapshot = cached("me/code", CONFIG, "pytorch_model.bin")
    (snapshot / "pytorch_model.bin").unlink()
    torch.save({"state_dict": Code()}, snapshot / "pytorch_model.bin")
    message = cli.refuses("export", "--model", "hf-hub:me/code", "-o", "m.onnx")
    assert "never loaded" in message
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "m.onnx").exists()


def test_a_token_that_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(InputError, match="the token for the hub has letters that no token has") as error:
        completed(model="hf-hub:me/x")
    assert "cret" not in str(error.value)


def test_weights_of_two_models_under_two_prefixes(cached, cli) -> None:
    snapshot = cached("me/both", CONFIG, "pytorch_model.bin")
    (snapshot / "pytorch_model.bin").unlink()
    one = {"cls_token": torch.zeros(1, 1, 192), "blocks.0.norm1.weight": torch.zeros(192)}
    state = {f"{who}.{k}": v + i for i, who in enumerate(("student", "teacher")) for k, v in one.items()}
    torch.save(state, snapshot / "pytorch_model.bin")
    message = cli.refuses("export", "--model", "hf-hub:me/both", "-o", "m.onnx")
    assert "under each of 'student', 'teacher'; say which with --checkpoint-key" in message
