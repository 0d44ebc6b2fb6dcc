"""Flags made from a dataclass: precedence, types, errors that name the fix, help."""

import dataclasses
import subprocess
import sys
import time

import pytest

from semisam_tf.options import OptionError, help_text, option, parse, run_command


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    preset: str = option("", "Starting values.")
    steps: int = option(1, "Length.", unit="steps")
    rate: float = option(0.5, "Rate.")
    deep: bool = option(False, "Deep.")
    size: tuple[int, ...] = option((), "Size.", unit="voxels")
    kind: str = option("a", "Kind.", choices=("a", "b"))


PRESETS = {"long": {"steps": 100, "rate": 0.1, "deep": True}}


@pytest.fixture
def flagfile(tmp_path):
    path = tmp_path / "some.flags"
    path.write_text("# a comment\n--preset=long\n--rate=0.2\n--size=4,5,6\n", encoding="utf-8")
    return path


def test_defaults():
    assert parse(Settings, []) == Settings()


def test_preset_then_flagfile_then_command_line(flagfile):
    assert parse(Settings, [f"--flagfile={flagfile}"], PRESETS) == Settings("long", 100, 0.2, True, (4, 5, 6))
    chosen = parse(Settings, [f"--flagfile={flagfile}", "--rate=0.9", "--nodeep"], PRESETS)
    assert (chosen.steps, chosen.rate, chosen.deep) == (100, 0.9, False)


def test_the_command_line_wins_before_a_flagfile_too(flagfile):
    assert parse(Settings, ["--rate=0.9", "--flagfile", str(flagfile)], PRESETS).rate == 0.9


def test_a_flagfile_may_name_another(flagfile, tmp_path):
    outer = tmp_path / "outer.flags"
    outer.write_text(f"--flagfile={flagfile}\n--rate=0.3\n", encoding="utf-8")
    assert parse(Settings, [f"--flagfile={outer}"], PRESETS).rate == 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step=3"], "step.*Did you mean.*steps"),
        (["--steps=three"], "--steps: expected int. Received: 'three'"),
        (["--size=4,x"], "--size: expected numbers separated by commas"),
        (["--kind=c"], "--kind: expected one of a, b. Received: 'c'"),
        (["--preset=huge"], r"--preset: expected one of \['long'\]"),
        (["train"], "Expected flags only"),
        (["--flagfile=/nowhere.flags"], "nowhere.flags"),
    ],
)
def test_errors_name_the_flag(words, message):
    with pytest.raises(OptionError, match=message):
        parse(Settings, words, PRESETS)


def test_help_lists_every_flag_with_its_unit_and_every_preset():
    text = help_text(Settings, "some.program", PRESETS)
    for field in dataclasses.fields(Settings):
        assert f"--{field.name} " in text
    assert "--size  (unit: voxels" in text
    assert "a|b" in text
    assert "--preset=long: steps=100, rate=0.1, deep=True" in text


def test_exit_codes(capsys):
    assert run_command(Settings, "p", ["--steps=2"], lambda settings: settings.steps - 2) == 0
    assert run_command(Settings, "p", ["--stps=2"], lambda settings: 0) == 2

    def broken(settings):
        raise ValueError("scan.nii is torn")

    assert run_command(Settings, "p", [], broken) == 1
    assert "error: scan.nii is torn" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["semisam_tf.train", "semisam_tf.evaluate"])
def test_help_is_quick_and_whole(program):
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True)
    duration_s = time.monotonic() - began_s
    assert "--workdir" in done.stdout
    assert "unit: 0..1" in done.stdout
    # Half a second on a quiet machine (README); the rest is for a loaded one. TensorFlow alone takes four.
    assert duration_s < 2.0
