"""The command `sit-deploy serve`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sit_deploy.cli.common import (
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
)
from sit_deploy.cli.options import serving_options
from sit_deploy.outputs import LOGITS

_WATCH_SECONDS = 0.5
_PORT = click.IntRange(1, 65535)


@click.command(
    "serve",
    epilog=examples(
        "sit-deploy serve --install",
        "sit-deploy serve sit_s-fp32",
        "sit-deploy serve sit_s-fp32 --performance throughput",
        "sit-deploy serve sit_s-fp32 --http-port 9000 --grpc-port 9001 --metrics-port 9002",
    ),
)
@click.argument("bundle", type=path_type, required=False)
@click.option("--install", is_flag=True, help="Install the server first, where it is not (0.4 GB).")
@click.option(
    "--server-folder",
    type=path_type,
    metavar="DIR",
    help="Where the server is installed.  [default: ~/.cache/sit-deploy/triton]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Interface to listen on; 0.0.0.0 answers other machines too.",
)
@click.option("--http-port", default=8000, show_default=True, type=_PORT, metavar="P", help="For HTTP.")
@click.option("--grpc-port", default=8001, show_default=True, type=_PORT, metavar="P", help="For gRPC.")
@click.option("--metrics-port", default=8002, show_default=True, type=_PORT, metavar="P", help="For metrics.")
@serving_options
@quiet_option
@json_option
def command(
    bundle: Path | None,
    install: bool,
    server_folder: Path | None,
    name: str | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    as_json: bool,
    max_queue_delay: int,
    **copies: Any,
) -> None:
    """Serve a bundle with Triton on this machine's CPU, until Ctrl-C.

    Its Python backend runs the bundle's engine on OpenVINO, where it is one of that, else its graph on ONNX Runtime, and takes
    tensors as well as image files. For a GPU, package the bundle (`sit-deploy package triton`) and serve it in NVIDIA's container.
    """
    import engines
    from engines.files import partial_folder
    from sit_deploy.bundle import load_bundle
    from sit_deploy.performance import Threads
    from sit_deploy.triton import gate, openvino, server
    from sit_deploy.triton.chosen import serving_for
    from sit_deploy.triton.config import Serving, python_runtime
    from sit_deploy.triton.copies import Copies
    from sit_deploy.triton.install import install_server
    from sit_deploy.triton.readme import notes
    from sit_deploy.triton.repository import write_repository

    opened = None if bundle is None else load_bundle(bundle)
    if install:
        folder = server_folder or server.default_folder()
        with progress() as report:
            install_server(folder, report, openvino.requirement(opened))
        server.find_server(folder)
        if bundle is None:
            say(console(), f"[green]✓[/] Triton is installed in [bold]{literal(folder)}[/]")
            return
    if opened is None:
        raise click.UsageError("Missing argument 'BUNDLE'.")
    common = Serving("", ensemble=True, max_queue_delay=max_queue_delay)
    serving = serving_for(opened, common, name, "python", Copies(**copies))
    ports = server.Ports(http_port, grpc_port, metrics_port, host)
    ports.check()
    installation = server.find_server(server_folder)
    openvino.require(installation, opened)
    with partial_folder(
        Path(tempfile.gettempdir()) / "sit-deploy-serve"
    ) as work:  # sweeps those of runs that were killed
        work.chmod(0o700)
        repository, log = work / "models", work / "triton.log"
        with progress() as report:
            report("Writing the model repository", 0, 0)
            write_repository([(opened, serving)], repository)
            report("Writing the model repository", 1, 1)
        try:
            inner = ports.behind_a_gate()
            with (
                server.running(installation, repository, log, inner) as process,
                gate.guarding(ports.host, ports.http, ("127.0.0.1", inner.http)),
            ):
                crowd = Copies.crowd(serving.instances, serving.threads)
                note = crowd or Threads.of(opened, serving.instances * serving.threads or None).note
                said = (*([f"{note}."] if note else ()), *notes(opened, serving))
                runtime = engines.get(python_runtime(opened)).title
                _announce(serving, opened.outputs[0].name, runtime, said, ports, log, as_json)
                while process.poll() is None:
                    _sleep()
                raise server.ServerError(f"Triton stopped: {server.why_ended(process.returncode, log)}")
        except KeyboardInterrupt:  # the way to end it
            say(console(stderr=True), "Stopped.")


def _sleep() -> None:
    import time

    time.sleep(_WATCH_SECONDS)


def curl_line(name: str, server: str, output: str = LOGITS) -> str:
    """Return a command line that classifies photo.jpg with the ensemble `name` of a server at HOST:PORT, or asks for another output.

    Its Content-Type matters: without one, curl says that it sends a form, and Triton puts a form on its stack.
    """
    before = '{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","data":["'
    asked = ',"parameters":{"classification":5}' if output == LOGITS else ""
    after = f'"]}}],"outputs":[{{"name":"{output}"{asked}}}]}}'
    # printf and the pipe are the shell's own: an image is too long for an argument of a program
    return (
        f"(printf '{before}'; base64 < 'photo.jpg' | tr -d '\\n'; printf '{after}') | "
        f"curl -sS -H 'Content-Type: application/json' --data-binary @- http://{server}/v2/models/{name}/infer"
    )


def _announce(
    serving: Any, output: str, runtime: str, notes: Sequence[str], ports: Any, log: Path, as_json: bool
) -> None:
    line = curl_line(serving.images, f"{ports.reached_at}:{ports.http}", output)
    if as_json:
        emit_json(
            {
                "models": [serving.name, serving.decoder, serving.images],
                "instances": serving.instances,
                "threads": serving.threads,
                "http": ports.http,
                "grpc": ports.grpc,
                "metrics": ports.metrics,
                "log": str(log),
                "curl": line,
            }
        )
        return
    screen = console()
    say(
        screen,
        f"[green]✓[/] [bold]{literal(serving.name)}[/] (tensors) and [bold]{literal(serving.images)}[/] (image files) on "
        f"{ports.host}: HTTP {ports.http}, gRPC {ports.grpc}, metrics {ports.metrics}. Ctrl-C stops.",
    )
    several = serving.instances > 1
    copies = f"{serving.instances} copies at a time" if several else "1 copy"
    shared = "the CPUs shared out" if several else f"{runtime}'s own number of threads"
    threads = f"{serving.threads} threads" if serving.threads > 1 else "1 thread"
    say(screen, f"{copies}, on {f'{threads} each' if serving.threads else shared}.")
    for note in notes:
        say(screen, f"Note: {literal(note)}")
    say(
        screen, "Classify a picture of yours:" if output == LOGITS else f"The {output} of a picture of yours:"
    )
    click.echo(line)
