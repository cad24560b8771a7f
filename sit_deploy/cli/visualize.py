"""The command `sit-deploy visualize`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Counts,
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
    warn,
)
from sit_deploy.cli.options import TOKENS, key_option, method_option
from sit_deploy.errors import InputError
from sit_deploy.methods import method_words

_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".webp")


@click.command(
    "visualize",
    epilog=examples(
        "sit-deploy visualize sit_s-fp16 cat.jpg -o pictures",
        "sit-deploy visualize model.safetensors photos/ -o pictures",
        "sit-deploy visualize sit_s.pth --model sit_s cat.jpg",
    ),
)
@click.argument("source", type=path_type, metavar="BUNDLE-OR-CHECKPOINT")
@click.argument("images", type=path_type, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=path_type,
    default=Path(),
    metavar="DIR",
    help="Folder of the pictures.  [default: here]",
)
@click.option("--model", metavar="NAME", help="Of a checkpoint without a model card.")
@click.option(
    "--stages",
    type=Counts("block counts", "6,2,2,2", limits.BLOCKS),
    help="Of a checkpoint without a model card.",
)
@click.option("--kept", type=TOKENS, help="Likewise; its weights tell where this is left out.")
@method_option
@click.option(
    "--checkpoint", type=path_type, metavar="FILE", help="A bundle's weights, if they moved since the build."
)
@key_option
@click.option("--force", is_flag=True, help="Replace pictures that are there.")
@quiet_option
@json_option
def command(
    source: Path,
    images: tuple[Path, ...],
    output: Path,
    model: str | None,
    stages: tuple[int, ...] | None,
    kept: tuple[int, ...] | None,
    method: str | None,
    checkpoint: Path | None,
    checkpoint_key: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Draw which patches of a picture each slimmed token gathers, stage by stage.

    Writes NAME-tokens.png for each image: the picture, and for each stage every patch in the colour of the token that has
    most of it, and how much each patch counts. The weights are the bundle's reference weights, in PyTorch.
    """
    from sit_deploy.data.ignored_orientation import ignored_orientation_note
    from sit_deploy.data.image_files import find_images

    listed = find_images(images)
    files = listed.images
    if listed.note:
        say(console(stderr=True), f"Note: {literal(listed.note)}")
    twice = [name for name, count in Counter(path.stem for path in files).items() if count > 1]
    if twice:
        raise InputError(f"several images are called {twice[0]}; draw them into different folders with -o")
    targets = [output / f"{path.stem}-tokens.png" for path in files]
    if there := [path for path in targets if path.exists() and not force]:
        raise InputError(f"{there[0]} exists; pass --force to replace it, or choose another folder with -o")
    if output.suffix.lower() in _PICTURES and not output.is_dir():
        raise InputError(
            f"-o names the folder of the pictures, which are called NAME-tokens.png, and {output} is called as a picture; pass another, as -o "
            f"{output.with_suffix('')}"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is not a folder; choose another with -o")
    with progress() as report:
        report("Loading the model", 0, 0)
        network, preprocessing = _load(source, model, stages, kept, method, checkpoint, checkpoint_key)
        report("Loading the model", 1, 1)
        warn(ignored_orientation_note(files, preprocessing, "build it with"))
        drawn = _draw(network, preprocessing, files, targets, report)
    if as_json:
        emit_json(drawn)
        return
    for row in drawn:
        say(console(), f"[green]✓[/] [bold]{literal(row['picture'])}[/]")


def _load(
    source: Path,
    model: str | None,
    stages: tuple[int, ...] | None,
    kept: tuple[int, ...] | None,
    method: str | None,
    checkpoint: Path | None,
    key: str | None,
) -> tuple[Any, Any]:
    """Return the plain PyTorch model and its preprocessing."""
    if source.is_dir():
        from sit_deploy.bundle import load_bundle
        from sit_deploy.validation.reference import reference_model

        if model or stages or kept or method or key:
            raise InputError(
                f"{source} is a bundle, which knows its model; leave out --model, --stages, --kept, --method and --checkpoint-key"
            )
        bundle = load_bundle(source)
        return reference_model(bundle, checkpoint), bundle.preprocessing()
    from sit_deploy.pipeline.float_graph import load_request
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.pipeline.work import Work

    if checkpoint:
        raise InputError("--checkpoint says where a bundle's weights are; leave it out")
    request = BuildRequest(
        model, Path(), checkpoint=source, stages=stages, kept=kept, method=method, checkpoint_key=key
    ).completed()
    loaded, choice, _ = load_request(Work(request, lambda *_: None))
    return loaded.model, choice.preprocessing


def _draw(
    network: Any, preprocessing: Any, files: list[Path], targets: list[Path], report: Any
) -> list[dict[str, Any]]:
    from sit_deploy.preprocessing import load_image
    from sit_deploy.visualize import draw, merged_by, patch_shares, save

    rows, method = [], merged_by(network)
    for done, (path, target) in enumerate(zip(files, targets, strict=True)):
        report("Drawing", done, len(files))
        pixels = preprocessing.pixels(load_image(path))
        shares = [share[0] for share in patch_shares(network, preprocessing.normalise(pixels)[None])]
        target.parent.mkdir(parents=True, exist_ok=True)
        save(draw(pixels, shares, network.grid_size, f"merged by {method_words(method)}"), target)
        rows.append(
            {"image": str(path), "picture": str(target), "tokens": list(network.kept), "method": method}
        )
    report("Drawing", len(files), len(files))
    return rows
