"""What every runtime is here: an `Engine` that says what it is, and builds; a `Runner` (`engines.runner`) runs what it built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engines.errors import EngineBuildError, EngineError, EngineLoadError

if TYPE_CHECKING:
    import numpy as np

    from engines.build_options import BuildOptions
    from engines.graph_file import GraphNodes
    from engines.runner import Runner

Progress = Callable[[str, int, int], None]

ATTENTION_OPSET = 23  # of ONNX, the first with Attention


@dataclass(frozen=True)
class EngineInfo:
    """What was built.

    Attributes:
        target: where it runs.
        details: what else is known; JSON values only.
        kernels: of the engine, in order, where its builder tells (`engines.kernels.Kernel.to_dict`).
    """

    kind: str
    version: str
    filename: str
    size_bytes: int
    build_seconds: float
    target: str
    details: dict[str, Any] = field(default_factory=dict)
    kernels: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def origin(self) -> EngineOrigin:
        """What `Engine.load` wants to know of it."""
        return EngineOrigin(self.version, self.target, self.details)


@dataclass(frozen=True)
class EngineOrigin:
    """What an engine says of its own making, where that is known (a bundle's manifest): stale ones are refused by it.

    Attributes:
        version, target, details: as in the `EngineInfo` of its build.
        rebuild: the command that builds it again.
    """

    version: str
    target: str
    details: dict[str, Any] = field(default_factory=dict)
    rebuild: str = "sit-deploy build"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The targets ("sm80", ...) without the name of the GPU that the engine was tuned on."""
        return tuple(self.target.partition(" (")[0].split(","))

    @property
    def gpu(self) -> str | None:
        """The GPU that the engine was tuned on, None where there was none."""
        return self.target.partition(" (")[2].removesuffix(")") or None


@dataclass(frozen=True)
class Support:
    """What a runtime can do on this machine; `remedy` says how to get what is missing.

    Attributes:
        foreign_gpu: GPUs are here, and its engines run on none of them. It is not chosen then unless it is asked for.
    """

    kind: str
    installed: bool
    version: str | None
    can_build: bool
    can_run: bool
    reason: str
    remedy: str | None = None
    foreign_gpu: bool = False


@dataclass(frozen=True)
class LayerTime:
    """A layer as the engine runs it.

    Attributes:
        layer: its name. operator: its kind. Both in the runtime's words.
        ms: milliseconds a run; None where it was not timed.
        types: of its inputs and outputs, by numpy's names; empty where the runtime does not tell.
        tactic: the kernel that was chosen, where the runtime tells.
        nodes: the ONNX nodes in it, where the runtime tells.
    """

    layer: str
    operator: str
    ms: float | None
    types: tuple[str, ...] = ()
    tactic: str = ""
    nodes: tuple[str, ...] = ()


class Engine(ABC):
    """A runtime. What it says of itself are attributes of the class, there whether or not the runtime is installed.

    Attributes:
        kind: its name on the command line and in manifests.
        title: its name for people.
        package: what pip calls it.
        filename: what its engine is called in a bundle.
        on_cpu: what it builds runs on a CPU; else it needs an NVIDIA GPU to run.
        builds_anywhere: it builds without the hardware that its engines run on.
        precisions: that it has kernels for.
        precision_beside_8_bits: of what an int8 or fp8 graph holds beside, if nothing else is asked for.
        rests: what an int8 or fp8 graph may hold beside.
        int8_convolutions: its convolutions are faster in INT8 too.
        norms_cost_a_scaling: it scales and shifts what a LayerNorm gives in a kernel of its own.
        one_scale_where_split: it multiplies in 8 bits what is split afterwards only if the weight has one scale.
        attention_since: a release that is known to read ONNX's Attention, by its name for people; "" where all do.
        attention_in_one_kernel: it makes one kernel of attention, in 8 bits only where there are enough tokens.
        tells_kernels: which kernels an engine has, and what they compute in, is told when it is built or run.
        reports_types: `layer_times` has the types that layers run in, so they can be held to those of the graph.
        reports_tensors: `tensor_outputs` gives every tensor of a graph, to find the first that drifts.
        several_at_once: `load_for_throughput` opens it for several calls at a time.
        caveat: what people should know before they choose it, as part of a sentence.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str]
    filename: ClassVar[str]
    on_cpu: ClassVar[bool]
    builds_anywhere: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]]
    precision_beside_8_bits: ClassVar[str] = "fp32"
    rests: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    int8_convolutions: ClassVar[bool] = False
    norms_cost_a_scaling: ClassVar[bool] = False
    one_scale_where_split: ClassVar[bool] = False
    attention_since: ClassVar[str] = ""
    attention_in_one_kernel: ClassVar[bool] = False
    tells_kernels: ClassVar[bool] = False
    reports_types: ClassVar[bool] = False
    reports_tensors: ClassVar[bool] = False
    several_at_once: ClassVar[bool] = False
    caveat: ClassVar[str | None] = None

    @abstractmethod
    def probe(self) -> Support:
        """Say what this runtime can do here. Never raises: a broken install is an answer."""

    @abstractmethod
    def check(self, options: BuildOptions) -> None:
        """Refuse options that `build` would refuse, without a graph: callers ask before long work.

        Raises:
            EngineNotInstalledError, NoGpuError, EngineBuildError: as `build` does.
        """

    def lacks(self, precision: str) -> str | None:
        """Say why this machine has no kernels for one of `precisions`, as part of a sentence; None where it has, or cannot be asked.

        Raises:
            EngineNotInstalledError: the runtime is missing.
        """
        return None

    def check_opset(self, opset: int) -> None:
        """Refuse an operator set that the installed release does not read: callers ask before long work.

        Raises:
            EngineNotInstalledError: the runtime is missing.
            EngineBuildError: it does not read it.
        """
        if opset >= ATTENTION_OPSET and not self._reads_attention():
            raise EngineBuildError(
                f"{self.title} {self.probe().version} does not read opset {opset}, which has one operator for attention "
                f"({self.attention_since} does); leave --opset out"
            )

    def _reads_attention(self) -> bool:
        """Whether the installed release reads the Attention of ONNX's opset 23."""
        return True

    @abstractmethod
    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        """Build `engine_path` from `onnx_path`; the file appears whole or not at all.

        Raises:
            EngineNotInstalledError: the runtime is missing.
            NoGpuError: the build needs a GPU.
            EngineBuildError: the graph or the options do not suit the runtime.
        """

    @abstractmethod
    def load(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> Runner:
        """Open a built engine for inference.

        Args:
            engine_path: the engine, as `build` wrote it.
            threads: CPU threads; None leaves the choice to the runtime.
            device: "cpu", "cuda" or "cuda:N"; None is what the runtime is for: the CPU for ONNX Runtime, the first GPU for the
                TensorRT family.
            origin: how the engine was built, to refuse one that cannot run here before it is opened.

        Raises:
            EngineNotInstalledError: the runtime is missing.
            NoGpuError: running needs a GPU.
            EngineLoadError: the file is missing or damaged, or the device is not to be had.
        """

    def load_for_throughput(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        streams: int | None = None,
        origin: EngineOrigin | None = None,
    ) -> Runner:
        """Open a built engine for as many images a second as there can be: `Runner.at_once` calls run at a time.

        Args:
            engine_path: the engine, as `build` wrote it.
            threads: CPU threads of all calls together; None leaves the choice to the runtime.
            streams: groups of threads, each with a call of its own; None leaves the choice to the runtime.
            origin: as for `load`.

        Raises:
            EngineLoadError: the engine has no such mode, or more streams than threads; and as for `load`.
        """
        raise EngineLoadError(
            f"{self.title} has no throughput mode here: a call takes the whole device; leave --performance throughput out, "
            "and give larger batches"
        )

    def serves(self, capability: str) -> bool:
        """Whether what is built for it runs on a GPU of that compute capability ("sm90"), as far as the installed runtime tells."""
        return False

    def attends_unscaled(self, precision: str, targets: tuple[str, ...]) -> bool:
        """Whether it is best served by nothing between a product in 8 bits that is split and the attention of its parts.

        Args:
            precision: "int8" or "fp8".
            targets: that it builds for, as `targets_with` gives them.
        """
        return False

    def targets_with(self, precision: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return the compute capabilities to build an engine of that precision for, where those were asked for.

        Raises:
            EngineBuildError: one of them has no such precision.
        """
        return asked

    def layer_times(
        self,
        engine_path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        runs: int = 20,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> tuple[LayerTime, ...]:
        """Open a built engine with the runtime's profiler on, and return its layers in the order that they run.

        Args:
            engine_path: the built engine.
            feeds: an array for each input.
            runs: that are timed.
            threads: CPU threads; None leaves the choice to the runtime.
            device: as for `load`.
            origin: as for `load`.

        Raises:
            EngineError: the runtime does not tell, or the engine does not run.
        """
        raise EngineError(f"{self.title} does not tell the times of its layers")

    def inspect_kernels(
        self,
        engine_path: Path,
        graph: Path | GraphNodes,
        feeds: Mapping[str, np.ndarray],
        *,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
        """Run a built engine once, and ask it for its kernels.

        Args:
            engine_path: the built engine.
            graph: that it was built from: its file, or what was read of it before.
            feeds: an array for each input.
            device: as for `load`.
            origin: as for `load`.

        Returns:
            `EngineInfo.kernels`, and what they say of the engine, for `EngineInfo.details`.

        Raises:
            EngineError: the runtime does not tell, or the engine does not run.
        """
        raise EngineError(f"{self.title} does not tell its kernels")

    def tensor_outputs(
        self, onnx_path: Path, feeds: Mapping[str, np.ndarray], tensors: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return tensors of a graph as this runtime computes them, by name.

        Args:
            onnx_path: the graph.
            feeds: an array for each input.
            tensors: the names of those to return; all by default.

        Raises:
            EngineNotInstalledError, NoGpuError: what runs it is not here.
            EngineError: the runtime does not tell, or does not run the graph.
        """
        raise EngineError(f"{self.title} does not give the tensors inside a graph")
