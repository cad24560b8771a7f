"""Measuring on a machine that is made up, keeping it, going on with it, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import Support
from engines.registry import engine_class
from sit_deploy.errors import GateError, InputError
from sit_deploy.latency import LatencyTable, Schedule, Target, table
from sit_deploy.latency.bench import Timed
from sit_deploy.latency.table_file import Probe
from sit_deploy.models.catalog import get_config
from tests.sit_deploy.latency.test_parts import cost, others

TARGET = Target(get_config("lvvit_s"), "onnxruntime")


@dataclass
class Machine:
    """Stands for the engine: parts cost what `cost` says, a timing takes ten seconds of its clock."""

    ms: float = 2.0
    doubt: str | None = None
    now: float = 0.0
    timed: list[Schedule] = field(default_factory=list)
    fails_after: int = 1000

    def __call__(self, target: Target, reference: Schedule, folder: Path) -> Machine:
        self.reference = reference
        return self

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def time(self, schedules: Sequence[Schedule]) -> list[Timed]:
        if len(self.timed) >= self.fails_after:
            raise KeyboardInterrupt
        self.now += 10 * len(schedules)
        self.timed += schedules
        against = cost(self.reference)
        return [Timed(cost(one) / against, 0.001, self.ms * against, self.doubt) for one in schedules]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(table, "clock", lambda: made.now)
    return made


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime does not run here."""
    answer = Support("onnxruntime", True, "1", True, False, "it needs a GPU")
    monkeypatch.setattr(engine_class("onnxruntime"), "probe", lambda self: answer)


def test_latency_is_told_of_schedules_that_were_not_timed(machine: Machine, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = LatencyTable.measure(
        TARGET,
        path=tmp_path / "t.json",
        progress=lambda *step: steps.append(step),
        bench=machine,
        seconds=1e9,
    )
    assert len(set(machine.timed)) == len(machine.timed) == len(found.probes) == table.PROBES
    for one in others(40, 4):
        said = found.predict(one.stage_blocks, one.kept)
        assert said.ms == pytest.approx(2 * cost(one), rel=0.01)
        assert abs(said.ms - 2 * cost(one)) < said.error < 0.1 * said.ms
        assert sum(part.ms for part in said.parts) == pytest.approx(said.ms)
    assert steps[0][1:] == (0, table.PROBES) and steps[-1][1:] == (table.PROBES, table.PROBES)
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)


def test_what_was_kept_is_read_again(machine: Machine, tmp_path: Path) -> None:
    found = LatencyTable.measure(TARGET, bench=machine)
    found.save(tmp_path / "t.json")
    again = LatencyTable.load(tmp_path / "t.json", TARGET)
    blocks, kept = (9, 3, 2, 2), (196, 98, 49, 24)
    assert again.predict(blocks, kept) == found.predict(blocks, kept)
    assert again.measured_on == TARGET.here and again.probes == found.probes
    assert again.reference_ms == pytest.approx(2 * cost(again.reference))


def test_a_measurement_that_is_stopped_goes_on_where_it_was(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    machine.fails_after = 12
    with pytest.raises(KeyboardInterrupt):
        LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1e9)
    kept = len(json.loads(path.read_text())["tables"][0]["probes"])
    assert kept == 12
    rest = Machine()
    found = LatencyTable.measure(TARGET, path=path, bench=rest, seconds=1e9)
    assert len(rest.timed) == table.PROBES - 12 and not set(rest.timed) & set(machine.timed)
    assert len(found.probes) == table.PROBES
    done = Machine()
    LatencyTable.measure(TARGET, path=path, bench=done)
    assert done.timed == []


def test_measuring_ends_with_its_seconds_and_then_knows_less(machine: Machine, tmp_path: Path) -> None:
    short = LatencyTable.measure(TARGET, bench=machine, seconds=120)
    assert len(short.probes) == 12
    none = LatencyTable.measure(TARGET, bench=machine, seconds=1)
    assert len(none.probes) == table.ENOUGH  # below which nothing could be told
    whole = LatencyTable.measure(TARGET, bench=machine, seconds=1e9)
    schedule = ((4, 6, 6), (196, 137, 55))
    assert whole.predict(*schedule).error < none.predict(*schedule).error


