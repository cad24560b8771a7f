"""sit-deploy doctor"""

from __future__ import annotations

import click

from sit_deploy.cli.common import console, emit_json, examples, json_option, table


@click.command("doctor", epilog=examples("sit-deploy doctor", "sit-deploy doctor --json > report.json"))
@json_option
def command(as_json: bool) -> None:
    """Say for every engine whether it can build and run on this machine and, if not, what mends it."""
    from rich.markup import escape

    from sit_deploy.doctor import examine

    found = examine()
    if as_json:
        emit_json(found)
        return
    screen = console()
    listing = table("engine", "version", "builds", "runs", "why", "to mend it", fold=("why", "to mend it"))
    for engine in found["engines"]:
        listing.add_row(
            engine["kind"],
            engine["version"] or "—",
            *("[green]yes[/]" if engine[key] else "[yellow]no[/]" for key in ("can_build", "can_run")),
            escape(engine["reason"]),
            escape(engine["remedy"] or ""),
        )
    screen.print(listing)
    machine, gpus = found["machine"], found["gpu"]
    names = (
        ", ".join(f"{g['name']} ({g['compute_capability']})" for g in gpus["gpus"])
        or f"none: {gpus['reason']}"
    )
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB of memory" if machine["memory_bytes"] else ""
    screen.print(f"GPU: {names}")
    screen.print(
        f"CPU: {machine['cpu_model']}, {machine['usable_cpus']} of {machine['logical_cpus']} CPUs usable{memory}, "
        f"{machine['free_disk_bytes'] / 2**30:.0f} GiB free here"
    )
    screen.print("Versions: " + ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v))
