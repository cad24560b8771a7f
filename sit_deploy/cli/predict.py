"""The command `sit-deploy predict`."""

from __future__ import annotations

from pathlib import Path

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Whole,
    console,
    device_option,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    say,
    table,
    warn,
)


@click.command(
    "predict",
    epilog=examples(
        "sit-deploy predict sit_s-fp32 cat.jpg dog.jpg", "sit-deploy predict sit_s-fp32 photos/ --json"
    ),
)
@click.argument("bundle", type=path_type)
@click.argument("images", type=path_type, nargs=-1, required=True)
@click.option(
    "--top",
    default=5,
    show_default=True,
    type=Whole(limits.CLASSES, 1),
    metavar="N",
    help="Classes shown an image.",
)
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option("--threads", type=Whole(limits.THREADS, 1), metavar="N", help="CPU threads.")
@device_option
@json_option
def command(
    bundle: Path,
    images: tuple[Path, ...],
    top: int,
    engine: str | None,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify image files, or all images below folders, with a bundle."""
    from sit_deploy.bundle import load_bundle
    from sit_deploy.data.ignored_orientation import ignored_orientation_note
    from sit_deploy.data.image_files import find_images
    from sit_deploy.inference import load

    search = find_images(images)
    files = search.images
    if search.note:
        say(console(stderr=True), f"Note: {literal(search.note)}")
    opened = load_bundle(bundle)
    opened.require_classes("predict", "write what it gives with `sit-deploy embed`")
    warn(ignored_orientation_note(files, opened.preprocessing(), "build it again with"))
    with load(opened, engine, threads=threads, device=device) as classify:
        results = classify.predict(files, top)
    if as_json:
        emit_json(
            [{"image": str(path), **found.to_dict()} for path, found in zip(files, results, strict=True)]
        )
        return
    listing = table("image", "class", "probability", right=("probability",), fold=("image",))
    for path, found in zip(files, results, strict=True):
        for place, best in enumerate(found):
            image = literal(path) if place == 0 else ""
            listing.add_row(image, literal(best.name), f"{best.probability:.1%}")
    console().print(listing)
