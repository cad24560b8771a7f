"""The command `sit-deploy visualize`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
from sit_deploy.token_pictures import FORMATS, ROWS

_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".webp")


class _Names(click.ParamType):
    """A,B,... → names of a few, each once, in the order given."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known, self.name = known, ",".join(known)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip().lower() for name in str(value).split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is none of {', '.join(self.known)}", param, ctx)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class _Drawing:
    """What is drawn of each image, and as what: `rows` of ROWS, `formats` of FORMATS."""

    rows: tuple[str, ...]
    formats: tuple[str, ...]

    def files(self, folder: Path, image: Path) -> list[Path]:
        return [folder / f"{image.stem}-tokens.{kind}" for kind in self.formats]


@click.command(
    "visualize",
    epilog=examples(
        "sit-deploy visualize sit_s-fp16 cat.jpg -o pictures",
        "sit-deploy visualize model.safetensors photos/ -o pictures",
        "sit-deploy visualize sit_s.pth --model sit_s cat.jpg",
        "sit-deploy visualize sit_s-fp16 cat.jpg --format svg,png --rows outlines,gathered -o paper",
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
@click.option(
    "--format",
    "formats",
    type=_Names(FORMATS),
    default="png",
    show_default=True,
    help="One or several: NAME-tokens.png, .svg or .pdf.",
)
@click.option(
    "--rows",
    type=_Names(tuple(ROWS)),
    default="outlines,colours,gathered",
    show_default=True,
    help="What is shown of the tokens: their outlines over the picture, their mean colours, of how many patches they are made, how much each patch counts.",
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
    formats: tuple[str, ...],
    rows: tuple[str, ...],
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

    Writes NAME-tokens.png for each image: what the model sees of the picture, at the picture's own resolution, and for each
    stage the outlines of the tokens over it, their mean colours, and of how many patches each token is made. The
    weights are the bundle's reference weights, in PyTorch.
    """
    from sit_deploy.data.ignored_orientation import ignored_orientation_note
    from sit_deploy.data.image_files import find_images
    from sit_deploy.files import scratch

    listed = find_images(images)
    files = listed.images
    if listed.note:
        say(console(stderr=True), f"Note: {literal(listed.note)}")
    twice = [name for name, count in Counter(path.stem for path in files).items() if count > 1]
    if twice:
        raise InputError(f"several images are called {twice[0]}; draw them into different folders with -o")
    drawing = _Drawing(rows, formats)
    targets = [target for path in files for target in drawing.files(output, path)]
    if there := [path for path in targets if path.exists() and not force]:
        raise InputError(f"{there[0]} exists; pass --force to replace it, or choose another folder with -o")
    if output.suffix.lower() in _PICTURES and not output.is_dir():
        raise InputError(
            f"-o names the folder of the pictures, which are called NAME-tokens.png, and {output} is called as a picture; pass another, as -o "
            f"{output.with_suffix('')}"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is not a folder; choose another with -o")
    with (
        progress() as report,
        scratch(output / "pictures"),
    ):  # tried before the work, as nothing else tells for certain
        report("Loading the model", 0, 0)
        network, preprocessing = _load(source, model, stages, kept, method, checkpoint, checkpoint_key)
        report("Loading the model", 1, 1)
        warn(ignored_orientation_note(files, preprocessing, "build it with"))
        drawn = _draw(network, preprocessing, files, output, drawing, report)
    if as_json:
        emit_json(drawn)
        return
    for row in drawn:
        for picture in row["pictures"]:
            say(console(), f"[green]✓[/] [bold]{literal(picture)}[/]")


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
    network: Any, preprocessing: Any, files: list[Path], output: Path, drawing: _Drawing, report: Any
) -> list[dict[str, Any]]:
    from sit_deploy.preprocessing import load_image
    from sit_deploy.token_pictures import draw, save, shown
    from sit_deploy.visualize import alike_note, merged_by, patch_shares

    rows, notes, method = [], set(), merged_by(network)
    for done, path in enumerate(files):
        report("Drawing", done, len(files))
        image = load_image(path)
        pixels = preprocessing.normalise(preprocessing.pixels(image))
        shares = [share[0] for share in patch_shares(network, pixels[None])]
        picture, targets = shown(preprocessing.seen(image)), drawing.files(output, path)
        figure = draw(picture, shares, network.grid_size, drawing.rows, f"merged by {method_words(method)}")
        for target in targets:
            save(figure, target, picture.shape[1])
        note = alike_note(shares)
        if note and not notes:
            warn(f"{path.name}: {note}")
        notes |= {note} - {None}
        rows.append(
            {
                "image": str(path),
                "picture": str(targets[0]),
                "pictures": list(map(str, targets)),
                "tokens": list(network.kept),
                "method": method,
                "stages": [_numbers(share) for share in shares],
                "note": note,
            }
        )
    report("Drawing", len(files), len(files))
    return rows


def _numbers(share: Any) -> dict[str, float | int]:
    """Return a stage's figures: of how many patches its tokens are made, how many have most of a patch, and their largest share of one."""
    import numpy as np

    from sit_deploy.visualize import gathered, owners

    count = gathered(share)
    return {
        "tokens": len(share),
        "lead": len(set(owners(share).tolist())),
        "gathered_least": round(float(count.min()), 2),
        "gathered_median": round(float(np.median(count)), 2),
        "gathered_most": round(float(count.max()), 2),
        "largest_share": round(float(share.max()), 4),
    }
