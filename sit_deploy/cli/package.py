"""The command `sit-deploy package`."""

from __future__ import annotations

from pathlib import Path

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Counts,
    Whole,
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    say,
)
from sit_deploy.cli.options import serving_options


@click.group(
    "package",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "sit-deploy package triton sit_s-fp16 -o models",
        "sit-deploy package cpp sit_s-fp32 -o classify",
        "sit-deploy package python sit_s-fp16 sit_s-int8 -o sit_s",
    ),
)
def command() -> None:
    """Package bundles for what serves them."""


@command.command(
    "triton",
    epilog=examples(
        "sit-deploy package triton sit_s-fp16 -o models",
        "sit-deploy package triton sit_s-fp32 -o models --backend python --ensemble",
        "sit-deploy package triton sit_xs-fp16 sit_s-fp16 -o models",
        "sit-deploy package triton retrained -o models --name sit_s_fp16 --version 2",
        "sit-deploy package triton sit_s-fp32 -o models --backend python --performance throughput",
    ),
)
@click.argument("bundles", type=path_type, nargs=-1, required=True)
@click.option("-o", "--output", type=path_type, required=True, metavar="REPO", help="Model repository.")
@click.option(
    "--version",
    default=1,
    show_default=True,
    type=Whole(limits.STEPS),
    metavar="N",
    help="Of the model; the newest is served.",
)
@click.option(
    "--backend",
    metavar="tensorrt|onnxruntime|python",
    help="What runs it: that of the bundle's engine, or our Python model, for any CPU.",
)
@click.option("--ensemble", is_flag=True, help="Also a model that takes image files: NAME_images.")
@serving_options
@click.option(
    "--gpus",
    type=Counts("GPU numbers", "0,1", limits.GPUS, 0),
    help="GPUs to run on.  [default: all, for TensorRT]",
)
@click.option("--force", is_flag=True, help="Replace versions that are there.")
@json_option
def triton(
    bundles: tuple[Path, ...],
    output: Path,
    name: str | None,
    version: int,
    backend: str | None,
    ensemble: bool,
    max_queue_delay: int,
    performance: str,
    instances: int | None,
    gpus: tuple[int, ...] | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a Triton model repository, or add models to one.

    Each bundle becomes a model with its configuration, labels and a README that says which container fits it.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.errors import InputError
    from sit_deploy.triton.chosen import serving_for
    from sit_deploy.triton.config import Serving
    from sit_deploy.triton.copies import Copies
    from sit_deploy.triton.readme import container_for, notes
    from sit_deploy.triton.repository import write_repository

    if name is not None and len(bundles) > 1:
        raise InputError(
            "--name is for one bundle; leave it out, and each gets the name of its model and precision"
        )
    common = Serving(
        "",
        version=version,
        max_queue_delay=max_queue_delay,
        gpus=gpus or (),
        ensemble=ensemble,
    )
    opened = [load_bundle(path) for path in bundles]
    copies = Copies(performance, instances, threads)
    packages = [(bundle, serving_for(bundle, common, name, backend, copies)) for bundle in opened]
    models = write_repository(packages, output, force)
    containers = {serving.name: container_for(bundle, serving.backend) for bundle, serving in packages}
    said = {serving.name: notes(bundle, serving) for bundle, serving in packages}
    if as_json:
        written = {"repository": str(output.absolute()), "models": models, "version": version}
        emit_json({**written, "containers": containers, "notes": said})
        return
    say(console(), f"[green]✓[/] [bold]{literal(output)}[/]: {literal(', '.join(models))}")
    for _, serving in packages:
        if image := containers[serving.name]:
            newer = " or newer" if serving.backend == "onnxruntime" else ""
            say(console(), literal(f"Container of {serving.name}: {image}{newer}"))
    for name, sentences in said.items():
        for sentence in sentences:
            say(console(), literal(f"Note on {name}: {sentence}"))
    say(console(), literal(f"Next: tritonserver --model-repository {output.absolute()}"))


@command.command("cpp", epilog=examples("sit-deploy package cpp sit_s-fp32 -o classify && classify/build.sh"))
@click.argument("bundle", type=path_type)
@click.option("-o", "--output", type=path_type, required=True, metavar="DIR", help="Folder of the project.")
@json_option
def cpp(bundle: Path, output: Path, as_json: bool) -> None:
    """Write a C++ project: the bundle, the library's sources and a program, built by its build.sh.

    It runs the bundle's graph on OpenVINO (CPU), or its engine on TensorRT (GPU).
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.cpp_project import write_project

    program = write_project(load_bundle(bundle), output)
    if as_json:
        emit_json({"project": str(output.absolute())})
        return
    say(console(), f"[green]✓[/] [bold]{literal(output)}[/]: build.sh, main.cpp, bundle, sit_deploy")
    say(
        console(),
        literal(f"Next: {output / 'build.sh'} && {output / 'build' / program} {output / 'bundle'} photo.jpg"),
    )


@command.command(
    "python",
    epilog=examples(
        "sit-deploy package python sit_s-fp16 sit_s-int8 -o sit_s",
        "scp -r sit_s gpu: && ssh gpu 'cd sit_s && pip install -r requirements.txt && python check.py'",
        "sit-deploy report sit_s-fp16 sit_s-int8 --measured check.json",
    ),
)
@click.argument("bundles", type=path_type, nargs=-1, required=True, metavar="BUNDLE...")
@click.option(
    "-o", "--output", type=path_type, required=True, metavar="DIR", help="The folder; new or empty."
)
@json_option
def python(bundles: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Write a folder that runs bundles from Python without PyTorch and without sit-deploy.

    It holds the bundles, the modules that run them, requirements.txt, and check.py: golden outputs, layers and latencies of all of
    them on the machine it is copied to, in a table and in one JSON file that `sit-deploy report --measured` takes.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.python_folder import write_folder

    names = write_folder([load_bundle(path) for path in bundles], output)
    if as_json:
        emit_json({"folder": str(output.absolute()), "bundles": names})
        return
    say(console(), f"[green]✓[/] [bold]{literal(output)}[/]: {literal(', '.join(names))}")
    say(console(), "Next, where it is to run: pip install -r requirements.txt && python check.py")
