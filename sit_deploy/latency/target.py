"""What a latency table is of: a model's widths on an engine, and on which machine it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec import Struct

import engines
from calibration.plan import DEFAULT_GROUPS
from sit_deploy import __version__
from sit_deploy.errors import InputError
from sit_deploy.latency.parts import Widths
from sit_deploy.models.config import ModelConfig
from sit_deploy.precisions import EIGHT_BITS


class What(Struct, frozen=True, kw_only=True):
    """What is timed; a table of anything else is refused.

    Attributes:
        model: architecture and widths, whatever its weights and its own schedule.
        engine: its kind.
        precision: of the graph.
        rest: beside 8 bits; "" of a float precision.
        groups: of layers in 8 bits, sorted; none of a float precision.
        batch: images a run.
        threads: of the engine; None for the runtime's own number.
    """

    model: dict[str, str | int | float | bool]
    engine: str
    precision: str
    batch: int
    threads: int | None = None
    rest: str = ""
    groups: tuple[str, ...] = ()

    def differences(self, other: What) -> list[str]:
        """Return what is not the same in another, in words: its value there and its value here."""
        mine, theirs = _flat(self), _flat(other)
        names = dict.fromkeys((*mine, *theirs))
        return [
            f"{name} {_word(theirs.get(name))}, not {_word(mine.get(name))}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


def _flat(what: What) -> dict[str, Any]:
    fields = {name: getattr(what, name) for name in what.__struct_fields__ if name != "model"}
    return {**{f"model's {name}": value for name, value in what.model.items()}, **fields}


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "not given" if value is None else str(value)


class Where(Struct, frozen=True, kw_only=True):
    """What it is timed on.

    Attributes:
        device: name of the CPU, or of the GPU of an engine for one.
        cpus: how many the process may use.
        runtime: release of the engine's.
        tool: release of sit-deploy, which writes the graphs.
        instructions: of the CPU, that matrices are multiplied by: under a hypervisor, CPUs of several generations have one name.
        limit: what keeps the runtime from some of them, as it is set in the environment.
    """

    device: str
    cpus: int
    runtime: str
    tool: str
    instructions: str = ""
    limit: str = ""

    def __str__(self) -> str:
        limit = f", {self.limit}" if self.limit else ""
        return f"{self.device}, {self.cpus} CPUs{limit}, runtime {self.runtime}, {self.tool}"


@dataclass(frozen=True)
class Target:
    """A model on an engine, whose schedules are to be timed.

    Attributes:
        config: of the model; its own schedule does not matter.
        engine: kind.
        precision: of the graph.
        batch: images a run.
        threads: of the engine; None leaves the number to the runtime.
        rest: beside 8 bits; None for what the engine likes.
        groups: of layers in 8 bits; None for the default ones.
        image_size: height and width in pixels, in place of the model's own.
        num_classes: in place of the model's own.
        dist_token: the model has a distillation token beside its class token.
    """

    config: ModelConfig
    engine: str
    precision: str = "fp32"
    batch: int = 1
    threads: int | None = None
    rest: str | None = None
    groups: tuple[str, ...] | None = None
    image_size: int | None = None
    num_classes: int | None = None
    dist_token: bool = False

    def check(self) -> None:
        """Refuse what cannot be timed, whatever the machine.

        Raises:
            InputError: a model that does not slim, or a precision or batch that the engine does not have.
            engines.EngineError: no such engine.
        """
        engine, config = self.runtime, self.config
        if config.unslimmable:
            raise InputError(
                f"{config.name} cannot be slimmed, for it has {config.unslimmable}; there is one schedule of it, and no table of many"
            )
        if self.precision not in engine.precisions:
            raise InputError(
                f"{engine.title} has no {self.precision} kernels; pass --precision {' or '.join(engine.precisions)}"
            )
        if self.batch < 1:
            raise InputError(f"batch size must be at least 1, got {self.batch}; pass --batch-size 1 or more")

    def __str__(self) -> str:
        what = self.what
        low = f" ({','.join(what.groups)} in 8 bits, rest {what.rest})" if what.groups else ""
        return f"{self.config.name} in {self.precision}{low} on {self.engine}, batch {self.batch}"

    @cached_property
    def runtime(self) -> engines.Engine:
        """The engine."""
        return engines.get(self.engine)

    @property
    def runs_here(self) -> bool:
        """Whether this machine can build the engine and run it."""
        found = self.runtime.probe()
        return found.can_build and found.can_run

    @property
    def side(self) -> int:
        """Height and width of its images in pixels."""
        return self.image_size or self.config.image_size

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.config.num_classes if self.num_classes is None else self.num_classes

    @property
    def high(self) -> str:
        """The precision of what is not in 8 bits."""
        if self.precision not in EIGHT_BITS:
            return self.precision
        return self.rest or self.runtime.precision_beside_8_bits

    @cached_property
    def widths(self) -> Widths:
        """What multiply-accumulates are counted by."""
        config, prefix = self.config, 1 + self.dist_token
        return Widths(
            config.depth,
            (self.side // config.patch_size) ** 2,
            prefix,
            config.embed_dim,
            int(config.embed_dim * config.mlp_ratio),
        )

    @property
    def what(self) -> What:
        """What a table of it is known by."""
        config, low = self.config, self.precision in EIGHT_BITS
        model: dict[str, str | int | float | bool] = {
            "architecture": (config.base or f"lvvit {config.stem}").partition(".")[0],
            "width": config.embed_dim,
            "heads": config.num_heads,
            "depth": config.depth,
            "mlp_ratio": config.mlp_ratio,
            "patch_size": config.patch_size,
            "image_size": self.side,
            "classes": self.classes,
            "dist_token": self.dist_token,
        }
        return What(
            model=model,
            engine=self.engine,
            precision=self.precision,
            batch=self.batch,
            threads=self.threads,
            rest=self.high if low else "",
            groups=tuple(sorted(DEFAULT_GROUPS if self.groups is None else self.groups)) if low else (),
        )

    @property
    def here(self) -> Where:
        """The machine that this runs on."""
        from engines import cpu
        from engines.gpus import find_gpus
        from engines.timing import machine

        host, runtime = machine(), self.runtime
        gpus = () if runtime.on_cpu else find_gpus().gpus
        return Where(
            device=gpus[0].name if gpus else host.cpu_model,
            cpus=host.usable_cpus,
            runtime=str(runtime.probe().version),
            tool=f"sit-deploy {__version__}",
            instructions=" ".join(cpu.instructions()),
            limit=cpu.onednn_limit() or "",
        )