def test_schedules_that_matter_are_timed_themselves(machine: Machine) -> None:
    wanted = [Schedule((8, 8), (196, count)) for count in range(60, 90, 3)]
    LatencyTable.measure(TARGET, bench=machine, schedules=wanted, seconds=100)
    plain = Machine()
    LatencyTable.measure(TARGET, bench=plain, seconds=100)
    assert len(set(wanted) & set(machine.timed)) > len(set(wanted) & set(plain.timed))


def test_a_machine_that_others_use_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.doubt = "other programs took 60% of the CPUs while the reference was timed"
    with pytest.raises(GateError, match=r"other programs took 60%.*end what else runs on it"):
        LatencyTable.measure(TARGET, path=tmp_path / "t.json", bench=machine)
    assert len(machine.timed) < 12 and not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": get_config("lvvit_t")}, "model's width 384, not 320"),
        ({"precision": "int8"}, "precision fp32, not int8"),
        ({"batch": 8}, "batch 1, not 8"),
        ({"threads": 1}, "threads not given, not 1"),
        ({"engine": "openvino"}, "engine onnxruntime, not openvino"),
        ({"image_size": 384}, "model's image_size 224, not 384"),
        ({"num_classes": 10}, "model's classes 1000, not 10"),
    ],
)
def test_a_table_of_something_else_is_refused(
    machine: Machine, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "t.json"
    LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1)
    with pytest.raises(InputError, match=says):
        LatencyTable.load(path, replace(TARGET, **change))


def test_8_bits_of_other_layers_are_something_else(machine: Machine, tmp_path: Path) -> None:
    target, path = replace(TARGET, precision="int8"), tmp_path / "t.json"
    LatencyTable.measure(target, path=path, bench=machine, seconds=1)
    with pytest.raises(InputError, match=r"groups fc1,.*, not fc1,stem"):
        LatencyTable.load(path, replace(target, groups=("stem", "fc1")))
    with pytest.raises(InputError, match="rest fp32, not fp16"):
        LatencyTable.load(path, replace(target, rest="fp16"))


def test_a_model_s_own_schedule_and_weights_are_nothing_else(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1)
    student = replace(TARGET, config=get_config("sit_s"))
    assert LatencyTable.load(path, student).predict((9, 3, 2, 2), (196, 98, 49, 24)).ms > 0


def moved(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let a file's tables have been measured somewhere else."""
    found = json.loads(path.read_text())
    for one in found["tables"]:
        change(one)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("field", ["device", "runtime", "instructions"])
def test_times_of_another_machine_are_not_those_of_this_one(
    machine: Machine, tmp_path: Path, field: str
) -> None:
    path = tmp_path / "t.json"
    LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1)
    moved(path, lambda one: one["where"].update({field: "another"}))
    with pytest.raises(InputError, match="not those of this one: measure them here"):
        LatencyTable.load(path, TARGET)
    here = LatencyTable.measure(TARGET, path=path, bench=Machine(), seconds=1)
    assert len(json.loads(path.read_text())["tables"]) == 2  # the other's stays
    assert LatencyTable.load(path, TARGET).probes == here.probes


def test_an_engine_that_does_not_run_here_takes_a_table_from_where_it_does(
    machine: Machine, tmp_path: Path, elsewhere: None
) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(InputError, match=r"ONNX Runtime does not run here .it needs a GPU."):
        LatencyTable.measure(TARGET, path=path, bench=machine)
    section = SimpleNamespace(made=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "runs_here", True)
        section.made = LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1)
    moved(path, lambda one: one["where"].update(device="NVIDIA L4"))
    found = LatencyTable.load(path, TARGET)
    assert found.measured_on.device == "NVIDIA L4" and found.probes == section.made.probes
    with pytest.raises(InputError, match="batch 1, not 8"):
        LatencyTable.load(path, replace(TARGET, batch=8))
    other = json.loads(path.read_text())
    other["tables"].append({**other["tables"][0], "where": {**other["tables"][0]["where"], "device": "H100"}})
    path.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"several machines .NVIDIA L4.*H100.*give a file with one"):
        LatencyTable.load(path, TARGET)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("{}", "lacks"),
        ('{"schema": 2, "tables": []}', r"schema 2.*(measured again|give a latency-PRECISION\.json)"),
        ('{"schema": 1, "tables": []}', "it is empty"),
        ('{"schema": 1, "tables": [{"what": 3}]}', "what"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        LatencyTable.load(path, TARGET)
    if "empty" not in says:
        with pytest.raises(InputError, match=says):
            LatencyTable.measure(TARGET, path=path, bench=Machine())
        assert path.read_text() == text


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        LatencyTable.load(tmp_path / "t.json", TARGET)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "fp8"}, "has no fp8 kernels"),
        ({"batch": 0}, "batch size must be at least 1"),
        ({"config": get_config("cait_xxs24_224")}, "cait_xxs24_224 cannot be slimmed"),
    ],
)
def test_what_cannot_be_timed_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LatencyTable.measure(replace(TARGET, **change), bench=Machine())


