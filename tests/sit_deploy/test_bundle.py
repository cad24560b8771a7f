from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import files
from sit_deploy import bundle as bundles
from sit_deploy import files as stages
from sit_deploy.bundle import check_destination, load_bundle, sha256, staging
from sit_deploy.errors import InputError
from sit_deploy.files import scratch, write_whole
from sit_deploy.manifest import digest, write_manifest
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.command_line import snapshot

FILES = ("model.onnx", "engine.onnx", "golden.npz", "report.json", "report.html")
FIELDS: dict[str, Any] = {
    "model": {
        "name": "sit_nano",
        "image_size": [4, 4],
        "num_classes": 3,
        "tokens": [1],
        "parameters": 9,
        "macs": 99,
    },
    "classes": None,
    "preprocessing": Preprocessing.for_model(4).to_dict(),
    "precision": "fp32",
    "batch": {"size": 2},
    "opset": 20,
    "engine": {"kind": "onnxruntime", "file": "engine.onnx", "version": "1", "target": "cpu"},
    "weights": {"source": "random"},
}


def make_bundle(path: Path, **fields: Any) -> Path:
    """Write a bundle whose files are a few bytes each."""
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_text(f"this is {name}")
    np.savez(path / "golden.npz", images=np.ones((2, 3, 4, 4), "f4"), logits=np.ones((2, 3), "f4"))
    write_manifest(path, {**FIELDS, **fields})
    return path


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ writing


