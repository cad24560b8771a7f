"""A search from end to end on a clock of its own: a real model, real engines, and times that are made up."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import engines
from sit_deploy.bundle import load_bundle
from sit_deploy.cli import main
from sit_deploy.errors import GateError, InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.target import Target
from sit_deploy.models import create_model
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.report.search_record import SearchRecord, read_search
from sit_deploy.search import finalists, run
from sit_deploy.search.judge import Judge
from sit_deploy.search.run import search
from sit_deploy.search.tables import LatencyTable
from tests.helpers.command_line import context_of
from tests.helpers.damaged import add_damaged
from tests.helpers.held_up import timed
from tests.helpers.searches import search_request
from tests.helpers.train import configured
from training.cli.slim import command as slim_command
from training.slim_request import SlimRequest

FIXED = 0.5  # ms of stem and head
BLOCKS = 4  # of the model


def milliseconds(schedule):
    return FIXED + sum(b * n for b, n in zip(schedule.stage_blocks, schedule.kept, strict=True)) / 200


@pytest.fixture(scope="module", autouse=True)
def four_blocks():
    """lvvit_nano has half of its blocks here: what takes a search its time is exporting them."""
    with configured(lvvit_nano={"stage_blocks": (BLOCKS,)}):
        yield


class Table:
    """A latency table that knows the clock, begun and not finished."""

    probes, wanted = range(8), 24

    def __init__(self, target):
        self.target = target
        self.measured_on = SimpleNamespace(device="a made-up CPU", runtime="1.0")

    def predict(self, stages, kept):
        ms = milliseconds(Schedule(tuple(stages), tuple(kept)))
        parts = (SimpleNamespace(name="stem and head", ms=FIXED), SimpleNamespace(name="stage 1", ms=0.1))
        return SimpleNamespace(ms=ms, error=0.0, parts=parts)


@pytest.fixture
def clock(monkeypatch):
    """Times that are made up: `clock.more` ms each time tokens are slimmed and `clock.pace` times all
    else, which the table does not know of; `clock.runs` engines timed."""
    made = SimpleNamespace(more=0.0, pace=1.0, runs=[])

    def alternate(workers, options, *_, **__):
        results = {}
        for name, spec in workers.items():
            model = load_bundle(Path(spec.args[1]).parent).manifest.model
            schedule = Schedule(tuple(model.stages), tuple(model.tokens))
            results[name] = timed(
                made.pace * milliseconds(schedule) + made.more * (len(schedule.stage_blocks) - 1),
                options.rounds,
            )
        made.runs.append(list(workers))
        return results

    monkeypatch.setattr(finalists, "alternate", alternate)
    monkeypatch.setattr("sit_deploy.search.images.SYNTHETIC", 16)
    monkeypatch.setattr(LatencyTable, "measure", classmethod(lambda cls, target, **_: Table(target)))
    return made


@pytest.fixture(scope="module")
def trained(four_blocks, tmp_path_factory):
    """A checkpoint with several entries, of images of 112 pixels."""
    path = tmp_path_factory.mktemp("trained") / "teacher.pth"
    state = create_model("lvvit_nano", num_classes=2).state_dict()
    torch.save({"model": state, "other": {name: 2 * value for name, value in state.items()}}, path)
    return path


@pytest.mark.slow
def test_from_a_latency_to_an_engine(tmp_path, photos, clock):
    record = search(search_request(tmp_path / "found", photos, finalists=2, most_stages=3))
    chosen = record.chosen
    assert milliseconds(Schedule(tuple(chosen.stages), tuple(chosen.kept))) <= 1.0
    assert 0.85 <= chosen.measured_ms <= 1.0  # no tokens are given away for nothing
    bundle = load_bundle(tmp_path / "found" / "bundle")
    assert tuple(bundle.manifest.model.tokens) == tuple(chosen.kept)
    assert chosen.engine_score.divergence == pytest.approx(chosen.score.divergence, rel=0.5, abs=1e-6)
    front = [point for point in record.points if point.front]
    assert (len(front) > 2 and front == sorted(front, key=lambda point: point.ms)) or len(front) > 2
    assert record.unslimmed_ms["fp32"] == pytest.approx(milliseconds(Schedule((BLOCKS,), (49,))))
    assert set(record.commands) == {"Fit it in two minutes, to images without labels", "Train it by FRD"}
    line = record.commands["Train it by FRD"]
    assert f"--stages {','.join(map(str, chosen.stages))} --kept {','.join(map(str, chosen.kept))}" in line
    again = json.loads((tmp_path / "found" / "search.json").read_text())
    assert again["bundle"] == bundle.manifest.digest
    assert again["points"] and "lvvit_nano" in (tmp_path / "found" / "search.html").read_text()


@pytest.mark.slow
def test_what_the_table_does_not_know_is_learnt(tmp_path, photos, clock):
    clock.more = 0.1
    record = search(search_request(tmp_path / "found", photos))
    chosen = record.chosen
    schedule = Schedule(tuple(chosen.stages), tuple(chosen.kept))
    assert chosen.measured_ms == pytest.approx(milliseconds(schedule) + 0.1 * (len(chosen.stages) - 1))
    assert chosen.measured_ms <= 1.0
    assert chosen.predicted_ms == pytest.approx(chosen.measured_ms)
    assert chosen.student_ms == pytest.approx(milliseconds(schedule))  # whose TSMs are what the table knows


@pytest.mark.slow
def test_one_that_was_stopped_goes_on(tmp_path, photos, clock, monkeypatch):
    from sit_deploy.search.finalists import Finalists

    real = Finalists.measure

    def stop_at_the_last(self, scored):
        if len(scored) > 1:
            raise KeyboardInterrupt
        return real(self, scored)

    monkeypatch.setattr(Finalists, "measure", stop_at_the_last)
    asked = search_request(tmp_path / "found", photos, finalists=2)
    with pytest.raises(KeyboardInterrupt):
        search(asked)
    assert [p.name for p in (tmp_path / "found").iterdir()] == ["scores.json"]
    known = json.loads((tmp_path / "found" / "scores.json").read_text())["scores"]
    monkeypatch.setattr(Finalists, "measure", real)
    record = search(asked)
    after = json.loads((tmp_path / "found" / "scores.json").read_text())["scores"]
    assert after[: len(known)] == known and record.chosen
    with pytest.raises(InputError, match="finished; pass --force"):
        search(asked)


@pytest.mark.slow
def test_a_latency_that_nothing_keeps_names_the_fastest(tmp_path, clock):
    with pytest.raises(
        InputError,
        match=r"no schedule of lvvit_nano takes 0\.1 ms .* the fastest, 1x49-.*0\.5 ms of it are its stem and head",
    ):
        search(search_request(tmp_path / "found", latency=0.1))
    assert list(tmp_path.iterdir()) == [] or [p.name for p in (tmp_path / "found").iterdir()] == [
        "scores.json"
    ]


@pytest.mark.slow
def test_a_model_that_is_fast_enough_stays_as_it_is(tmp_path, clock):
    record = search(search_request(tmp_path / "found", latency=100.0, seconds=5.0))
    assert record.chosen.stages == [BLOCKS] and record.commands == {}
    assert any("synthetic images" in note for note in record.notes)
    assert any(note.startswith("8 of 24 schedules were timed for the latency table") for note in record.notes)


@pytest.mark.slow
def test_what_an_engine_that_does_not_run_here_loses_is_told_on_all_images(
    tmp_path, photos, clock, monkeypatch
):
    """The unslimmed model's accuracy is: on other images, a schedule would lose less than nothing."""
    kind = type(engines.get("onnxruntime"))
    real = kind.probe
    monkeypatch.setattr(kind, "probe", lambda self: replace(real(self), can_run=False))
    monkeypatch.setattr(Target, "runs_here", True)  # as a table that is given stands for it
    monkeypatch.setattr(
        Judge,
        "prepare",
        lambda self, seconds, real=Judge.prepare: (real(self, seconds), setattr(self, "counts", (2, 3, 4))),
    )
    record = search(search_request(tmp_path / "found", photos, data=str(photos / "labelled"), seconds=5.0))
    assert record.chosen.measured_ms is None and len(record.chosen.stages) > 1
    assert record.chosen.closeness.images == 16
    assert any(
        "closeness and accuracy are those of the slimmed model in PyTorch" in note for note in record.notes
    )


