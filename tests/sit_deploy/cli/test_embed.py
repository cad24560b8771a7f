from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers.command_line import CommandLine
from tests.helpers.damaged import NAMES, add_damaged
from tests.sit_deploy.conftest import Trained


def test_summary_and_file(nano_embeddings: Path, trained: Trained, cli: CommandLine) -> None:
    result = cli("embed", nano_embeddings, trained.images, "-o", "f.npz", "--json")
    summary = result.json()
    file = np.load(cli.folder / "f.npz")
    assert (summary["file"], summary["images"], summary["paths"]) == ("f.npz", 11, None)
    assert summary["bytes"] == (cli.folder / "f.npz").stat().st_size
    assert summary["outputs"] == {name: list(file[name].shape) for name in ("features", "patches")}
    assert len(file["paths"]) == 11 and summary["seconds"] > 0
    assert "Note: 11 images: features 6.7 kB, patches" in result.err
    assert "f.npz exists; pass --force to replace it" in cli("embed", nano_embeddings, trained.images, "-o", "f.npz", status=2).err  # fmt: skip
    told = cli("embed", nano_embeddings, trained.images, "-o", "f.npz", "--force", "--outputs", "features")
    assert "f.npz: features (11, 128); " in told.out and set(np.load(cli.folder / "f.npz").files) == {"paths", "features"}  # fmt: skip


def test_rows_without_paths(nano_embeddings: Path, trained: Trained, cli: CommandLine) -> None:
    words = ("embed", nano_embeddings, trained.images, "--outputs", "features", "-o", "f.npy")
    assert "--json lists them" in cli(*words).out
    summary = cli(*words, "--force", "--json").json()
    assert len(summary["paths"]) == len(np.load(cli.folder / "f.npy")) == 11


def test_a_tensorrt_bundle_on_this_cpu(nano_rtx: Path, trained: Trained, cli: CommandLine) -> None:
    words = ("embed", nano_rtx, trained.images, "-o", "f.npz", "--engine", "onnxruntime")
    assert cli(*words, "--json").json()["engine"] == "onnxruntime"


def test_nothing_is_left_of_a_run_that_ends_early(nano_embeddings: Path, cli: CommandLine) -> None:
    (cli.folder / "photos").mkdir()
    (cli.folder / "photos/a.jpg").write_bytes(b"hello")
    words = ("embed", nano_embeddings, "photos", "-o")
    (line,) = [x for x in cli(*words, "f.npz", status=2).complaints if not x.startswith("Note: ")]
    assert line.startswith("Error: the image cannot be read: photos/a.jpg: not an image that can be read")
    assert [path.name for path in cli.folder.iterdir() if path.name != "tmp"] == ["photos"]
    assert "must end in .npz" in cli.refuses(*words, "f.csv")
    assert "nowhere.jpg: no such file or folder" in cli.refuses(
        "embed", nano_embeddings, "nowhere.jpg", "-o", "f.npz"
    )


def test_damaged_images_are_named(nano_embeddings: Path, trained: Trained, cli: CommandLine) -> None:
    (cli.folder / "photos").mkdir()
    add_damaged(cli.folder / "photos")
    words = ("embed", nano_embeddings, trained.images, "photos", "-o", "f.npz")
    summary = cli(*words, "--json").json()
    assert summary["images"] == 11 == len(np.load(cli.folder / "f.npz")["paths"])
    assert [one["image"] for one in summary["damaged"]] == [f"photos/{name}" for name in NAMES]
    told = " ".join(cli(*words, "--force").out.split())
    assert "6 images cannot be read and were left out: photos/bomb.png: the image" in told
    assert "; and 3 more" in told and "11 images in" in told
    line = cli(*words, "--force", "--max-damaged", 5, status=2).complaints[-1]
    assert line.startswith(
        "Error: 6 images cannot be read, more than --max-damaged 5; the last: photos/truncated.jpg: "
    )
