"""What the settings make of a SAM's sessions, and that TensorFlow leaves the GPU some memory before one is opened."""

import dataclasses
import os
import types

import pytest

from semisam_tf.config import Config
from semisam_tf.options import run_command
from semisam_tf.sam.runtime import CPU, CUDA
from semisam_tf.training import sam_setup

CONFIG = Config(sam_mode="online", sam_dir="a,b", sam_providers=f"{CUDA}, {CPU}")
GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


@pytest.fixture
def opened(monkeypatch):
    """Stands in for `SamSession`; each session that is opened is noted: (folder, arguments, what growth was then)."""
    opened = []

    class Session:
        manifest = None

        def __init__(self, folder, **arguments):
            opened.append((folder, arguments, os.environ.get(GROWTH)))

        def try_out(self, kinds):
            pass

    monkeypatch.setattr(sam_setup, "SamSession", Session)
    monkeypatch.setattr(sam_setup, "prompt_kinds", lambda manifest, prompts: ("box",))
    return opened


@pytest.mark.parametrize(("gib", "limit_bytes"), [(0.0, None), (1.5, 3 * 2**29)])
def test_settings_reach_every_session(opened, monkeypatch, gib, limit_bytes):
    monkeypatch.setenv(GROWTH, "true")
    sam_setup.sam_sessions(dataclasses.replace(CONFIG, sam_gpu_mem_gib=gib, sam_gpu_id=1, sam_allow_cpu=True))
    arguments = {"providers": (CUDA, CPU), "allow_cpu": True, "gpu_mem_limit_bytes": limit_bytes, "gpu_id": 1}
    assert opened == [("a", arguments, "true"), ("b", arguments, "true")]


# TensorFlow knows the words "true" and "false" only.
@pytest.mark.parametrize("told", [None, "false", "1"])
def test_no_session_is_opened_on_a_gpu_that_tensorflow_would_take_whole(opened, monkeypatch, told):
    monkeypatch.delenv(GROWTH) if told is None else monkeypatch.setenv(GROWTH, told)
    with pytest.raises(RuntimeError, match=f"Expected TF_FORCE_GPU_ALLOW_GROWTH=true.*Received: {told!r}"):
        sam_setup.sam_sessions(CONFIG)
    assert opened == []
    # On the CPU it is nobody's business.
    sam_setup.sam_sessions(dataclasses.replace(CONFIG, sam_providers=CPU))
    assert [growth for _, _, growth in opened] == [told, told]


def test_a_command_has_growth_on_before_it_opens_a_session(opened, monkeypatch):
    monkeypatch.delenv(GROWTH)
    words = ["--sam_mode=online", "--sam_dir=a", f"--sam_providers={CUDA}"]
    assert run_command(Config, "p", words, lambda config: len(sam_setup.sam_sessions(config)) - 1) == 0
    assert [growth for _, _, growth in opened] == ["true"]


def test_what_the_user_says_of_growth_stands(opened, monkeypatch, capsys):
    monkeypatch.setenv(GROWTH, "false")
    words = ["--sam_mode=online", "--sam_dir=a", f"--sam_providers={CUDA}"]
    assert run_command(Config, "p", words, lambda config: len(sam_setup.sam_sessions(config))) == 1
    assert "error: Expected TF_FORCE_GPU_ALLOW_GROWTH=true" in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize(
    ("changes", "dims", "warned"),
    [
        ({}, 2, True),
        ({"sam_margin_vox": (0, 2)}, 3, True),
        ({"sam_margin_vox": (0, 2)}, 2, False),
        ({"sam_axis": (0, 1)}, 2, False),
        ({"sam_dir": "a,b"}, 3, False),
        ({"sam_trust": "prior"}, 2, False),
    ],
)
def test_agreement_of_a_single_answer_is_warned_of(opened, monkeypatch, caplog, changes, dims, warned):
    monkeypatch.setattr(sam_setup.SamSession, "manifest", types.SimpleNamespace(dims=dims))
    config = Config(**{"sam_mode": "cached", "sam_dir": "a", "sam_trust": "agreement", "sam_providers": CPU} | changes)
    sam_setup.sam_sessions(config)
    assert ("a single answer of SAM" in caplog.text) == warned