@pytest.mark.slow
def test_auto_is_an_engine_that_runs_here(tmp_path, photos, clock):
    build = BuildRequest("lvvit_nano", None, num_classes=2)
    record = search(search_request(tmp_path / "found", photos, build=build, latency=100.0, seconds=5.0))
    kind = load_bundle(tmp_path / "found" / "bundle").manifest.engine.kind
    assert engines.get(kind).probe().can_run and record.engine.startswith(kind)


@pytest.mark.slow
def test_accuracy_that_is_lost_fails_and_leaves_what_was_found(tmp_path, photos, clock):
    labelled = str(photos / "labelled")
    record = search(
        search_request(tmp_path / "found", photos, data=labelled, latency=0.8, max_accuracy_drop=0.0)
    )
    assert record.drop == record.unslimmed_top1 - record.chosen.closeness.top1
    again = read_search(tmp_path / "found")
    assert again.max_accuracy_drop == 0.0 and again.failure == record.failure
    lost = SearchRecord.from_dict({**record.to_dict(), "unslimmed_top1": 100.0, "max_accuracy_drop": -1.0})
    with pytest.raises(GateError, match=r"loses .* points of top-1, and --max-accuracy-drop allows"):
        lost.require()


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_what_misses_its_limit_is_shown_and_fails(tmp_path, photos, clock, monkeypatch, capsys, as_json):
    """In a document of JSON too: it is the only one on standard output, and the status says the rest."""
    monkeypatch.setattr(SearchRecord, "failure", "top-1 is gone")
    words = [
        "search",
        "--model",
        "lvvit_nano",
        "--num-classes",
        "2",
        "--engine",
        "onnxruntime",
        "--latency",
        "1",
    ]
    words += [
        "--seconds",
        "3",
        "--finalists",
        "1",
        "--data",
        str(photos / "flat"),
        "-o",
        str(tmp_path / "found"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, *(["--json"] if as_json else [])])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and "Error: top-1 is gone" in err
    if as_json:
        assert json.loads(out)["points"]
    else:
        assert "--stages" in out and "✗" in out and "✓" not in out


