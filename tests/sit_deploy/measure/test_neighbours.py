"""Nearest neighbours of embeddings, against scikit-learn's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.errors import GateError, InputError
from sit_deploy.measure.neighbours import Neighbours, measure_neighbours, nearest_other
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.validation.validate import ValidateRequest, validate
from tests.helpers.command_line import CommandLine


def unit(count: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [2, 50, 2500])
def test_the_nearest_other_is_scikit_learns(count: int) -> None:
    vectors = unit(count)
    found = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors).kneighbors(vectors)[1]
    expected = np.where(found[:, 0] == np.arange(count), found[:, 1], found[:, 0])
    np.testing.assert_array_equal(nearest_other(vectors), expected)


def compared(theirs: np.ndarray, ours: np.ndarray, labels: list[int]) -> Neighbours:
    """Return the comparison of vectors that two sides give of pictures of one colour each, by that colour."""
    pictures = [(Image.new("RGB", (8, 8), (10 * i, 0, 0)), label) for i, label in enumerate(labels)]
    given = Preprocessing(size=(8, 8), resize=8, mean=(0, 0, 0), std=(1, 1, 1))

    def of(vectors: np.ndarray) -> Any:
        return lambda images: vectors[np.rint(images[:, 0, 0, 0] * 25.5).astype(int)]

    return measure_neighbours("features", of(theirs), of(ours), pictures, given, batch_size=3)


def test_shares_are_counted_over_all_images() -> None:
    theirs = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [3, 3.1]], np.float32)
    ours = theirs.copy()
    ours[1] = [0.2, 1]  # of label 0, and now beside those of label 1
    found = compared(theirs, ours, [0, 0, 1, 1, 1])
    assert (found.images, found.classes, found.output) == (5, 2, "features")
    assert found.reference == pytest.approx(100)
    nearest = nearest_other(ours / np.linalg.norm(ours, axis=1, keepdims=True))
    right = 100 * np.mean(np.array([0, 0, 1, 1, 1])[nearest] == [0, 0, 1, 1, 1])
    assert found.engine == pytest.approx(right) and right < 100
    assert found.drop == pytest.approx(100 - right)
    assert found.cosine_min < 0.5 < found.cosine_mean < 1
    found.require(max_drop=100, min_agreement=0)
    with pytest.raises(GateError, match="points more, over the 1 allowed; try a higher precision"):
        found.require(max_drop=1)
    with pytest.raises(GateError, match="get the same label by their nearest neighbours, under the 99"):
        found.require(min_agreement=99)


def test_vectors_that_have_no_direction() -> None:
    vectors = unit(4, 2)
    broken = vectors.copy()
    broken[2] = np.nan
    with pytest.raises(GateError, match="the engine gives vectors of NaN, infinity or length 0"):
        compared(vectors, broken, [0, 0, 1, 1])
    with pytest.raises(InputError, match="the PyTorch model itself gives vectors"):
        compared(np.zeros_like(vectors), vectors, [0, 0, 1, 1])


def test_images_without_labels() -> None:
    """Labels that are all one tell nothing: what is compared is each image's two vectors, and its nearest other."""
    theirs = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    ours = theirs.copy()
    ours[1] = [0.2, 1]
    found = compared(theirs, ours, [3, 3, 3, 3])
    assert (found.classes, found.reference, found.engine, found.same_label, found.drop) == (None,) * 5
    alike = nearest_other(theirs / np.linalg.norm(theirs, axis=1, keepdims=True)) == nearest_other(
        ours / np.linalg.norm(ours, axis=1, keepdims=True)
    )
    assert found.same_neighbour == pytest.approx(100 * alike.mean()) and found.same_neighbour < 100
    assert found.cosine_min == pytest.approx(0.28 / np.sqrt(0.82 * 1.04))
    found.require(min_agreement=10)
    with pytest.raises(
        GateError, match="% of images have the same nearest neighbour, under the 99 asked for"
    ):
        found.require(min_agreement=99)
    with pytest.raises(InputError, match="--max-accuracy-drop of embeddings needs images of two labels"):
        found.require(max_drop=1)
    alone = compared(theirs[:1], theirs[:1], [0])
    assert (alone.same_neighbour, alone.images, alone.cosine_min) == (None, 1, pytest.approx(1))
    with pytest.raises(InputError, match="a single image has no neighbours"):
        alone.require(min_agreement=99)


