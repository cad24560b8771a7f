"""A Triton server on this machine: found, started with a repository, stopped without leaving anything."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sit_deploy.errors import Error, InputError

STUB = "triton_python_backend_stub"
_STOP_SECONDS = 15
# The server puts a form twice on a thread's stack (a body without a Content-Type is one to it, and curl sends those), and JSON
# by its depth; with the usual 8 MiB a photograph of 3 MB in base64 is the end of it. What is not touched takes no memory.
_STACK_BYTES = 1 << 30
_SILENT = "it said nothing"
_BENIGN = ("CudaDriverHelper", "CUDA driver version is insufficient")
_TRACEBACK = r"\n\nAt:"  # of a Python model's error, its line breaks spelled out
_ERROR = re.compile(r"E\d{4} \S+ \d+ \S+\] (.*)")  # month and day, time, thread, place


class ServerError(Error):
    """The server did not start, or stopped by itself; the message has its last words."""


@dataclass(frozen=True)
class Installation:
    """A server that is there.

    Attributes:
        executable: tritonserver.
        backends: folder of backends, None for the server's own.
        environment: what its processes need besides.
    """

    executable: Path
    backends: Path | None
    environment: dict[str, str]


def default_folder() -> Path:
    """Where a server is installed: below SIT_DEPLOY_CACHE, else below the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sit-deploy"
    return Path(os.environ.get("SIT_DEPLOY_CACHE") or home) / "triton"


def is_installed(folder: Path) -> bool:
    """Whether a folder holds an installation, which need not be whole."""
    return (folder / "backends").is_dir() and (folder / "venv").is_dir()


def find_server(folder: Path | None = None) -> Installation:
    """Return the server installed in `folder` or, where none is named, in the default folder or on the PATH.

    Raises:
        InputError: there is none, or a library that it needs is missing.
    """
    where = folder or default_folder()
    if is_installed(where):
        installation = _installed(where)
        _check_libraries(installation)
        return installation
    own = shutil.which("tritonserver", path=str(where / "bin")) if folder else shutil.which("tritonserver")
    if own:  # as NVIDIA's container has it, in /opt/tritonserver
        return Installation(Path(own), None, {})
    free = folder is not None and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))
    into = f" --server-folder {shlex.quote(str(folder))}" if free else ""
    raise InputError(
        f"no Triton server in {where}{'' if folder else ' or on the PATH'}; run `sit-deploy serve --install{into}` (0.4 GB), "
        "name another --server-folder, or package the bundle and serve it in NVIDIA's container"
    )


def packages_of(folder: Path) -> Path:
    """Return where the environment of an installation has its packages."""
    found = next((folder / "venv/lib").glob("python3.*"), folder / "venv/lib/python3")
    return found / "site-packages"


def _installed(folder: Path) -> Installation:
    """Refuse an installation of which a part is missing.

    Raises:
        InputError: names it.
    """
    packages = packages_of(folder)
    real = (folder / "venv/bin/python").resolve()  # an environment's libpython is its base's
    executable = packages / "pytriton/tritonserver/bin/tritonserver"
    for part in (real, executable, folder / "backends/python" / STUB):
        if not part.is_file():
            raise InputError(
                f"the Triton server in {folder} lacks {part}; remove that folder and run `sit-deploy serve --install "
                f"--server-folder {shlex.quote(str(folder))}`"
            )
    libraries = [packages / "nvidia_pytriton.libs", real.parents[1] / "lib"]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join(
            map(str, [*libraries, *_split(os.environ.get("LD_LIBRARY_PATH"))])
        ),
        "PATH": os.pathsep.join([str(folder / "venv/bin"), os.environ.get("PATH", "")]),
        "VIRTUAL_ENV": str(folder / "venv"),
    }
    return Installation(executable, folder / "backends", environment)


def _split(value: str | None) -> list[str]:
    return [part for part in (value or "").split(os.pathsep) if part]


def _check_libraries(installation: Installation) -> None:
    """Refuse a server or backend with a library missing: the server would not say so, and wait for the backend for ever."""
    ldd = shutil.which("ldd")
    if ldd is None:
        return
    files = (
        [str(installation.executable), str(installation.backends / "python" / STUB)]
        if installation.backends
        else []
    )
    listing = subprocess.run(
        [ldd, *files], capture_output=True, text=True, env={**os.environ, **installation.environment}
    )
    missing = sorted({line.split()[0] for line in listing.stdout.splitlines() if "not found" in line})
    if not missing:
        return
    python = [name for name in missing if (name.startswith("libpython"))]
    package = re.match(r"libpython\d+\.\d+", python[0]) if python else None
    how = f" (on Debian or Ubuntu: apt-get install {package[0]})" if package else ""
    raise InputError(
        f"Triton lacks {', '.join(missing)}; install {'it' if len(missing) == 1 else 'them'}{how}, or put the folder that has "
        f"{'it' if len(missing) == 1 else 'them'} into LD_LIBRARY_PATH"
    )


