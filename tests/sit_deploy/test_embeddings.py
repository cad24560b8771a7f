"""What `embed` writes is what the engine gives, and what timm gives; nothing is written where it cannot be whole."""

from __future__ import annotations

import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sit_deploy
from sit_deploy.bundle import load_bundle
from sit_deploy.classifier import Classifier
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.embeddings import EmbedRequest, embed
from sit_deploy.errors import GateError, InputError
from sit_deploy.inference import load
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from tests.helpers.damaged import NAMES, add_damaged


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures in two folders, and a text beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "größer").mkdir()
    for index, image in enumerate(synthetic_images(5)):
        image.save(folder / ("größer" if index % 2 else "") / f"{index}.png")
    (folder / "notes.txt").write_text("none")
    return folder


def test_every_output_with_the_path_of_its_row(nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    told: list[str] = []
    steps: list[tuple[int, int]] = []
    result = embed(
        EmbedRequest(nano_embeddings, (pictures,), tmp_path / "f.npz"),
        lambda _, done, total: steps.append((done, total)),
        told.append,
    )
    with np.load(result.file) as file:
        paths = [Path(path) for path in file["paths"]]
        found = {name: file[name] for name in ("features", "patches")}
    assert sorted(path.name for path in paths) == [f"{i}.png" for i in range(5)]
    with load(nano_embeddings) as classifier:
        expected = classifier.all_outputs(paths)
    for name, values in expected.items():
        assert result.outputs[name] == values.shape == found[name].shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * values.std())
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert told[0].startswith("beside the images are 1 other file") and told[1].startswith(
        "5 images: features"
    )
    assert (result.images, result.engine, result.paths) == (5, "onnxruntime", None)


@pytest.mark.slow
def test_a_timm_model_on_photographs(tmp_path: Path) -> None:
    """By timm's own methods and timm's own preprocessing of the pictures."""
    import timm
    from sklearn.datasets import load_sample_images
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=96).eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    outputs = ("logits", "features", "cls", "patches")
    bundle = build(
        BuildRequest(
            "vit_tiny_patch16_224",
            tmp_path / "tiny",
            checkpoint=tmp_path / "tiny.pth",
            image_size=96,
            outputs=outputs,
            engine="onnxruntime",
        )
    )
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for index, photograph in enumerate(photographs):
        photograph.save(tmp_path / f"{index}.png")
    files = tuple(tmp_path / f"{index}.png" for index in range(len(photographs)))
    with np.load(embed(EmbedRequest(bundle.path, files, tmp_path / "f.npz")).file) as file:
        found = {name: file[name] for name in file.files}
    assert found.pop("paths").tolist() == list(map(str, files))
    config = {**resolve_model_data_config(model), "input_size": (3, 96, 96)}
    transform = create_transform(**config, is_training=False)
    pixels = torch.stack([transform(photograph) for photograph in photographs])
    with torch.inference_mode():
        tokens = model.forward_features(pixels)
        wanted = {
            "logits": model(pixels),
            "features": model.forward_head(tokens, pre_logits=True),
            "cls": tokens[:, 0],
            "patches": tokens[:, 1:],
        }
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=1e-4 * float(values.std()))


def test_one_output_alone(nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    """An .npy file, which can be mapped; its paths are in the result."""
    request = EmbedRequest(nano_embeddings, (pictures,), tmp_path / "p.npy", outputs=("patches",))
    result = embed(request)
    with load(nano_embeddings) as classifier:
        wanted = classifier.all_outputs(result.paths)["patches"]
    found = np.load(tmp_path / "p.npy", mmap_mode="r")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.std())
    assert list(result.outputs) == ["patches"] and len(result.to_dict()["paths"]) == 5
    with pytest.raises(InputError, match="features and patches are 2; pass --outputs features, or write"):
        embed(EmbedRequest(nano_embeddings, (pictures,), tmp_path / "q.npy"))
    part = embed(EmbedRequest(nano_embeddings, (pictures,), tmp_path / "q.npz", outputs=("features",)))
    assert set(np.load(part.file).files) == {"paths", "features"}


