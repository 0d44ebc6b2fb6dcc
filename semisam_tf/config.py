"""Every setting of a run in one frozen dataclass. Flags are made from its fields; it is saved beside every model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from semisam_tf.options import OptionError, check_choices, option

# How windows cover a scan wherever one is predicted. The plain mean over much overlap is the mean of more predictions a
# voxel: on the development scans of LA more accurate than Gaussian weights over half the overlap (README).
WINDOW_OVERLAP = 0.75
WINDOW_BLEND = "uniform"
WINDOW_BLENDS = ("uniform", "gaussian")

FRAMEWORK_NAMES = (
    "supervised", "mean_teacher", "uncertainty_aware_mean_teacher", "bidirectional_copy_paste",
    "cross_pseudo_supervision", "deep_adversarial_network",
)  # fmt: skip
# Flags that say where SAM runs, of training and of the commands that ask a finished run's SAM again.
SAM_DEVICE_FLAGS = ("sam_providers", "sam_gpu_id", "sam_gpu_mem_gib")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a 3D segmentation network from few labelled and many unlabelled scans, taught by SAM."""

    preset: str = option("", "Starting values: the paper's setting or one for CPUs; flags override.")

    # Data
    data_dir: str = option("", "Folder of scans, in any layout that README lists.")
    workdir: str = option("", "Folder of this run: checkpoints, logs, weights. The same command again resumes it.")
    train_list: str = option("", "File of training case names, one a line. Empty: <data_dir>/train.list.")
    labeled: str = option("1", "How many of the list's first cases are labelled, or a file of labelled case names.")
    exclude_cases: str = option("", "File of cases that training must not touch at all.")
    quickstart_cohort: bool = option(False, "Make the simulated quick-start cohort in data_dir if it is absent.")
    cohort_classes: str = option(
        "lungs",
        "Organs that the simulated cohort is labelled with.",
        choices=("lungs", "lungs_and_spine", "lumbar_spine"),
    )
    n_classes: int = option(2, "Number of classes with background.")
    default_spacing_mm: tuple[float, ...] = option((), "Voxel spacing x,y,z of files that store none.", unit="mm")
    training_spacing_mm: tuple[float, ...] = option(
        (), "Scans are resampled to this spacing x,y,z to train and predict. Empty: their own grid.", unit="mm"
    )
    lower_percentile: float = option(0.5, "Intensities below this percentile of the scan are clipped.", unit="percent")
    upper_percentile: float = option(99.5, "Intensities above this percentile are clipped.", unit="percent")
    scan_cache_dir: str = option(
        "",
        "Folder where scans are kept in the training grid and read from as crops need them, so that a cohort may be "
        "larger than memory; may be shared by runs. Empty: in memory.",
    )

    # Coarse to fine
    coarse_to_fine: bool = option(
        False, "Find the organs at a low resolution first; train and predict in their box alone (uncropped scans)."
    )
    coarse_spacing_mm: tuple[float, ...] = option((8.0, 8.0, 8.0), "Voxel spacing x,y,z of that first pass.", unit="mm")
    coarse_patch_size: tuple[int, ...] = option(
        (48, 48, 48), "Its window x,y,z: best so large that one holds a whole scan.", unit="voxels"
    )
    coarse_steps: int = option(200, "Steps of its network, on the labelled scans, before all others.", unit="steps")
    region_margin_mm: float = option(20.0, "The box reaches this far beyond what the first pass found.", unit="mm")

    # Batches and augmentation
    batch_size: int = option(4, "Items in a batch.", unit="items")
    labeled_per_batch: int = option(
        2, "Labelled items among them; they come first. Plain supervised runs fill the batch.", unit="items"
    )
    patch_size: tuple[int, ...] = option((112, 112, 80), "Size x,y,z of a training crop.", unit="voxels")
    foreground_fraction: float = option(0.0, "Share of labelled crops centred on a labelled voxel.", unit="0..1")
    augment: str = option("strong", "Set of augmentations to start from.", choices=("none", "paper", "strong"))
    augment_on: str = option("", "Augmentations to add, separated by commas; README lists their names.")
    augment_off: str = option("", "Augmentations to leave out, separated by commas.")
    data_workers: int = option(2, "Threads that prepare batches ahead.", unit="threads")

    # Network
    network: str = option("vnet", "Network.", choices=("vnet", "unet3d"))
    filters: int = option(16, "Filters of the first level.", unit="channels")
    normalisation: str = option("batch", "Normalisation layers.", choices=("batch", "instance", "group", "none"))
    dropout: float = option(0.5, "Spatial dropout rate at the bottleneck and before the output.", unit="0..1")

    # Method
    method: str = option("mean_teacher", "Semi-supervised framework.", choices=FRAMEWORK_NAMES)
    supervised_weight: float = option(1.0, "Weight of cross entropy and Dice (UA-MT publishes 0.5).")
    consistency_distance: str = option("mse", "Between student's and teacher's softmax.", choices=("mse", "kl"))
    consistency_weight: float = option(0.1, "Largest weight of the student-teacher term.")
    consistency_ramp_steps: int = option(6000, "The consistency weight ramps up over this.", unit="steps")
    ema_decay: float = option(0.99, "Longest memory of the teacher.", unit="0..1")
    ema_warmup: float = option(
        1.0,
        "How the teacher's memory grows, W in min(1 - W/(t + W), --ema_decay) at step t. 1 (the paper): the teacher is "
        "the plain mean of all students at first, the untrained ones too; more: late ones count more.",
    )
    teacher_noise: float = option(0.1, "Standard deviation of the teacher's input noise, clipped at twice that.")
    uncertainty_passes: int = option(8, "Noisy teacher passes of UA-MT.", unit="passes")
    copy_paste_start_step: int = option(
        0,
        "bidirectional_copy_paste: labelled crops are mixed among themselves before this step, until the teacher is "
        "worth learning from.",
        unit="steps",
    )
    pseudo_label_weight: float = option(
        0.5, "bidirectional_copy_paste: what the teacher's labels count, where real ones count 1."
    )
    discriminator_learning_rate: float = option(1e-4, "deep_adversarial_network: learning rate of the adversary.")
    eval_model: str = option(
        "auto",
        "Which weights the run is judged and served by. auto: the teacher.",
        choices=("auto", "student", "teacher"),
    )
    largest_component: bool = option(
        False,
        "Predictions keep the largest connected component of each class; what SAM is asked about, and targets rest on, "
        "no small pieces beside it.",
    )

    # Precision and memory
    precision: str = option(
        "float32",
        "What networks compute in while they train; weights and losses stay float32. bfloat16: on GPUs only. float16 "
        "scales the loss, as its small gradients would be 0; on one device only.",
        choices=("float32", "bfloat16", "float16"),
    )
    micro_batch: int = option(
        0,
        "Items of a batch that go through a network at a time; 0: all. Fewer take less memory and a forward pass more. "
        "Losses are still of the whole batch; batch norm is of these items. An adversary takes the batch as it is.",
        unit="items",
    )

    # Devices
    devices: int = option(
        1,
        "Devices of this process that share each batch: GPUs, or where there is none, parts of the processor. Several "
        "processes share it by TF_CONFIG (docs/devices.md).",
        unit="devices",
    )

    # Optimiser
    optimizer: str = option("sgd", "sgd is the paper's: momentum, L2 in the gradient.", choices=("sgd", "adamw"))
    learning_rate: float = option(0.01, "Learning rate at the start.")
    momentum: float = option(0.9, "Momentum of sgd.")
    weight_decay: float = option(1e-4, "sgd: L2 added to the gradient of every parameter; adamw: decoupled.")
    lr_schedule: str = option("step", "How the learning rate falls.", choices=("step", "poly", "cosine", "constant"))
    lr_decay_every: int = option(2500, "The step schedule divides the rate by 10 this often.", unit="steps")
    max_steps: int = option(6000, "Length of training.", unit="steps")
    seed: int = option(0, "Seed of weights, batches, dropout and noise.")

    # SAM branch
    sam_mode: str = option(
        "off",
        "online: SAM on every batch's crops (the paper). cached: whole scans, each slice or window encoded once. "
        "offline: targets made beforehand, from --targets_dir or by the --rounds before.",
        choices=("off", "online", "cached", "offline"),
    )
    targets_dir: str = option("", "offline: folder of targets that semisam_tf.pseudolabel wrote.")
    rounds: int = option(
        1,
        "offline: rounds of self-training. Each starts afresh on the targets that the one before made for the "
        "unlabelled scans, from its own predictions, fused with SAM's where --sam_dir is given.",
        unit="rounds",
    )
    round_steps: int = option(0, "Length of each round but the last; 0: as long as the last.", unit="steps")
    sam_loss: str = option("mse", "Distance of the student from the target.", choices=("mse", "cross_entropy"))
    sam_dir: str = option("", "Folder of a SAM export; the answers of several, separated by commas, are fused.")
    sam_start_step: int = option(0, "SAM teaches from this step on.", unit="steps")
    sam_weight: float = option(0.05, "Largest weight of the SAM term (paper: 0.5 x 0.1).")
    sam_ramp: str = option("down", "down: SAM lets go towards the end (paper).", choices=("down", "constant"))
    sam_prompts_from: str = option("teacher", "Whose prediction prompts SAM.", choices=("student", "teacher"))
    oracle_prompts: bool = option(
        False,
        "Prompt SAM with the GROUND TRUTH of the unlabelled scans, as the published code does: only to repeat its "
        "figures. The run is marked.",
    )
    sam_prompts: str = option(
        "auto",
        "Kinds of prompts: box, point, mask, separated by commas. auto: box if the SAM knows boxes, else point.",
    )
    sam_points: int = option(1, "Clicks in each component, where points are prompts.", unit="points")
    sam_point_choice: str = option(
        "innermost",
        "Which voxels are clicked. innermost: those farthest from the component's border. surest: so, too, but of the "
        "half of the component that the prediction is surest of, by its entropy.",
        choices=("innermost", "surest"),
    )
    sam_trust: str = option(
        "iou",
        "Weight of SAM's answers: one, or the product of some of iou, prediction, continuity, agreement, prior, "
        "selftest.",
    )
    sam_selftest: bool = option(
        False, "Before training, find out on the labelled scans up to which Dice SAM helps. Trust selftest does so too."
    )
    sam_fusion: str = option(
        "sam",
        "The student's target: SAM's mask (the paper), or the mean of both probabilities.",
        choices=("sam", "mean"),
    )
    sam_smoothing_vox: float = option(0.0, "Gaussian that smooths the fused probabilities.", unit="voxels")
    sam_axis: tuple[int, ...] = option(
        (2,), "Axes along which a scan is cut into slices; the answers are fused. A 3D SAM ignores it."
    )
    sam_channel: int = option(0, "Image channel that SAM sees.")
    sam_margin_vox: tuple[int, ...] = option(
        (2,), "Boxes are drawn this much around a component; answers are fused. A 3D SAM ignores it.", unit="voxels"
    )
    sam_min_area_vox: int = option(
        8, "Smaller components of a slice (of a scan for a 3D SAM) are not prompted.", unit="voxels"
    )
    sam_slice_step: int = option(
        1, "Every so manieth slice of a scan or crop is prompted. A 3D SAM ignores it.", unit="slices"
    )
    sam_max_slices: int = option(
        0,
        "online: prompt at most this many slices a crop, drawn at random; 0: all. A 3D SAM ignores it.",
        unit="slices",
    )
    sam_refresh_visits: int = option(10, "cached: a scan's target is made anew every so many visits.", unit="visits")
    sam_cache_dir: str = option("", "Embeddings on disk; may be shared by runs. Empty: <workdir>/sam_cache.")
    sam_cache_gib: float = option(
        0.0, "Embeddings on disk take at most this much; scans unused for longest go first. 0: no limit.", unit="GiB"
    )
    sam_providers: str = option("CPUExecutionProvider", "ONNX Runtime providers, separated by commas.")
    sam_allow_cpu: bool = option(False, "Go on with the CPU when a provider asked for is not to be had.")
    sam_gpu_id: int = option(0, "CUDA's number of the GPU that SAM runs on.")
    sam_gpu_mem_gib: float = option(
        0.0, "Most memory that each of a SAM's two graphs may take for its tensors on the GPU; 0: no limit.", unit="GiB"
    )

    # Cadence
    log_every: int = option(20, "Progress and TensorBoard scalars.", unit="steps")
    image_every: int = option(200, "TensorBoard images.", unit="steps")
    checkpoint_every: int = option(100, "Checkpoints; the last two are kept.", unit="steps")

    def labelled_items(self) -> int:
        """Labelled items of a batch: all of them where nothing learns from unlabelled ones."""
        nothing_else = self.method == "supervised" and self.sam_mode == "off"
        return self.batch_size if nothing_else else self.labeled_per_batch

    def sam_folders(self) -> tuple[str, ...]:
        """The folders of `sam_dir`."""
        return tuple(part.strip() for part in self.sam_dir.split(",") if part.strip())

    def with_device_of(self, command: Any) -> Config:
        """These settings, with SAM where a later command wants it, which may run on another machine.

        Args:
            command: A dataclass with the fields of `SAM_DEVICE_FLAGS`; their defaults stand for the run's own.

        Raises:
            OptionError: From `check_sam_device`.
        """
        fields = {field.name: field for field in dataclasses.fields(command)}
        given = {name: getattr(command, name) for name in SAM_DEVICE_FLAGS}
        changed = dataclasses.replace(self, **{n: value for n, value in given.items() if value != fields[n].default})
        check_sam_device(changed)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Inverse of `to_dict`. Raises OptionError for names that this version does not know."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise OptionError(f"Settings unknown to this version of semisam-tf: {', '.join(unknown)}.")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