@dataclass(frozen=True)
class Ports:
    """Where a server listens.

    Attributes:
        host: address of the interface; by default nobody outside this machine is answered.
        http_host: for HTTP, where it is another.
    """

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"
    http_host: str | None = None

    def check(self) -> None:
        """Refuse ports that are taken, before a server says so in many lines.

        Raises:
            InputError: one of them is taken, or two are the same.
        """
        named = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}
        if len(set(named.values())) < len(named):
            raise InputError(f"the ports must differ, got {', '.join(map(str, named.values()))}")
        _check_host(self.host)
        for option, port in named.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise InputError(
                        f"port {port} of {self.host} cannot be used ({error.strerror or error}); pass another {option}"
                    ) from None

    def behind_a_gate(self) -> Ports:
        """Return ports of which that for HTTP is a free one that this machine alone reaches."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return replace(self, http=probe.getsockname()[1], http_host="127.0.0.1")

    @property
    def reached_at(self) -> str:
        """The host by which this machine reaches the server."""
        host = self.http_host or self.host
        return "localhost" if host in ("127.0.0.1", "0.0.0.0") else host


def _check_host(host: str) -> None:
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError) as error:  # of a name that means nothing, too
            raise InputError(
                f"--host {host!r} is no IPv4 address of this machine ({getattr(error, 'strerror', None) or error}); pass "
                "127.0.0.1, 0.0.0.0 for every one it has, or one of those"
            ) from None


@contextlib.contextmanager
def running(
    installation: Installation,
    repository: Path,
    log: Path,
    ports: Ports,
    arguments: Sequence[str] = (),
    seconds: float = 120,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it is ready, with every model loaded, when the block begins.

    Args:
        installation: the server.
        repository: folder of its models.
        log: file that gets what it prints.
        ports: that it answers at.
        arguments: of tritonserver, besides those given here.
        seconds: to start in.

    Raises:
        InputError: a port is taken.
        ServerError: it did not start, a model of it did not load, or it took too long.
    """
    ports.check()
    command = [
        str(installation.executable),
        f"--model-repository={repository.absolute()}",
        f"--http-address={ports.http_host or ports.host}",
        *(f"--{kind}-address={ports.host}" for kind in ("grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--disable-auto-complete-config",  # our configurations say all
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        *([f"--backend-directory={installation.backends}"] if installation.backends else []),
        *arguments,
    ]
    with log.open("wb") as output:
        with _deep_stacks():
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **installation.environment},
                start_new_session=True,  # Ctrl-C is ours to pass on, and the backend's processes go with the server
                preexec_fn=_end_with_us(),
            )
        try:
            _wait_ready(process, ports, log, seconds)
            yield process
        finally:
            _stop(process)


def _end_with_us() -> Callable[[], object] | None:
    """Return what a child has to call so that it is asked to end when this process is killed; None where there is no such thing."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    die_too = 1  # PR_SET_PDEATHSIG
    return prctl and (lambda: prctl(die_too, int(signal.SIGINT)))


@contextlib.contextmanager
def _deep_stacks() -> Iterator[None]:
    """Let programs started in the block have stacks of `_STACK_BYTES` for their threads, or as much as is allowed.

    Unlimited is less: glibc then gives a thread 2 MiB.
    """
    import resource  # which not every system has

    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def _wait_ready(process: subprocess.Popen[bytes], ports: Ports, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"Triton did not start: {why_ended(process.returncode, log)}")
        try:
            # no proxy of the environment is asked for what is on this machine
            with opener.open(f"http://{ports.reached_at}:{ports.http}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"Triton was not ready after {seconds:.0f} s: {last_words(log)}")


def why_ended(status: int, log: Path) -> str:
    """Return why a server ended: by a signal, or what it says itself.

    Args:
        status: of the process, as `subprocess` has it: a signal's number below 0.
        log: file of what it printed.
    """
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            who = " (somebody's kill, or the system's for want of memory)" if name == "SIGKILL" else ""
            return f"it was killed by {name}{who}"
    last = last_words(log)
    return last if status == 0 or last != _SILENT else f"{last}, and ended with status {status}"


def last_words(log: Path) -> str:
    """Return what a server complained of last: the first error that it logged of a model, else of itself, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # without a GPU it always says so, as errors
    lines = [line for line in lines if not any(benign in line for benign in _BENIGN)]
    errors = [found[1].strip('"') for line in lines if (found := _ERROR.match(line))]
    of_models = [error for error in errors if "failed to load" in error or "Poll failed" in error]
    return (of_models or errors or lines[-1:] or [_SILENT])[0].partition(_TRACEBACK)[0]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and after a while end it, with all that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
