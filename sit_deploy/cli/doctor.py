"""The command `sit-deploy doctor`."""

from __future__ import annotations

import click

from engines.install import pip_install
from sit_deploy.cli.common import console, emit_json, examples, json_option, literal, say, table


@click.command("doctor", epilog=examples("sit-deploy doctor", "sit-deploy doctor --json > report.json"))
@json_option
def command(as_json: bool) -> None:
    """Say for every engine whether it can build and run on this machine and, if not, what mends it."""
    from sit_deploy.doctor import examine

    examined = examine()
    if as_json:
        emit_json(examined)
        return
    screen = console()
    listing = table("engine", "version", "builds here", "runs here")
    for engine in examined["engines"]:
        can = ("[green]yes[/]" if engine[key] else "[yellow]no[/]" for key in ("can_build", "can_run"))
        listing.add_row(engine["kind"], engine["version"] or "—", *can)
    screen.print(listing)
    for engine in examined["engines"]:
        remedy = f"; {engine['remedy']}" if engine["remedy"] else ""
        say(screen, f"{engine['kind']}: {literal(engine['reason'] + remedy)}")
    for engine in examined["engines"]:
        if engine["note"] and engine["can_build"]:
            say(screen, f"{engine['kind']}: {literal(engine['note'])}")
    for kind, lacks in examined["kernels"].items():
        has = ", ".join(precision for precision, reason in lacks.items() if reason is None)
        say(screen, f"{kind}: multiplies {has} on this CPU")
        for reason in filter(None, lacks.values()):
            say(screen, f"{kind}: {literal(reason)}")
    machine, gpus = examined["machine"], examined["gpu"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB of memory" if machine["memory_bytes"] else ""
    for gpu in gpus["gpus"]:
        served = f"--engine {gpu['engine']}" if gpu["engine"] else "no engine that runs here"
        say(screen, f"GPU: {literal(gpu['name'])} ({gpu['compute_capability']}), served by {served}")
    if not gpus["gpus"]:
        say(screen, f"GPU: none: {literal(gpus['reason'])}")
    say(
        screen,
        f"CPU: {literal(machine['cpu_model'])}, {machine['usable_cpus']} of {machine['logical_cpus']} CPUs usable"
        f"{memory}, {machine['free_disk_bytes'] / 2**30:.0f} GiB of disk free here",
    )
    if machine["instructions"]:
        limit = machine["instructions_limit"]
        kept = f"; {limit} is set, and OpenVINO keeps to it" if limit else ""
        say(
            screen,
            f"Instructions for products: {literal(', '.join(machine['instructions']))}{literal(kept)}",
        )
    say(screen, "Versions: " + ", ".join(f"{k} {v}" for k, v in examined["versions"].items() if v))
    for package in examined["newer_than_tested"]:
        version, known = examined["versions"][package], examined["tested"][package]
        say(
            screen,
            f"{package} {literal(version)} is newer than {known}, the newest that the tests passed with; if something is off with it, "
            f"run {literal(pip_install(f'{package}=={known}'))}",
        )
