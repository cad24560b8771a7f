"""The command `sit-deploy models`."""

from __future__ import annotations

import click

from sit_deploy.cli.common import console, emit_json, examples, json_option, say, table
from sit_deploy.models.catalog import CONFIGS
from sit_deploy.models.cost import cost


@click.command("models", epilog=examples("sit-deploy models", "sit-deploy models --json"))
@json_option
def command(as_json: bool) -> None:
    """List every model: parameters, multiply-accumulates, tokens of each stage, native resolution.

    Parameters count LV-ViT's frozen auxiliary head and no reverse TSM; MACs are for one image. Top-1 is the published
    ImageNet-1k accuracy. Plain vision transformers of timm are models too, by their names there.
    """
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
