"""Settings of a run: presets, JSON, contradictions."""

import dataclasses
import json
from pathlib import Path

import pytest

from semisam_tf.config import PRESETS, Config, validate
from semisam_tf.options import OptionError, parse
from semisam_tf.pseudolabel import PseudolabelConfig
from semisam_tf.rank import RankConfig

GOOD = Config(data_dir="data", workdir="runs/x")


def test_json_round_trip():
    config = dataclasses.replace(GOOD, patch_size=(32, 48, 64), training_spacing_mm=(1.0, 1.5, 2.0))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_settings_are_named():
    with pytest.raises(OptionError, match="colour"):
        Config.from_dict(GOOD.to_dict() | {"colour": "red"})


def test_every_field_has_a_help_text():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith("."), field.name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_settings(name):
    config = Config(**{**PRESETS[name], "data_dir": "d", "workdir": "w"})
    validate(config)


def test_the_papers_setting():
    paper = Config(**PRESETS["paper"])
    assert (paper.batch_size, paper.labeled_per_batch, paper.patch_size) == (4, 1, (128, 128, 128))
    assert (paper.optimizer, paper.learning_rate, paper.momentum, paper.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (paper.max_steps, paper.lr_decay_every, paper.ema_decay, paper.filters) == (6000, 2500, 0.99, 16)
    assert (paper.consistency_weight, paper.sam_weight, paper.sam_ramp) == (0.1, 0.05, "down")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": ""}, "--data_dir is needed"),
        ({"workdir": ""}, "--workdir is needed"),
        ({"patch_size": (60, 64, 64)}, "multiples of 16"),
        ({"patch_size": (64, 64)}, "three sizes"),
        ({"labeled_per_batch": 5}, "at most --batch_size"),
        ({"labeled_per_batch": 4}, "learns from unlabelled items too: lower --labeled_per_batch"),
        ({"sam_mode": "online"}, "--sam_mode needs --sam_dir"),
        ({"sam_mode": "online", "sam_fusion": "mean"}, "--sam_mode needs --sam_dir"),
        ({"sam_mode": "cached"}, "--sam_mode=cached with --sam_fusion=mean can do without"),
        ({"method": "bidirectional_copy_paste", "copy_paste_start_step": 6000}, "below --max_steps"),
        ({"method": "bidirectional_copy_paste", "copy_paste_start_step": -1}, "at least 0"),
        ({"pseudo_label_weight": -0.5}, "finite values of at least 0"),
        (
            {"sam_mode": "cached", "sam_dir": "s", "method": "supervised", "labeled_per_batch": 4},
            "SAM teaches on unlabelled items",
        ),
        ({"lower_percentile": 60.0, "upper_percentile": 50.0}, "lower < upper"),
        ({"training_spacing_mm": (1.0, 0.0, 1.0)}, "above 0"),
        ({"n_classes": 1}, "expected 2 to 256"),
        ({"coarse_patch_size": (48, 48)}, "--coarse_patch_size: expected three multiples of 16"),
        ({"coarse_patch_size": (48, 48, 40)}, "--coarse_patch_size: expected three multiples of 16"),
        ({"coarse_spacing_mm": ()}, "--coarse_spacing_mm: expected three values"),
        ({"coarse_steps": 0}, "--coarse_steps: expected at least 1"),
        ({"sam_cache_gib": -1.0}, "--sam_cache_gib: expected a finite value of at least 0"),
        ({"sam_cache_gib": float("nan")}, "--sam_cache_gib: expected a finite value"),
        ({"region_margin_mm": -1.0}, "--region_margin_mm: expected a finite value of at least 0"),
        ({"method": "magic"}, "--method: expected one of"),
        ({"log_every": 0}, "at least 1"),
        ({"sam_points": 0}, "--sam_points: expected at least 1"),
        ({"sam_prompts": "box,text"}, "--sam_prompts: expected auto, or some of box, point and mask"),
        ({"sam_prompts": ""}, "--sam_prompts: expected auto"),
        ({"sam_gpu_mem_gib": -1.0}, "--sam_gpu_mem_gib and --sam_gpu_id: expected finite values of at least 0"),
        ({"sam_gpu_mem_gib": float("nan")}, "--sam_gpu_mem_gib and"),
        (
            {"sam_mode": "online", "sam_dir": "s", "sam_trust": "iou, prior"},
            "--sam_trust=prior: expected whole scans",
        ),
        ({"sam_gpu_id": -1}, "--sam_gpu_mem_gib and --sam_gpu_id: expected finite values of at least 0"),
    ],
)
def test_contradictions_name_the_fix(changes, message):
    with pytest.raises(OptionError, match=message):
        validate(dataclasses.replace(GOOD, **changes))


def test_every_sam_folder_is_asked():
    assert dataclasses.replace(GOOD, sam_dir="a, b").sam_folders() == ("a", "b")
    assert GOOD.sam_folders() == ()


@pytest.mark.parametrize("command", [PseudolabelConfig, RankConfig])
def test_later_commands_ask_sam_where_the_run_did_unless_told_otherwise(command):
    run = dataclasses.replace(GOOD, sam_providers="CUDAExecutionProvider", sam_gpu_id=1, sam_gpu_mem_gib=4.0)
    assert run.with_device_of(command()) == run
    # GPU 0 is a GPU, not the absence of a flag.
    elsewhere = command(sam_providers="CPUExecutionProvider", sam_gpu_id=0, sam_gpu_mem_gib=2.5)
    changes = {"sam_providers": "CPUExecutionProvider", "sam_gpu_id": 0, "sam_gpu_mem_gib": 2.5}
    assert run.with_device_of(elsewhere) == dataclasses.replace(run, **changes)
    with pytest.raises(OptionError, match="--sam_gpu_mem_gib"):
        run.with_device_of(command(sam_gpu_mem_gib=float("inf")))


@pytest.mark.parametrize("name", ["quickstart", "la_1", "la_2", "la_4", "la_paper", "la_table"])
def test_flagfiles_of_the_repository(repo_root: Path, name, monkeypatch):
    monkeypatch.chdir(repo_root)
    config = parse(Config, [f"--flagfile=configs/{name}.flags", "--data_dir=d", "--workdir=w"], PRESETS)
    validate(config)
    assert config.preset == ("paper" if name == "la_paper" else "cpu")
    if name in ("la_1", "la_2", "la_4"):
        assert config.labeled == name[-1]


def test_a_plain_supervised_run_fills_its_batches_with_labelled_items():
    assert dataclasses.replace(GOOD, method="supervised", labeled_per_batch=2).labelled_items() == 4
    assert dataclasses.replace(GOOD, method="supervised", sam_mode="online", labeled_per_batch=2).labelled_items() == 2
    assert dataclasses.replace(GOOD, method="mean_teacher", labeled_per_batch=2).labelled_items() == 2
