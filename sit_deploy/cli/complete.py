"""What a shell completes: the values that an option's metavar lists, and the names of models.

Everything else is click's: commands, options, files, and what `click.Choice` lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import click
from click.shell_completion import CompletionItem

_VALUES = re.compile(r"[a-z0-9-]+(\[[^]]*\])?(\|[a-z0-9-]+(\[[^]]*\])?)*")
_OF_MODELS = {"--model", "--teacher-model"}


def teach(command: click.Command) -> click.Command:
    """Let a command, or a group with its commands, complete the values of its options; returns it."""
    for part in (command, *getattr(command, "commands", {}).values()):
        for option in part.params:
            if isinstance(option, click.Option) and _OF_MODELS & set(option.opts):
                option.shell_complete = _models  # type: ignore[method-assign]
            elif isinstance(option, click.Option) and (values := listed(option.metavar)):
                option.shell_complete = partial(_beginning, values)  # type: ignore[method-assign]
    return command


def listed(metavar: str | None) -> tuple[str, ...]:
    """Return the values that a metavar lists ("fp32|fp16", "cpu|cuda[:N]"); none where it names a kind of thing ("DIR|NAME")."""
    if not metavar or not _VALUES.fullmatch(metavar):
        return ()
    return tuple(value.partition("[")[0] for value in metavar.split("|"))


def _beginning(values: Sequence[str], _ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]


def _models(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names of our own models; to list timm's, PyTorch would have to be imported."""
    from sit_deploy.models.catalog import CONFIGS

    return _beginning(tuple(CONFIGS), ctx, incomplete)