PRESETS: dict[str, dict[str, Any]] = {
    # Reference: SemiSAM 6716784 (shared/FACTS.md section 1); UA-MT: add --method, 112,112,80, 2 labelled, weight 0.5.
    "paper": {
        "lower_percentile": 0.0,
        "upper_percentile": 100.0,
        "batch_size": 4,
        "labeled_per_batch": 1,
        "patch_size": (128, 128, 128),
        "augment": "paper",
        "network": "vnet",
        "filters": 16,
        "normalisation": "batch",
        "dropout": 0.5,
        "consistency_weight": 0.1,
        "copy_paste_start_step": 2000,
        "consistency_ramp_steps": 6000,
        "ema_decay": 0.99,
        "teacher_noise": 0.1,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "lr_schedule": "step",
        "lr_decay_every": 2500,
        "max_steps": 6000,
        "eval_model": "student",
        "largest_component": True,
        "sam_weight": 0.05,
        "sam_ramp": "down",
        "sam_trust": "one",
        "sam_prompts_from": "student",
    },
    # Measured on two CPU cores; a flagfile adds the training spacing (half the resolution of the data).
    "cpu": {
        "batch_size": 4,
        "labeled_per_batch": 2,
        "patch_size": (64, 64, 48),
        "foreground_fraction": 0.5,
        "augment": "strong",
        "network": "vnet",
        "filters": 8,
        "normalisation": "instance",
        "dropout": 0.1,
        "consistency_weight": 1.0,
        "consistency_ramp_steps": 300,
        # A teacher of 100 steps calls far too much the organ, and its students then do so for good (docs/results.md).
        "copy_paste_start_step": 400,
        "ema_decay": 0.99,
        "uncertainty_passes": 4,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 1e-2,
        "lr_schedule": "cosine",
        "max_steps": 800,
        "sam_weight": 0.5,
        "sam_ramp": "constant",
        # A target takes two steps' time: every 10 visits it would make the mean step 1.4 times as long, so 1.1 times.
        "sam_refresh_visits": 50,
    },
}


