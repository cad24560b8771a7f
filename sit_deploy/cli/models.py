"""The command `sit-deploy models`."""

from __future__ import annotations

from typing import Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import Whole, console, emit_json, examples, json_option, literal, say, table
from sit_deploy.cli.options import model_options
from sit_deploy.errors import InputError
from sit_deploy.methods import method_words
from sit_deploy.models.catalog import CONFIGS, get_config
from sit_deploy.models.config import check_class_count, check_image_sides, token_schedule
from sit_deploy.models.cost import cost


@click.command(
    "models",
    epilog=examples(
        "sit-deploy models",
        "sit-deploy models --json",
        "sit-deploy models --model lvvit_s --stages 9,3,2,2 --keeping-ratio 0.6",
        "sit-deploy models --model deit_small_patch16_224 --stages 6,2,2,2 --kept 196,130,70,30",
    ),
)
@model_options(required=False)
@click.option(
    "--image-size", type=Whole(limits.PIXELS), metavar="N", help="Of --model: pixels of the square input."
)
@click.option(
    "--num-classes", type=Whole(limits.CLASSES), metavar="N", help="Of --model: classes of the head."
)
@json_option
def command(model: str | None, as_json: bool, **options: Any) -> None:
    """List every model, or what one costs that slims as you say: parameters, multiply-accumulates, tokens of each stage.

    Parameters count LV-ViT's frozen auxiliary head and no reverse TSM; MACs are for one image. Top-1 is the published
    ImageNet-1k accuracy. Plain vision transformers of timm are models too, by their names there; of those, MACs are of
    products and convolutions alone. With --model nothing is trained or fetched: what a schedule saves shows before.
    """
    if model is not None:
        _show_one(model, as_json, **options)
        return
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(f"--{given[0].replace('_', '-')} is of one model; pass --model NAME with it")
    _show_all(as_json)


def _show_one(
    model: str,
    as_json: bool,
    stages: tuple[int, ...] | None,
    keeping_ratio: float | None,
    kept: tuple[int, ...] | None,
    image_size: int | None,
    num_classes: int | None,
) -> None:
    """Show a model and the unslimmed one beside it."""
    config = get_config(model, stages, keeping_ratio, kept)
    size = config.image_size if image_size is None else image_size
    check_image_sides((size, size), config.patch_size, own=config.image_size)
    if num_classes is not None:
        check_class_count(num_classes)
    classes = config.num_classes if num_classes is None else num_classes
    config = config.at(size)
    tokens = config.tokens(size)
    token_schedule(tokens[0], config.stage_blocks, config.keeping_ratio, config.kept)
    from sit_deploy.models.comparison import Comparison

    compared = Comparison.of(config, size, classes)
    row: dict[str, Any] = {
        **{
            name: getattr(compared.model, name)
            for name in ("name", "parameters", "macs", "image_size", "num_classes")
        },
        "stage_blocks": list(config.stage_blocks),
        "keeping_ratio": None if config.kept else config.keeping_ratio,
        "tokens": list(tokens),
        "method": config.method if len(tokens) > 1 else None,
        **compared.to_dict(),
    }
    if as_json:
        emit_json(row)
        return
    right = ("params M", "GMACs", "pixels", "classes")
    listing = table("model", "params M", "GMACs", "pixels", "classes", "blocks", "tokens", right=right)
    _add_row(listing, row)
    screen = console()
    if unslimmed := row["unslimmed"]:
        _add_row(listing, {**row, **unslimmed, "stage_blocks": [config.depth], "tokens": tokens[:1]})
    screen.print(listing)
    if saving := compared.saving():
        way = f"Slimmed by {method_words(config.method)}: {saving}"
        say(screen, f"{literal(way)}. How much faster that is, sit-deploy build and bench measure.")


def _add_row(listing: Any, row: dict[str, Any]) -> None:
    figures = (f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}")
    counts = (",".join(map(str, row[name])) for name in ("stage_blocks", "tokens"))
    listing.add_row(literal(row["name"]), *figures, str(row["image_size"]), str(row["num_classes"]), *counts)


def _show_all(as_json: bool) -> None:
    rows = []
    for config in CONFIGS.values():
        figures = cost(config)
        rows.append(
            {
                "name": config.name,
                "aliases": list(config.aliases),
                "parameters": figures.parameters,
                "macs": figures.macs,
                "image_size": config.image_size,
                "stage_blocks": list(config.stage_blocks),
                "tokens": list(config.tokens()),
                "teacher": config.teacher,
                "top1": config.top1,
            }
        )
    if as_json:
        emit_json(rows)
        return
    right = ("params M", "GMACs", "pixels", "top-1 %")
    listing = table("model", "params M", "GMACs", "pixels", "blocks", "tokens", "top-1 %", right=right)
    for row in rows:
        listing.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.2f}",
            str(row["image_size"]),
            ",".join(map(str, row["stage_blocks"])),
            ",".join(map(str, row["tokens"])),
            f"{row['top1']:.1f}" if row["top1"] else "",
        )
    screen = console()
    screen.print(listing)
    say(screen, "Any plain vision transformer of timm will do: --model NAME --stages A,B,C,D")
    aliases = ", ".join(f"{alias} = {row['name']}" for row in rows for alias in row["aliases"])
    say(screen, f"Other names for them: {aliases}")