def test_a_schedule_that_does_not_fit_is_refused(machine: Machine) -> None:
    found = LatencyTable.measure(TARGET, bench=machine, seconds=1)
    with pytest.raises(InputError, match="add up to 15"):
        found.predict((8, 7), (196, 50))
    with pytest.raises(InputError, match="grows"):
        found.predict((4, 4, 8), (196, 50, 51))
    with pytest.raises(InputError, match="add up to 4"):
        LatencyTable.measure(TARGET, bench=machine, schedules=[Schedule((2, 2), (196, 50))])


@pytest.mark.parametrize("apart", [0.008, 0.03])
def test_error_bars_hold_as_much_as_processes_differ(apart: float) -> None:
    """An engine's speed is another in every process: the timings tell by how much, and bars are as wide."""
    rng = random.Random(5)
    found = LatencyTable(TARGET, table._opened(TARGET, None))
    against = cost(found.reference)
    pool = [one for one in others(60, 4) if len(one.kept) > 1]
    found.add(
        Probe(
            stage_blocks=one.stage_blocks,
            kept=one.kept,
            ratio=cost(one) / against * (1 + rng.gauss(0, apart)),
            spread=0.001,
            reference_ms=against,
        )
        for one in pool[:24]
    )
    assert 0.5 * apart <= found.processes_apart <= 1.7 * apart
    off = [
        (cost(one) * (1 + rng.gauss(0, apart)) - said.ms) / said.error
        for one in pool[24:]
        for said in [found.predict(one.stage_blocks, one.kept)]
    ]
    assert sum(abs(one) <= 1 for one in off) >= 0.85 * len(off)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kept": [196, 5000]}, "grows"),
        ({"kept": [100, 50]}, "does not fit the 196 patches"),
        ({"stage_blocks": [8, 7]}, "add up to 15 blocks"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": -1}, "ratio"),
        ({"reference_ms": float("nan")}, "cannot be read"),
        ({"reference_ms": 1e300}, "reference_ms"),
    ],
)
def test_a_table_that_tells_of_no_schedule_of_the_model_is_refused(
    machine: Machine, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "t.json"
    LatencyTable.measure(TARGET, path=path, bench=machine, seconds=1)
    probe = {"stage_blocks": [8, 8], "kept": [196, 98]}
    moved(path, lambda one: one["probes"][3].update(probe | change))
    text = path.read_text()
    with pytest.raises(InputError, match=rf"{says}.*give a latency-PRECISION\.json"):
        LatencyTable.load(path, TARGET)
    with pytest.raises(InputError, match=f"{says}.*measured again"):
        LatencyTable.measure(TARGET, path=path, bench=Machine())
    assert path.read_text() == text


def test_what_is_given_for_a_table_is_not_to_be_deleted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*; give a latency-PRECISION\.json of a folder"):
        LatencyTable.load(tmp_path, TARGET)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_model_of_few_schedules_is_timed_in_all_of_them_and_then_it_ends(
    machine: Machine, tmp_path: Path, depth: int
) -> None:
    config = replace(get_config("lvvit_nano"), stage_blocks=(depth,))
    few, path = replace(TARGET, config=config, image_size=32), tmp_path / "t.json"
    machine.fails_after = 100  # which one that never ends comes to
    found = LatencyTable.measure(few, path=path, bench=machine, seconds=1e9)
    assert found.wanted == len(found.probes) == len(set(machine.timed)) > 2
    assert LatencyTable.load(path, few).probes == found.probes