def test_logits_too(nano_fp32: Path, pictures: Path, tmp_path: Path) -> None:
    result = embed(EmbedRequest(nano_fp32, (pictures,), tmp_path / "l.npz"))
    with load(nano_fp32) as classifier:
        wanted = classifier([str(path) for path in np.load(result.file)["paths"]])
    np.testing.assert_array_equal(np.load(result.file)["logits"], wanted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": ("cls",)}, "gives features and patches and no cls; leave it out, or build it with"),
        ({"outputs": ("tokens",)}, "--outputs tokens is not offered"),
        ({"output": Path("f.csv")}, r"must end in .npz \(paths and outputs\) or .npy"),
        ({"output": Path("nowhere/f.npz")}, "does not exist or cannot be written"),
        ({"images": ()}, "no images given"),
        ({"threads": 0}, "--threads must be 1"),
    ],
)
def test_refusals(
    fields: dict[str, Any],
    message: str,
    nano_embeddings: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        embed(
            EmbedRequest(
                **{"bundle": nano_embeddings, "images": (pictures,), "output": Path("f.npz"), **fields}
            )
        )
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there(nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    """It stays, whole, until it is to be replaced; and a link is followed."""
    (tmp_path / "old.npz").write_text("old")
    (tmp_path / "f.npz").symlink_to("old.npz")
    request = EmbedRequest(nano_embeddings, (pictures,), tmp_path / "f.npz")
    with pytest.raises(InputError, match="exists; pass --force"):
        embed(request)
    shutil.copytree(pictures, tmp_path / "pictures")
    damaged = tmp_path / "pictures/4.png"
    damaged.write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(InputError, match=r"more than --max-damaged 0; the last: .*4\.png: "):
        embed(
            EmbedRequest(
                nano_embeddings, (tmp_path / "pictures",), tmp_path / "f.npz", force=True, max_damaged=0
            )
        )
    assert (tmp_path / "old.npz").read_text() == "old"
    embed(EmbedRequest(nano_embeddings, (pictures,), tmp_path / "f.npz", force=True))
    assert (tmp_path / "f.npz").is_symlink() and "features" in np.load(tmp_path / "old.npz")
    assert {p.name for p in tmp_path.iterdir()} == {"old.npz", "f.npz", "pictures"}


def test_what_would_not_fit_on_the_disk(
    nano_embeddings: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any work, with what would fit; the features alone do."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("sit_deploy.embeddings.shutil.disk_usage", lambda _: usage(9_000))
    monkeypatch.setattr(Classifier, "outputs", lambda *_: pytest.fail("it has begun"))
    request = EmbedRequest(nano_embeddings, (pictures,), tmp_path / "f.npz")
    with pytest.raises(
        InputError, match=r"needs .* \(features .*\), and 9\.0 kB are free .* pass --outputs features"
    ):
        embed(request)
    monkeypatch.setattr("sit_deploy.embeddings.shutil.disk_usage", lambda _: usage(100))
    with pytest.raises(InputError, match="take fewer images"):
        embed(request)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_gives_nan(
    nano_embeddings: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Classifier.outputs

    def broken(self: Classifier, images: np.ndarray) -> dict[str, np.ndarray]:
        found = outputs(self, images)
        found["patches"][1, 2, 3] = np.nan
        return found

    monkeypatch.setattr(Classifier, "outputs", broken)
    files = tuple(load_paths(pictures)[:2])
    with pytest.raises(
        GateError, match=rf"infinite patches for {files[1]}; check it with sit-deploy validate"
    ):
        embed(EmbedRequest(nano_embeddings, files, tmp_path / "f.npz"))
    assert not list(tmp_path.iterdir())


def load_paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_it_is_offered_to_programs(nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    """Paths that are text, and a bundle's own shapes in the result."""
    request = sit_deploy.EmbedRequest(str(nano_embeddings), str(pictures), str(tmp_path / "f.npz"))  # type: ignore[arg-type]
    result = sit_deploy.embed(request)
    assert result.outputs == {o.name: (5, *o.shape) for o in load_bundle(nano_embeddings).outputs}
    with pytest.raises(
        InputError, match=r"^embed\(\): missing a required argument: 'images'; .* or one EmbedRequest"
    ):
        sit_deploy.embed("photos")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["f.npz", "f.npy"])
def test_damaged_images_have_no_row(name: str, nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    """Whatever is wrong with them and wherever they stand among the others, every row is of the image that its path names."""
    shutil.copytree(pictures, tmp_path / "pictures")
    add_damaged(tmp_path / "pictures")
    (tmp_path / "pictures/größer/zzz.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # the last of all
    outputs = ("features",) if name.endswith("npy") else None
    result = embed(EmbedRequest(nano_embeddings, (tmp_path / "pictures",), tmp_path / name, outputs=outputs))
    assert sorted(Path(one.image).name for one in result.damaged) == sorted([*NAMES, "zzz.png"])
    assert all(one.image in one.reason for one in result.damaged)
    if outputs:
        paths, found = result.paths, {"features": np.load(result.file, mmap_mode="r")}
    else:
        with np.load(result.file) as file:
            paths = tuple(map(Path, file["paths"]))
            found = {one: file[one] for one in ("features", "patches")}
        assert zipfile.ZipFile(result.file).testzip() is None
    assert sorted(path.name for path in paths) == [f"{i}.png" for i in range(5)] and result.images == 5
    with load(nano_embeddings) as classifier:
        for row, path in enumerate(paths):
            alone = classifier.all_outputs([path])
            for output, values in found.items():
                np.testing.assert_allclose(values[row], alone[output][0], rtol=0, atol=1e-5 * values.std())
    assert {one: values.shape for one, values in found.items()} == result.outputs


def test_too_many_damaged_images(nano_embeddings: Path, pictures: Path, tmp_path: Path) -> None:
    """Their number is a limit; and with none left there is nothing to write."""
    shutil.copytree(pictures, tmp_path / "pictures")
    add_damaged(tmp_path / "pictures")
    request = EmbedRequest(nano_embeddings, (tmp_path / "pictures",), tmp_path / "f.npz", max_damaged=5)
    with pytest.raises(
        InputError, match=r"^6 images cannot be read, more than --max-damaged 5; the last: .*pictures/t"
    ):
        embed(request)
    assert len(embed(replace(request, max_damaged=6)).damaged) == 6
    with pytest.raises(InputError, match=r"^none of the 2 images can be read: .*text\.jpg: not an image"):
        broken = tuple(tmp_path / f"pictures/{name}" for name in ("empty.jpg", "text.jpg"))
        embed(replace(request, images=broken, output=tmp_path / "g.npz"))
    with pytest.raises(InputError, match="--max-damaged must be"):
        embed(replace(request, output=tmp_path / "g.npz", max_damaged=-1))
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "f.npz"}