def check_sam_device(config: Config) -> None:
    """Raises OptionError for a GPU or a limit of memory that cannot be."""
    if not 0 <= config.sam_gpu_mem_gib < math.inf or config.sam_gpu_id < 0:
        raise OptionError(
            "--sam_gpu_mem_gib and --sam_gpu_id: expected finite values of at least 0. "
            f"Received: {config.sam_gpu_mem_gib} and {config.sam_gpu_id}."
        )


def validate(config: Config) -> None:
    """Raises OptionError for settings that cannot work together; each message names the fix."""
    check_choices(config)
    check_sam_device(config)
    weights = (
        config.supervised_weight, config.consistency_weight, config.sam_weight, config.weight_decay, config.momentum,
        config.learning_rate, config.teacher_noise, config.pseudo_label_weight,
        config.discriminator_learning_rate,
    )  # fmt: skip
    prompts = {part.strip() for part in config.sam_prompts.split(",") if part.strip()}
    rules = [
        (not config.data_dir, "--data_dir is needed: the folder of scans."),
        (not config.workdir, "--workdir is needed: a folder for checkpoints and results."),
        (not 2 <= config.n_classes <= 256, "--n_classes counts the background: expected 2 to 256."),
        (config.seed < 0, "--seed: expected at least 0."),
        (
            not all(math.isfinite(v) and v >= 0 for v in weights),
            "Weights, rates, noise and momentum: expected finite values of at least 0.",
        ),
        (
            min(config.max_steps, config.filters, config.data_workers, config.lr_decay_every, config.devices) < 1,
            "--max_steps, --filters, --data_workers, --lr_decay_every and --devices: expected at least 1.",
        ),
        (not 0 <= config.dropout < 1, "--dropout: expected a rate in [0, 1)."),
        (not 0 <= config.ema_decay < 1, "--ema_decay: expected a value in [0, 1)."),
        (not 0 < config.ema_warmup < math.inf, "--ema_warmup: expected a finite value above 0."),
        (not 0 <= config.foreground_fraction <= 1, "--foreground_fraction: expected a share in [0, 1]."),
        (
            not 0 <= config.lower_percentile < config.upper_percentile <= 100,
            "--lower_percentile and --upper_percentile: expected 0 <= lower < upper <= 100.",
        ),
        (len(config.patch_size) != 3, "--patch_size: expected three sizes x,y,z, as 64,64,48."),
        (
            any(n < 16 or n % 16 for n in config.patch_size),
            "--patch_size: expected multiples of 16, since the networks halve a crop four times.",
        ),
        (
            len(config.coarse_patch_size) != 3 or any(n < 16 or n % 16 for n in config.coarse_patch_size),
            "--coarse_patch_size: expected three multiples of 16 x,y,z, as 48,48,48.",
        ),
        (
            len(config.coarse_spacing_mm) != 3 or any(s <= 0 for s in config.coarse_spacing_mm),
            "--coarse_spacing_mm: expected three values x,y,z above 0, as 8,8,8.",
        ),
        (config.micro_batch < 0, "--micro_batch: expected at least 0."),
        (config.coarse_steps < 1, "--coarse_steps: expected at least 1."),
        (
            not 0 <= config.region_margin_mm < math.inf,
            "--region_margin_mm: expected a finite value of at least 0.",
        ),
        (len(config.default_spacing_mm) not in (0, 3), "--default_spacing_mm: expected three values x,y,z."),
        (len(config.training_spacing_mm) not in (0, 3), "--training_spacing_mm: expected three values x,y,z."),
        (
            any(s <= 0 for s in config.default_spacing_mm + config.training_spacing_mm),
            "--default_spacing_mm and --training_spacing_mm: expected values above 0.",
        ),
        (
            not 1 <= config.labeled_per_batch <= config.batch_size,
            "--labeled_per_batch: expected at least 1 and at most --batch_size.",
        ),
        (
            config.method != "supervised" and config.labeled_per_batch == config.batch_size,
            f"--method={config.method} learns from unlabelled items too: lower --labeled_per_batch.",
        ),
        (not 1 <= config.uncertainty_passes <= 62, "--uncertainty_passes: expected 1 to 62."),
        (
            config.method == "bidirectional_copy_paste" and not 0 <= config.copy_paste_start_step < config.max_steps,
            "--copy_paste_start_step: expected at least 0 and below --max_steps, else no unlabelled crop is ever mixed "
            "in.",
        ),
        (
            not config.sam_folders()
            and (config.sam_mode == "online" or (config.sam_mode == "cached" and config.sam_fusion == "sam")),
            "--sam_mode needs --sam_dir: the folder of a SAM export; --sam_mode=cached with --sam_fusion=mean can do "
            "without and teaches the predictions alone.",
        ),
        (
            config.sam_mode == "offline" and config.rounds == 1 and not config.targets_dir,
            "--sam_mode=offline needs --targets_dir, as semisam_tf.pseudolabel writes it, or --rounds above 1.",
        ),
        (
            config.rounds > 1 and not config.sam_folders() and config.sam_fusion == "sam",
            "--rounds: expected --sam_dir, or --sam_fusion=mean to learn from the predictions alone.",
        ),
        (
            config.rounds < 1 or config.round_steps < 0 or (config.rounds > 1 and config.sam_mode != "offline"),
            "--rounds, --round_steps: expected at least 1 and 0; more rounds than 1 go with --sam_mode=offline.",
        ),
        (
            config.sam_mode != "off" and config.labeled_per_batch == config.batch_size,
            "SAM teaches on unlabelled items: lower --labeled_per_batch or set --sam_mode=off.",
        ),
        (
            config.sam_prompts != "auto" and not (prompts and prompts <= {"box", "point", "mask"}),
            "--sam_prompts: expected auto, or some of box, point and mask, separated by commas.",
        ),
        (
            config.sam_mode == "online" and "prior" in config.sam_trust.replace(",", " ").split(),
            "--sam_trust=prior: expected whole scans, since a crop's organ has no size and place to compare. Choose "
            "--sam_mode=cached or offline, or another trust.",
        ),
        (
            config.oracle_prompts and config.sam_mode not in ("online", "cached"),
            "--oracle_prompts prompts SAM with labels: choose --sam_mode=online or cached, or leave it out.",
        ),
        (
            not config.sam_axis
            or not set(config.sam_axis) <= {0, 1, 2}
            or len(set(config.sam_axis)) < len(config.sam_axis),
            "--sam_axis: expected some of 0, 1 and 2, each once.",
        ),
        (
            not config.sam_margin_vox or min(config.sam_margin_vox) < 0 or config.sam_smoothing_vox < 0,
            "--sam_margin_vox: expected at least one number, and like --sam_smoothing_vox none below 0.",
        ),
        (
            not 0 <= config.sam_cache_gib < math.inf,
            "--sam_cache_gib: expected a finite value of at least 0, where 0 is no limit.",
        ),
        (
            min(config.log_every, config.image_every, config.checkpoint_every) < 1,
            "--log_every, --image_every and --checkpoint_every: expected at least 1.",
        ),
        (
            min(config.sam_refresh_visits, config.sam_slice_step, config.sam_points) < 1,
            "--sam_refresh_visits, --sam_slice_step and --sam_points: expected at least 1.",
        ),
        (
            min(config.sam_max_slices, config.sam_channel, config.sam_start_step) < 0,
            "--sam_max_slices, --sam_channel and --sam_start_step: expected at least 0.",
        ),
    ]
    for broken, message in rules:
        if broken:
            raise OptionError(message)