def test_manifest_lists_hash_and_size_of_every_file_and_its_own_digest(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b", classes=["crème", "brûlée", "€"])
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 1
    assert set(manifest["files"]) == set(FILES)
    for name, facts in manifest["files"].items():
        content = (path / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    # the rule as the module states it, for whoever checks it in another language
    stated = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert stated == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_digest_is_of_the_fields_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    manifest = json.loads((path / "manifest.json").read_text())
    backwards = dict(reversed(manifest.items()))
    (path / "manifest.json").write_text(json.dumps(backwards))
    assert load_bundle(path).manifest.to_dict() == manifest
    assert digest({**manifest, "precision": "fp16"}) != manifest["digest"]


def test_a_manifest_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        make_bundle(tmp_path / "b", precision=float("nan"))


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # over two of the megabytes that are read at a time
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------------------ loading


def test_properties(tmp_path: Path) -> None:
    fixed = load_bundle(make_bundle(tmp_path / "fixed"))
    assert (fixed.batch_size, fixed.batch_range) == (2, (2, 2))
    assert fixed.classes == ["0", "1", "2"]
    assert fixed.engine_path == tmp_path / "fixed" / "engine.onnx"
    assert fixed.model_path.read_text() == "this is model.onnx"
    batch = {"min": 1, "opt": 4, "max": 8}
    dynamic = load_bundle(make_bundle(tmp_path / "dynamic", batch=batch, classes=["a", "b", "c"]))
    assert (dynamic.batch_size, dynamic.batch_range) == (4, (1, 8))
    assert dynamic.classes == ["a", "b", "c"]


@pytest.mark.parametrize("name", FILES)
def test_one_byte_flipped(name: str, nano_fp32: Path, copy_of: Callable[[Path], Path]) -> None:
    path = copy_of(nano_fp32)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"was changed: {name} does not match its hash; .*rebuild"):
        load_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_file_removed(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / name).unlink()
    with pytest.raises(InputError, match=rf"lacks its file {name}"):
        load_bundle(path)


def swap_hash(manifest: dict[str, Any]) -> None:
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a value": lambda m: m.update(precision="fp16"),
    "a value deep inside": lambda m: m["engine"].update(kind="tensorrt"),
    "a field more": lambda m: m.update(comment="tested by hand"),
    "a field less": lambda m: m["model"].pop("num_classes"),
    "a hash": swap_hash,
    "a file less": lambda m: m["files"].pop("report.html"),
    "the digest": lambda m: m.update(digest="0" * 64),
    "a type": lambda m: m.update(files=[]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_manifest_edited_by_hand(edit: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    edit_manifest(path, EDITS[edit])
    with pytest.raises(InputError, match=r"manifest\.json was changed: it does not match its digest"):
        load_bundle(path)


@pytest.mark.parametrize("field", [*FIELDS, "files", "digest"])
def test_manifest_without_a_field(field: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")

    def lose(manifest: dict[str, Any]) -> None:
        del manifest[field]
        if field != "digest":
            manifest["digest"] = digest(manifest)

    edit_manifest(path, lose)
    with pytest.raises(InputError, match=rf"manifest\.json: it lacks {field}; build the bundle again"):
        load_bundle(path)


def test_newer_schema_says_upgrade_and_nothing_else(tmp_path: Path) -> None:
    """A newer schema may have other fields and another digest: neither may be what the user is told of."""
    path = make_bundle(tmp_path / "b")
    (path / "manifest.json").write_text('{"schema": 3}')
    with pytest.raises(InputError, match=r"schema 3, newer than the 2 known here; upgrade sit-deploy"):
        load_bundle(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"schema": "1"}', b'{"name": "a web app"}']
)
def test_a_manifest_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"manifest\.json (cannot be read|is not a manifest).*; build the bundle again"
    ):
        load_bundle(path)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder; make one with `sit-deploy build"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it has no manifest\.json"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "..", "sub/file", "/etc/hostname"])
def test_a_manifest_cannot_point_outside(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (tmp_path / "outside").write_text("x")

    def point(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        manifest["digest"] = digest(manifest)

    edit_manifest(path, point)
    with pytest.raises(InputError, match="which is no plain file name"):
        load_bundle(path)


def test_a_bundle_of_one_output_says_what_to_do(tmp_path: Path) -> None:
    """Whatever such a bundle is asked, its answer would be 100 %."""
    path = make_bundle(tmp_path / "b", model={**FIELDS["model"], "num_classes": 1})
    with pytest.raises(
        InputError, match=r"has one output: softmax .* build it again .* with --num-classes 2"
    ):
        load_bundle(path)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "engine.onnx"])
def test_what_is_deserialised_must_have_a_hash(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["files"][name]
        manifest["digest"] = digest(manifest)

    edit_manifest(path, forget)
    with pytest.raises(InputError, match=f"lists no hash for '?{name}"):
        load_bundle(path)


def test_golden_never_unpickles(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    np.savez(path / "golden.npz", images=np.array([{"an": "object"}], object), logits=np.zeros(1))
    write_manifest(path, FIELDS)
    with pytest.raises(InputError, match=r"golden\.npz: does not fit the manifest \(its images are \|O"):
        load_bundle(path)


# -------------------------------------------------------------------------------------------- where a bundle goes


def write(folder: Path) -> None:
    (folder / "model.onnx").write_text("new")
    (folder / "manifest.json").write_text('{"files": {"model.onnx": {}}}')


def test_moved_into_place_whole(tmp_path: Path) -> None:
    with staging(tmp_path / "new" / "deep" / "bundle", force=False) as folder:
        assert list(folder.iterdir()) == []
        assert (
            folder.parent == tmp_path / "new" / "deep"
        )  # the same file system, so that moving is one rename
        assert folder.name.startswith(".")
        write(folder)
        assert not (tmp_path / "new" / "deep" / "bundle").exists()
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["bundle"]
    assert (tmp_path / "new" / "deep" / "bundle" / "model.onnx").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with staging(tmp_path / "b", force=False) as folder:
        write(folder)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b", "manifest.json", "model.onnx"]


def test_the_folder_has_the_permissions_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staging(tmp_path / "b", force=False) as folder:
            write(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "error", [InputError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_nothing_left_behind(error: BaseException, tmp_path: Path) -> None:
    make_bundle(tmp_path / "there")
    before = snapshot(tmp_path)
    for path in (tmp_path / "there", tmp_path / "new" / "deep" / "bundle"):
        with pytest.raises(type(error)), staging(path, force=True) as folder:
            write(folder)
            raise error
    assert snapshot(tmp_path) == before


def test_force_replaces_a_bundle_and_all_of_it(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    with pytest.raises(InputError, match=r"already a bundle; pass --force to replace it"):
        check_destination(path, force=False)
    with staging(path, force=True) as folder:
        write(folder)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.onnx"]
    assert list(tmp_path.iterdir()) == [path]


def test_force_replaces_a_damaged_bundle(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "engine.onnx").unlink()
    (path / "model.onnx").write_text("changed")
    check_destination(path, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("content", ["notes.txt", "manifest.json", "both"])
def test_other_files_are_never_replaced(content: str, force: bool, tmp_path: Path) -> None:
    """A folder of something else may have a manifest.json of its own (web applications do)."""
    path = tmp_path / "site"
    path.mkdir()
    if content != "manifest.json":
        (path / "notes.txt").write_text("precious")
    if content != "notes.txt":
        (path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="has other files in it"), staging(path, force):
        pytest.fail("the work was begun")
    assert snapshot(tmp_path) == before


def test_a_users_file_beside_a_bundle_is_never_deleted(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"files in it that are no bundle's \(notes\.txt\); move them away"):
        check_destination(path, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_appeared_while_building_is_not_replaced(force: bool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has other files in it"), staging(tmp_path / "b", force) as folder:
        write(folder)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "notes.txt").write_text("precious")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"b", "b/notes.txt"}


def test_obstacles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for path, problem in {
        "file": "is not a folder",
        "link": "is a symbolic link",
        "file/below": r"file is not a folder\)",
        "file/far/below": r"file is not a folder\)",
    }.items():
        with pytest.raises(InputError, match=problem):
            check_destination(tmp_path / path, force=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"is the folder you are in; choose one inside it, as -o bundle"):
        check_destination(Path(), force=True)
    with pytest.raises(InputError, match="mount point"):
        check_destination(Path("/proc"), force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="is not writable"):
        check_destination(tmp_path / "new", force=True)


def test_a_place_that_turns_out_to_be_unwritable() -> None:
    """Root may write everywhere, says the system, and then it does not let it."""
    with (
        pytest.raises(InputError, match=r"cannot write to /proc .*choose another -o"),
        scratch(Path("/proc/x")),
    ):
        pytest.fail("made a folder in /proc")


def test_a_failed_move_puts_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle(tmp_path / "b")
    before = snapshot(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), staging(path, force=True) as folder:
        write(folder)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("place", ["move_in", "rmtree"])
def test_ctrl_c_at_the_worst_moment(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed between the two renames, or a second time while the first press is being cleaned up after."""
    path = make_bundle(tmp_path / "b")
    holder = stages if place == "move_in" else files.shutil
    work = getattr(holder, place)

    def press(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        work(*args, **options)

    monkeypatch.setattr(holder, place, press)
    if place == "move_in":
        try:
            with staging(path, force=True) as folder:
                write(folder)
        except KeyboardInterrupt:  # left to itself, it would end the whole run of tests
            pytest.fail("interrupted in the middle of the move")
        assert (path / "model.onnx").read_text() == "new"
    else:
        with pytest.raises(InputError, match="first"), staging(path, force=True) as folder:
            write(folder)
            raise InputError("first")
        assert (path / "model.onnx").read_text() == "this is model.onnx"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt):  # the handler is the usual one again
        signal.raise_signal(signal.SIGINT)


KILLED = """
import engines.files, os, signal
from pathlib import Path
from sit_deploy.bundle import staging
def stop(folder, destination):
    os.kill(os.getpid(), signal.SIGKILL)
engines.files.exchange = lambda *_: {exchange}
engines.files.shutil.rmtree = stop
move = Path.rename
def rename(self, target):
    if self.name == "b":
        move(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self, target)
Path.rename = rename
with staging(Path("b"), force=True) as folder:
    (folder / "model.onnx").write_text("new")
    (folder / "manifest.json").write_text('{{"files": {{"model.onnx": {{}}}}}}')
"""


def test_a_bundle_moved_away_by_a_killed_run_is_back_at_the_next_look(tmp_path: Path) -> None:
    """Where the system cannot exchange two folders in one step."""
    path = make_bundle(tmp_path / "b")
    before = snapshot(path)
    for look in (load_bundle, lambda path: check_destination(path, force=True)):
        done = subprocess.run([sys.executable, "-c", KILLED.format(exchange=False)], cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL and not path.exists()
        look(path)
        assert snapshot(path) == before and list(tmp_path.iterdir()) == [path]


def test_builds_into_one_place_at_the_same_time(tmp_path: Path) -> None:
    """One wins; the other says so in one line and leaves nothing."""
    slower, quicker = staging(tmp_path / "b", force=False), staging(tmp_path / "b", force=False)
    with pytest.raises(InputError, match="is already a bundle; pass --force"), slower as folder:
        write(folder)
        with quicker as other:
            write(other)
            (other / "model.onnx").write_text("the quicker one's")
    assert (tmp_path / "b/model.onnx").read_text() == "the quicker one's"
    with staging(tmp_path / "b", force=True) as first, staging(tmp_path / "b", force=True) as second:
        write(first)
        write(second)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_came_at_the_last_moment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = bundles.check_destination

    def late(path: Path, force: bool) -> None:
        looked(path, force)
        if path.name == "b" and any(tmp_path.iterdir()):
            (path / "thesis").mkdir(parents=True)

    monkeypatch.setattr(bundles, "check_destination", late)
    left = pytest.raises(InputError, match="made by another program meanwhile, and is left as it is")
    with left, staging(tmp_path / "b", force=False) as folder:
        write(folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "thesis"]


@pytest.mark.parametrize("place", ["fifo", "folder"])
def test_a_text_replaces_files_alone(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="is not a file; choose another -o"):
        write_whole(tmp_path / place, "text")
    assert snapshot(tmp_path) == before
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"


def test_what_seals_a_bundle_again_is_reached_from_here(nano_fp32: Path) -> None:
    """Programs that change a bundle on purpose import these from `sit_deploy.bundle`."""
    from sit_deploy import bundle as module
    from sit_deploy import manifest

    assert (module.digest, module.write_manifest) == (manifest.digest, manifest.write_manifest)
    fields = json.loads((nano_fp32 / module.MANIFEST).read_text())
    assert module.digest(fields) == fields["digest"]