def test_labels_that_no_two_images_share_are_none() -> None:
    """No nearest other image can be right, so that both sides would be 0 % right, and the model no better than guessing."""
    theirs = unit(4, 2)
    found = compared(theirs, theirs, [0, 1, 2, 3])
    assert (found.classes, found.reference, found.drop, found.alone) == (None, None, None, 0)
    assert found.agreement == 100
    with pytest.raises(InputError, match="needs images of two labels at least, and two images of one"):
        found.require(max_drop=1)


def test_images_that_cannot_be_read_are_left_out(make_image_folder: Any) -> None:
    """And the one that is farthest is still called by its own name."""
    samples = ImageFolder(make_image_folder(("a", "b"), per_class=3)).samples
    given = Preprocessing.for_model(32)

    def vectors(images: np.ndarray) -> np.ndarray:
        return images[:, :, ::8, 0].reshape(len(images), -1) + 3

    def worse(images: np.ndarray) -> np.ndarray:
        found = vectors(images)
        found[0, 0] += 5  # of the first of a batch
        return found

    whole = measure_neighbours("features", vectors, worse, samples[1:], given, 8)
    samples[0][0].write_bytes(b"no picture")
    damaged = DamagedImages(1)
    found = measure_neighbours("features", vectors, worse, samples, given, 8, damaged=damaged)
    assert found == whole and found.farthest == str(samples[1][0])
    assert [one.image for one in damaged.found] == [str(samples[0][0])]
    with pytest.raises(InputError, match="--max-damaged 0"):
        measure_neighbours("features", vectors, worse, samples, given, 8, damaged=DamagedImages(0))
    for path, _ in samples:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of the 6 images can be read"):
        measure_neighbours("features", vectors, worse, samples, given, 8, damaged=DamagedImages(9))


def test_images_that_are_alone_in_their_class_are_counted() -> None:
    theirs = unit(5, 2)
    found = compared(theirs, theirs, [0, 0, 1, 2, 0])
    assert (found.classes, found.alone) == (3, 2) and found.reference is not None
    assert found.reference <= 60


@pytest.mark.slow
def test_a_bundle_of_embeddings_is_validated_on_any_folder(
    nano_embeddings: Path, cli: CommandLine, make_image_folder: Any
) -> None:
    """Flat, in a part of a data set, and below one folder alone; the image that is farthest is named."""
    for place in ("flat", "parts/val", "one/class"):
        (cli.folder / place).mkdir(parents=True)
        for index, image in enumerate(synthetic_images(3)):
            image.save(cli.folder / place / f"{index}.png")
    for data in ("flat", "parts", "one"):
        found = cli("validate", nano_embeddings, "--data", data, "--min-agreement", 100, "--json").json()
        measured = found["neighbours"]
        assert (measured["images"], measured["classes"], measured["same_neighbour"]) == (3, None, 100)
        assert measured["cosine_min"] > 0.99999 and measured["farthest"].endswith(".png")
        assert measured["farthest"].startswith(data)
    said = " ".join(cli("validate", nano_embeddings, "--data", "flat").out.split())
    assert (
        "features of 3 images without labels to compare: the same nearest neighbour for 100.00 %; cosine of"
        in said
    )
    single = make_image_folder(("a", "b", "c"), per_class=1)
    assert "of 3 images without labels to compare" in " ".join(
        cli("validate", nano_embeddings, "--data", single).out.split()
    )
    told = cli.refuses("validate", nano_embeddings, "--data", single, "--max-accuracy-drop", 1)
    assert "and two images of one; pass --data a folder" in told
    words = ("validate", nano_embeddings, "--data", "flat", "--max-accuracy-drop", 1)
    assert "--max-accuracy-drop of embeddings needs images of two labels" in cli.refuses(*words)
    told = cli("validate", nano_embeddings, "--data", "flat", "--image-key", "image", status=2).err
    assert "--image-key and --label-key are for hfds" in told
    assert cli("validate", nano_embeddings, "--data", make_image_folder(), "--json").json()["neighbours"][
        "classes"
    ]


@pytest.mark.slow
def test_a_bundle_of_embeddings_is_validated_on_labelled_images(nano_embeddings: Path) -> None:
    found = validate(ValidateRequest(bundle=nano_embeddings, data="digits", images=40, max_accuracy_drop=0.0))
    found.require()
    assert found.neighbours is not None and found.checked is None
    assert (found.neighbours.output, found.neighbours.images, found.neighbours.classes) == (
        "features",
        40,
        10,
    )
    assert found.neighbours.reference == found.neighbours.engine
    assert found.neighbours.cosine_min > 0.99999
    assert found.to_dict()["neighbours"]["same_neighbour"] == 100.0
    with pytest.raises(InputError, match="embeddings are compared in one run"):
        validate(ValidateRequest(bundle=nano_embeddings, data="digits", resume=Path("x.json")))
