"""Bundles that give something else than logits, from a checkpoint to an engine that is checked and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_deploy.bundle import load_bundle
from sit_deploy.cli.build import next_step
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.errors import GateError, InputError
from sit_deploy.inference import load
from sit_deploy.manifest import write_manifest
from sit_deploy.models.outputs import with_outputs
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.logits import torch_outputs
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.python_folder import write_folder
from sit_deploy.validation.reference import reference_model
from sit_deploy.validation.validate import ValidateRequest, validate
from tests.helpers.command_line import CommandLine
from tests.helpers.models import named_model

NAMES = ("features", "patches")


def test_manifest_and_golden_outputs_have_names(nano_embeddings: Path, nano_fp32: Path) -> None:
    bundle = load_bundle(nano_embeddings)
    manifest = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["schema"], manifest["classes"], bundle.classes) == (2, None, [])
    assert [(o["name"], o["dtype"]) for o in manifest["outputs"]] == [(n, "float32") for n in NAMES]
    kept, dim = manifest["model"]["tokens"][-1], 128
    assert [o["shape"] for o in manifest["outputs"]] == [[dim], [kept, dim]]
    assert all(o["meaning"] for o in manifest["outputs"])
    assert "--outputs features,patches" in manifest["command"]
    images, values = bundle.golden_outputs()
    model = with_outputs(reference_model(bundle), NAMES)
    for name, expected in torch_outputs(model, images, NAMES).items():
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=1e-5 * expected.std())
    assert (bundle.golden()[1] == values["features"]).all()

    plain = json.loads((nano_fp32 / "manifest.json").read_text(encoding="utf-8"))
    assert plain["schema"] == 1 and "outputs" not in plain and "--outputs" not in plain["command"]
    assert [(o.name, o.shape) for o in load_bundle(nano_fp32).outputs] == [("logits", (1000,))]


def test_what_to_do_next_is_what_such_a_bundle_can(nano_embeddings: Path, nano_fp32: Path) -> None:
    vectors, classes = load_bundle(nano_embeddings), load_bundle(nano_fp32)
    assert next_step(vectors, ran_here=True) == f"sit-deploy validate {nano_embeddings} --data DIR"
    assert next_step(classes, ran_here=True) == f"sit-deploy bench {nano_fp32}"
    assert "on a machine with a GPU" in next_step(vectors, ran_here=False)


def test_engine_gives_them_by_name(nano_embeddings: Path) -> None:
    """For more images than a batch and for fewer, from arrays and from pictures."""
    bundle = load_bundle(nano_embeddings)
    images, values = bundle.golden_outputs()
    with load(bundle) as classifier:
        found = classifier.outputs(np.concatenate([images, images[:1]]))
        assert tuple(found) == NAMES
        for name, array in found.items():
            np.testing.assert_allclose(array[:-1], values[name], atol=1e-4)
            np.testing.assert_allclose(array[-1], values[name][0], atol=1e-4)
        pictures = synthetic_images(3)
        every = classifier.all_outputs(pictures)
        assert every["patches"].shape == (3, *bundle.outputs[1].shape)
        assert (classifier(pictures) == every["features"]).all()
        with pytest.raises(InputError, match=r"gives features and patches and no logits; call outputs\(\)"):
            classifier.logits(images)


def test_the_page_of_a_build_asks_for_no_labels_that_it_does_not_take(nano_embeddings: Path) -> None:
    page = (nano_embeddings / "report.html").read_text(encoding="utf-8")
    assert (
        "--val-data" not in page and "sit-deploy report BUNDLE --data DIR measures nearest neighbours" in page
    )


def test_validation_compares_each(nano_embeddings: Path) -> None:
    golden = validate(ValidateRequest(nano_embeddings)).to_dict()["golden"]
    assert golden["passed"] and golden["agreement"] is None
    assert [one["name"] for one in golden["outputs"]] == list(NAMES)
    for one in golden["outputs"]:
        assert one["error"] < 1e-4 and one["lowest_cosine"] > one["least_cosine"] == 0.99999


def test_one_turned_token_is_found(nano_embeddings: Path, tmp_path: Path) -> None:
    """A patch that points elsewhere, while every figure beside it is right."""
    folder = tmp_path / "turned"
    shutil.copytree(nano_embeddings, folder)
    arrays = dict(np.load(folder / "golden.npz"))
    arrays["patches"][1, 0] *= -1
    np.savez(folder / "golden.npz", **arrays)
    fields = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_manifest(folder, {k: v for k, v in fields.items() if k not in ("schema", "files", "digest")})
    found = validate(ValidateRequest(folder))
    assert not found.golden.passed
    with pytest.raises(GateError, match="standard deviations of the patches off"):
        found.require()


def test_what_needs_classes_is_refused_in_a_line(
    nano_embeddings: Path, cli: CommandLine, make_image_folder
) -> None:
    images = make_image_folder()
    result = cli("predict", nano_embeddings, images, status=2)
    assert "needs classes, and" in result.err and "gives features and patches and no logits" in result.err
    assert "; write what it gives with `sit-deploy embed`, or build it" in result.err
    result = cli("build", "--model", "sit_nano", "--outputs", "features", "--val-data", images, status=2)
    assert result.status == 2 and "--val-data needs classes, and what is built gives features" in result.err


def test_checkpoint_without_a_head(tmp_path: Path) -> None:
    state = {k: v for k, v in named_model("sit_nano").state_dict().items() if "head" not in k}
    torch.save(state, tmp_path / "backbone.pth")
    request = BuildRequest(
        "sit_nano", tmp_path / "b", checkpoint=tmp_path / "backbone.pth", engine="onnxruntime"
    )
    with pytest.raises(InputError, match="without a head; build it with --outputs features, or train one"):
        build(request)
    bundle = build(BuildRequest(**{**vars(request), "outputs": ("features", "cls")}))
    assert bundle.manifest.model.num_classes == 0
    validate(ValidateRequest(bundle.path)).require()


@pytest.mark.parametrize("outputs", ["tokens", "features,tokens", ","])
def test_unknown_output(outputs: str, cli: CommandLine) -> None:
    result = cli("export", "--model", "sit_nano", "--outputs", outputs, status=2)
    assert "choose from logits, features, cls, patches" in result.err


def test_the_page_and_a_packaged_folder_say_what_is_given(
    nano_embeddings: Path, nano_fp32: Path, tmp_path: Path
) -> None:
    page = (nano_embeddings / "report.html").read_text(encoding="utf-8")
    assert "gives features and patches" in page and "0 classes" not in page
    assert "deviations of the reference outputs" in page
    write_folder([load_bundle(nano_embeddings)], tmp_path / "folder")
    readme = (tmp_path / "folder/README.md").read_text(encoding="utf-8")
    assert "found = embed.all_outputs(" in readme and "# features, patches" in readme
    assert "{name: values.shape for" in readme and "top_classes(" not in readme
    assert "sit-deploy report measures it" in page and "sit-deploy report BUNDLE --measured" in readme
    write_folder([load_bundle(nano_embeddings), load_bundle(nano_fp32)], tmp_path / "both")
    readme = (tmp_path / "both/README.md").read_text(encoding="utf-8")
    assert "`sit-deploy report BUNDLE --measured check.json` takes it in." in readme