@pytest.mark.slow
@pytest.mark.parametrize("pace", [0.8, 1.25])
def test_a_speedup_is_over_what_the_unslimmed_model_takes_and_not_over_what_was_foretold(
    tmp_path, photos, clock, pace
):
    """A table is off by a tenth and more at times: then all engines are faster or slower than it says."""
    clock.pace = pace
    record = search(search_request(tmp_path / "found", photos, latency=None, speedup=1.25))
    unslimmed = pace * milliseconds(Schedule((BLOCKS,), (49,)))
    assert record.unslimmed_ms["fp32"] == pytest.approx(unslimmed)
    assert record.limit_ms == pytest.approx(unslimmed / 1.25)
    assert len(record.chosen.stages) > 1
    assert 1.25 <= record.unslimmed_ms["fp32"] / record.chosen.measured_ms < 1.5
    assert record.chosen.predicted_ms == pytest.approx(record.chosen.measured_ms)


@pytest.mark.slow
def test_a_model_so_small_that_slimming_makes_it_slower_stays_as_it_is(tmp_path, photos, clock):
    clock.more = 10.0
    record = search(search_request(tmp_path / "found", photos, latency=20.0))
    assert record.chosen.stages == [BLOCKS]


@pytest.mark.slow
def test_scores_by_another_preprocessing_are_of_something_else(tmp_path, photos, clock, monkeypatch):
    monkeypatch.setattr(run, "_learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    asked = search_request(tmp_path / "found", photos)
    with pytest.raises(KeyboardInterrupt):
        search(asked)
    assert [p.name for p in (tmp_path / "found").iterdir()] == ["scores.json"]
    with pytest.raises(KeyboardInterrupt):  # the same goes on
        search(asked)
    for change in ({"mean": (0.1, 0.2, 0.3)}, {"std": (1.0, 1.0, 1.0)}, {"num_classes": 3}):
        with pytest.raises(InputError, match="scores of other weights, images or options"):
            search(replace(asked, build=replace(asked.build, **change)))


@pytest.mark.slow
def test_the_commands_take_the_weights_size_and_preprocessing_that_were_searched(
    tmp_path, photos, clock, trained
):
    build = BuildRequest(
        "lvvit_nano",
        None,
        checkpoint=trained,
        engine="onnxruntime",
        image_size=96,
        mean=(0.5, 0.5, 0.5),
        ema=False,
        num_classes=2,
        checkpoint_key="model",
    )
    record = search(search_request(tmp_path / "found", photos, build=build, seconds=3.0, finalists=1))
    (line,) = record.commands.values()  # train takes the averaged weights: there is no command for it
    words = shlex.split(line)
    for pair in (
        ("--checkpoint", str(trained)),
        ("--image-size", "96"),
        ("--mean", "0.5,0.5,0.5"),
        ("--checkpoint-key", "model"),
        ("--num-classes", "2"),
    ):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert "--no-ema" in words and record.chosen.kept[0] == 36
    asked = context_of(
        slim_command, [*words[2:-3], str(photos / "flat"), "--batch-size", "8", "-o", "s.safetensors"]
    ).params
    asked = SlimRequest(
        ema=not asked.pop("no_ema"), **{k: v for k, v in asked.items() if k != "as_json"}
    ).check()
    config = asked.config(asked.teacher())
    assert (list(config.stage_blocks), list(config.kept_at(96))) == (record.chosen.stages, record.chosen.kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "labelled"])
def test_damaged_images_end_no_search(kind, tmp_path, photos, clock):
    """They are left out of what schedules are compared on and of what its builds calibrate and measure on, and named."""
    data = tmp_path / "photos"
    shutil.copytree(photos / kind, data)
    add_damaged(data if kind == "flat" else data / "1")
    one = search_request(tmp_path / "found", data=str(data), unlabelled=kind == "flat")
    record = search(one)
    assert record.images.startswith("16 of 22 images in ")
    (note,) = [note for note in record.notes if "cannot be read" in note]
    assert note.startswith("6 images cannot be read and were left out: ") and "bomb.png: the image" in note
    report = json.loads((tmp_path / "found/bundle/report.json").read_text())
    assert any("cannot be read and were left out" in warning for warning in report["warnings"])
    assert (report["accuracy"]["images"] == 16) if kind == "labelled" else report["accuracy"] is None
    few = replace(one, output=tmp_path / "few", build=replace(one.build, max_damaged=5))
    with pytest.raises(InputError, match="6 images cannot be read, more than --max-damaged 5; the last: "):
        search(few)
    assert not (tmp_path / "few").exists() or not list((tmp_path / "few").glob("bundle"))
