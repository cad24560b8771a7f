from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sit_deploy.data.image_files import list_images
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots are few, since writing many takes longer than all else."""
    for name in ("_LEAST_DPI", "_MOST_DPI"):
        monkeypatch.setattr(f"sit_deploy.token_pictures.{name}", 40)


def test_a_bundle_and_its_checkpoint_draw_the_same(trained: Trained, cli: CommandLine) -> None:
    files = list_images(trained.images)[:2]
    rows = cli("visualize", trained.bundle, *files, "-o", "a/b", "--json").json()
    assert [row["image"] for row in rows] == [str(f) for f in files]
    assert (rows[0]["tokens"], rows[0]["method"]) == ([49, 24, 12, 6], "tsm")
    out = cli("visualize", trained.checkpoint, "--model", "sit_nano", *files, "-o", "c").out
    for path in files:
        name = f"{path.stem}-tokens.png"
        assert f"c/{name}" in out
        assert (cli.folder / "a/b" / name).read_bytes() == (cli.folder / "c" / name).read_bytes()


def test_a_bundle_that_takes_pixels(trained: Trained, trained_pixels: Path, cli: CommandLine) -> None:
    image = list_images(trained.images)[0]
    cli("visualize", trained_pixels, image, "-o", "a")
    cli("visualize", trained.bundle, image, "-o", "b")
    name = f"{image.stem}-tokens.png"
    assert (cli.folder / "a" / name).read_bytes() == (cli.folder / "b" / name).read_bytes()


def test_bad_input(trained: Trained, cli: CommandLine) -> None:
    image = list_images(trained.images)[0]
    assert "no such file or folder" in cli.refuses("visualize", trained.bundle, "gone.jpg")
    assert "has no model card; pass --model NAME" in cli.refuses("visualize", trained.checkpoint, image)
    assert "does not exist or is not a file" in cli.refuses("visualize", "gone.pth", image)
    assert "leave out --model, --stages" in cli.refuses(
        "visualize", trained.bundle, image, "--model", "sit_nano"
    )
    assert "--checkpoint says where a bundle's weights are" in cli.refuses(
        "visualize", trained.checkpoint, image, "--checkpoint", trained.checkpoint
    )
    other = cli.folder / "other"
    other.mkdir()
    shutil.copy(image, other / f"{image.stem}.jpg")
    assert f"several images are called {image.stem}" in cli.refuses("visualize", trained.bundle, image, other)
    cli("visualize", trained.bundle, image)
    assert "exists; pass --force to replace it" in cli.refuses("visualize", trained.bundle, image)
    cli("visualize", trained.bundle, image, "--force")
    assert "-o names the folder of the pictures, which are called NAME-tokens.png, and x.png" in cli.refuses(
        "visualize", trained.bundle, image, "-o", "x.png"
    )
    (cli.folder / "file").write_text("")
    assert "output file is not a folder" in cli.refuses("visualize", trained.bundle, image, "-o", "file")


def test_a_teacher_has_nothing_to_draw(trained: Trained, teacher_bundle: Path, cli: CommandLine) -> None:
    message = cli("visualize", teacher_bundle, list_images(trained.images)[0], status=2).the_error()
    assert "does not slim its tokens" in message
    assert not list(Path(cli.folder).glob("*.png"))


def test_formats_and_rows(trained: Trained, cli: CommandLine) -> None:
    image = list_images(trained.images)[0]
    words = ("visualize", trained.bundle, image, "--format", "svg, png", "--rows", "gathered")
    (row,) = cli(*words, "-o", "a", "--json").json()
    names = [f"a/{image.stem}-tokens.{kind}" for kind in ("svg", "png")]
    assert row["pictures"] == names and row["picture"] == names[0]
    assert sorted(path.name for path in (cli.folder / "a").iterdir()) == sorted(Path(n).name for n in names)
    assert [stage["tokens"] for stage in row["stages"]] == row["tokens"][1:]
    for stage in row["stages"]:
        assert (
            1
            <= stage["gathered_least"]
            <= stage["gathered_median"]
            <= stage["gathered_most"]
            <= row["tokens"][0]
        )
        assert 1 <= stage["lead"] <= stage["tokens"] and 0 < stage["largest_share"] <= 1
    (cli.folder / names[0]).unlink()  # one of the two is there
    assert "tokens.png exists" in cli.refuses(*words, "-o", "a")
    gif = cli("visualize", trained.bundle, image, "--format", "gif", status=2).usage_error()
    assert "'gif' is none of png, svg, pdf" in gif
    assert "'' is none of" in cli(*words, "--rows", "outlines,", status=2).usage_error()


def test_tokens_that_were_not_trained_are_told_of(cli: CommandLine, trained: Trained) -> None:
    import torch

    from sit_deploy.models import create_model

    torch.manual_seed(0)
    torch.save(create_model("sit_nano").state_dict(), cli.folder / "new.pth")
    image = list_images(trained.images)[0]
    done = cli("visualize", "new.pth", "--model", "sit_nano", image, "-o", "a")
    assert "gathers nearly all patches alike" in done.err
