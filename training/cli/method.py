"""The option --method of commands that fit TSMs: it tells who expects the training-free methods there where they are."""

from __future__ import annotations

from typing import Any

import click

from sit_deploy.errors import InputError
from sit_deploy.methods import METHODS, TRAINING_FREE, TSM


def _refuse_training_free(ctx: click.Context, _option: click.Parameter, method: str | None) -> Any:
    if method in TRAINING_FREE:
        raise InputError(
            f"--method {method} slims without any training, so {ctx.info_name} has nothing to do: pass it to sit-deploy build or search, with the "
            f"unslimmed checkpoint; {ctx.info_name} fits TSMs, without --method"
        )


method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    default=TSM,
    show_default=True,
    expose_value=False,
    callback=_refuse_training_free,
    help="How tokens are merged. TSMs alone are trained: transform and merge need no training, so `sit-deploy build` and `search` "
    "take them, with the unslimmed checkpoint (docs/slimming.md).",
)
