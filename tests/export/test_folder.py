"""A folder that is whole or absent, whatever interrupts its making."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export import folder
from export.folder import check_output, replacing_folder


def names(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())


def test_folder_takes_its_place_whole_and_readable(tmp_path: Path) -> None:
    output = tmp_path / "new" / "sam"
    with replacing_folder(output) as staging:
        (staging / "a").write_text("new", encoding="utf-8")
        assert not output.exists()
    assert names(output) == ["a"]
    assert names(output.parent) == ["sam"]
    assert output.stat().st_mode & 0o777 == 0o755


def interrupted(output: Path, error: type[BaseException]) -> None:
    with replacing_folder(output) as staging:
        (staging / "a").write_text("half", encoding="utf-8")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_block_leaves_nothing_and_the_old_export(tmp_path: Path, error: type[BaseException]) -> None:
    old, new = tmp_path / "old", tmp_path / "made" / "for" / "it"
    old.mkdir()
    (old / "a").write_text("old", encoding="utf-8")
    for output in (old, new):
        with pytest.raises(error):
            interrupted(output, error)
    assert names(tmp_path) == ["old"]
    assert (old / "a").read_text(encoding="utf-8") == "old"


def test_failed_move_puts_the_old_export_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "sam"
    output.mkdir()
    (output / "a").write_text("old", encoding="utf-8")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(target) == output and not str(source).endswith(".old"):
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="disk full"), replacing_folder(output) as staging:
        (staging / "a").write_text("new", encoding="utf-8")
    assert names(tmp_path) == ["sam"]
    assert (output / "a").read_text(encoding="utf-8") == "old"


def test_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    dead, alive = 10**9, os.getppid()
    here = folder._machine()
    kept = [f".sam.partial.{alive}-{here}.y", f".sam.partial.{dead}-elsewhere.v", ".other.partial.1.z"]
    left = [f".sam.partial.{dead}-{here}.x", *kept, f".sam.partial.{dead}-{here}.x.old"]
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name, encoding="utf-8")
    (tmp_path / "sam").mkdir()
    with replacing_folder(tmp_path / "sam") as staging:
        (staging / "a").write_text("new", encoding="utf-8")
    assert names(tmp_path) == sorted([*kept, "sam"])


def test_export_that_died_while_replacing_is_put_back(tmp_path: Path) -> None:
    (tmp_path / f".sam.partial.{10**9}-{folder._machine()}.x.old").mkdir()
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "sam", KeyboardInterrupt)
    assert names(tmp_path) == ["sam"]


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.onnx.data", "decoder.onnx.data", "manifest.json"])
def test_files_of_an_export_may_be_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 0}', encoding="utf-8")
    (tmp_path / name).touch()
    check_output(tmp_path)


@pytest.mark.parametrize("manifest", [None, "no JSON", "[]", '{"name": "a web app"}'])
def test_graphs_without_an_exports_manifest_may_not(tmp_path: Path, manifest: str | None) -> None:
    check_output(tmp_path)
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).touch()
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(ValueError, match=r"earlier export.*'decoder\.onnx', 'encoder\.onnx'"):
        check_output(tmp_path)


def test_mount_point_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    check_output(tmp_path / "inside")
    with pytest.raises(ValueError, match=rf"{tmp_path}, a mount point"):
        check_output(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "encoder.onnx.data.bak", "other.onnx.data"])
def test_other_files_may_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=name):
        check_output(tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(folder.tempfile, "mkdtemp", refuse)
    with pytest.raises(ValueError, match=rf"can be written to.*{tmp_path}"), replacing_folder(tmp_path / "a" / "sam"):
        pass
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"can be written to.*file"), replacing_folder(tmp_path / "file" / "b"):
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_an_export_leaves_nothing(repo_root: Path, tmp_path: Path, number: int, code: int) -> None:
    # Stands still in the middle of an export, with something written.
    program = (
        "import sys, time, types, export.sam as sam\n"
        "def load(checkpoint, random_seed):\n"
        "    sys.stdout.write('loading\\n'); sys.stdout.flush(); time.sleep(60)\n"
        "sys.modules['export.slow'] = types.SimpleNamespace(load=load)\n"
        "sam.FAMILIES['slow'] = ('export.slow', {})\n"
        "sam.run()\n"
    )
    command = [sys.executable, "-c", program, "--family=slow", f"--output={tmp_path / 'new' / 'sam'}"]
    with subprocess.Popen(
        command,
        cwd=repo_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Children of a shell's background job are born deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        assert names(tmp_path) == ["new"]
        time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
