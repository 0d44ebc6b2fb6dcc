"""From a scan to its mask with a trained network: one way for `evaluate`, `predict`, serving and SAM's prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from semisam_tf.config import WINDOW_BLEND, WINDOW_OVERLAP, Config
from semisam_tf.data.augment_config import augment_of
from semisam_tf.data.orientation import AxisOrder, axis_code, axis_order
from semisam_tf.data.preprocess import preprocessing_of
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import largest_component, without_islands
from semisam_tf.inference.region import Locator, Region
from semisam_tf.inference.run_folder import REMEDY, read_result, read_run
from semisam_tf.inference.sliding_window import predict_probs, predict_whole
from semisam_tf.models.folding import folded_into
from semisam_tf.models.registry import build_network
from semisam_tf.models.softmax import softmax

# Share of a prediction's largest piece below which another is left out of targets. Chosen on the left atrium's
# development scans; what it does to predictions there is in docs/results.md.
SMALLEST_PIECE = 0.3
# Told how many windows are done, and of how many.
OnWindow = Callable[[int, int], None]
# A network's seed is this beyond twice the run's: all start from other weights and drop other channels, and no run's
# second student is another run's first.
SEED_OFFSETS = {"student": 0, "teacher": 1, "second": 2**40, "discriminator": 2**40 + 1, "coarse": 2**40 + 2}


def network_of(config: Config, channels: int, name: str, precision: str = "float32") -> keras.Model:
    """A fresh network of a run, weights drawn from the run's seed; `name`: "student", "teacher" or "second".

    Args:
        precision: What it computes in; weights and logits are float32.
    """
    return build_network(
        config.network,
        input_channels=channels,
        n_classes=config.n_classes,
        filters=config.filters,
        normalisation=config.normalisation,
        dropout=config.dropout,
        # The teacher's own initial weights are overwritten; what counts is that it drops other channels.
        seed=2 * config.seed + SEED_OFFSETS[name],
        name=name,
        precision=precision,
    )


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one scan, on the grid and in the axis order of the scan as loaded.

    Attributes:
        probs: float32 [X, Y, Z, K]; sums to 1 over the classes.
        mask: uint8 [X, Y, Z]: their argmax, and of each class only the largest piece where the run says so.
        region: Where the network looked. Everywhere, unless the run is coarse to fine: then all outside is background,
            with probability 1.
    """

    probs: np.ndarray
    mask: np.ndarray
    region: Region


def flips_of(config: Config) -> str:
    """Axes that training mirrored, of "xyz"."""
    return augment_of(config).flip


class Predictor:
    """Predicts whole scans: orientation, normalisation, training spacing, sliding window, and back.

    Args:
        config: Settings of the run that trained `model`.
        model: [B, x, y, z, C] -> logits [B, x, y, z, K]. Its weights may change between calls.
        overlap: Share of a window that neighbouring windows have in common.
        orientation: Axis code of the scans that `model` was trained on, such as "RAS": scans are turned to it and
            their masks back. None: scans are taken in the order of their files.
        flips: Axes, of "xyz" in the model's orientation: the probabilities of each window are averaged over every
            choice of them to mirror.
        window_batch: Windows in one call of the network.
        blend: "gaussian" trusts the middle of a window most; "uniform" is the plain mean.
        whole_scan: Windows are as large as the scan (`predict_whole`), whatever `overlap` and `blend` say.
        coarse_model: The coarse network of a coarse-to-fine run. Without it such a run predicts crops and scans in the
            training grid (`crop_probs`, `probs`), but no scan as loaded.
    """

    def __init__(
        self,
        config: Config,
        model: keras.Model,
        overlap: float = WINDOW_OVERLAP,
        *,
        orientation: str | None = None,
        flips: str = "",
        window_batch: int = 1,
        blend: str = WINDOW_BLEND,
        whole_scan: bool = False,
        coarse_model: keras.Model | None = None,
    ) -> None:
        self.config, self.overlap, self.orientation, self.whole_scan = config, overlap, orientation, whole_scan
        self.window_batch, self.blend = window_batch, blend
        axes = ["Bxyz".index(axis) for axis in flips]  # of [B, x, y, z, C]
        self._mirrored = [
            np.array(some, np.int32) for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)
        ]
        self.preprocessing = preprocessing_of(config)
        self.locator = None if coarse_model is None else Locator(config, coarse_model)
        self.channels = model.input_shape[-1]
        # Traced once per batch size: instance normalisation is faster where the size is known. Whole scans are all of
        # other sizes, and tracing takes longer than predicting one.
        any_size = [tf.TensorSpec([None, None, None, None, self.channels])] if whole_scan else None
        self._forward = tf.function(lambda x: softmax(model(x, training=False)), input_signature=any_size)

    def crop_probs(self, images: np.ndarray) -> np.ndarray:
        """Softmax of crops [B, *patch_size, C] -> [B, *patch_size, K] float32."""
        images = tf.convert_to_tensor(images, tf.float32)
        if len(self._mirrored) == 1:
            return self._forward(images).numpy()
        probs = [tf.reverse(self._forward(tf.reverse(images, axes)), axes) for axes in self._mirrored]
        return tf.add_n(probs).numpy() / len(probs)

    def probs(self, image: np.ndarray, on_window: OnWindow | None = None) -> np.ndarray:
        """Softmax of a scan in the training grid, normalised, [x, y, z, C] -> [x, y, z, K] float32."""
        if self.whole_scan:
            return predict_whole(self.crop_probs, image, on_window=on_window)
        return predict_probs(
            self.crop_probs,
            image,
            self.config.patch_size,
            overlap=self.overlap,
            blend=self.blend,
            window_batch=self.window_batch,
            on_window=on_window,
        )

    def probs_for_targets(self, image: np.ndarray) -> np.ndarray:
        """As `probs`, of a scan that somebody is to learn from, with SAM or without.

        Where organs are in one piece false islands are background: each would get a box of its own, and be taught.
        """
        return self.for_targets(self.probs(image))

    def for_targets(self, probs: np.ndarray) -> np.ndarray:
        """What `probs_for_targets` makes of a whole scan's `probs`."""
        return without_islands(probs, SMALLEST_PIECE) if self.config.largest_component else probs

    def axis_order(self, volume: Volume) -> AxisOrder:
        """How a scan is turned to the model's orientation: not at all, where the model's or its own is unknown."""
        if self.orientation is None or not volume.has_orientation:
            return AxisOrder()
        return axis_order(axis_code(volume.affine), self.orientation)

    def require_own_orientation(self, volume: Volume) -> None:
        """Refuses a scan that `predict` would turn, where the caller goes on in the scan's own grid.

        Raises:
            ValueError: Its axes run otherwise than those of the scans that the model was trained on.
        """
        if self.axis_order(volume) != AxisOrder():
            raise ValueError(
                f"Case {volume.case_id!r}: expected a scan of orientation {self.orientation}, as in training. "
                f"Received: {axis_code(volume.affine)}. python -m semisam_tf.prepare brings scans to one orientation."
            )

    def predict(self, volume: Volume, on_window: OnWindow | None = None) -> Prediction:
        """Probabilities and class of every voxel of a scan as loaded, in the scan's own grid.

        The probabilities are interpolated linearly to the scan's grid; the mask is their argmax there.

        Args:
            volume: Its label, if it has one, is not looked at.
            on_window: Told after each call of the network how many windows are done, and of how many.

        Raises:
            ValueError: The scan has another number of channels than the network.
        """
        if volume.image.shape[-1] != self.channels:
            raise ValueError(
                f"Case {volume.case_id!r}: expected {self.channels} image channels, as in training. "
                f"Received: {volume.image.shape[-1]}."
            )
        order = self.axis_order(volume)
        turned = order.apply_to(dataclasses.replace(volume, label=None))
        region = self._region(turned)
        grid = self.preprocessing.to_training_grid(region.crop(turned), self.config.n_classes)
        probs = self.preprocessing.probs_to_own_grid(self.probs(grid.image, on_window), region.size)
        mask = np.argmax(probs, axis=-1).astype(np.uint8)
        # Before turning back: which of two equal pieces stays must not depend on how the file is stored.
        mask = largest_component(mask) if self.config.largest_component else mask
        probs, mask = region.paste_probs(probs, turned.size), region.paste(mask, turned.size)
        back = order.inverse
        return Prediction(
            np.ascontiguousarray(back.apply(probs)),
            np.ascontiguousarray(back.apply(mask)),
            region.turned(back, turned.size),
        )

    def _region(self, volume: Volume) -> Region:
        """Where to look in a scan that is turned as the model knows scans."""
        if not self.config.coarse_to_fine:
            return Region.whole(volume)
        if self.locator is None:
            raise ValueError("Expected a coarse network, since the run is coarse to fine. Received: coarse_model=None.")
        return self.locator.locate(volume)

    def training_grid(self, volume: Volume) -> Volume:
        """A scan as loaded, as the network sees it: turned, cut to its region, normalised, in the training spacing."""
        turned = self.axis_order(volume).apply_to(dataclasses.replace(volume, label=None))
        return self.preprocessing.to_training_grid(self._region(turned).crop(turned), self.config.n_classes)

    def mask(self, volume: Volume) -> np.ndarray:
        """`predict(volume).mask`: uint8 [X, Y, Z]."""
        return self.predict(volume).mask

    def mask_to_own_grid(self, mask: np.ndarray, volume: Volume) -> np.ndarray:
        """A mask uint8 [x, y, z] in the training grid of a scan, brought to the scan's own grid and axis order.

        Of a coarse-to-fine run it is in the grid of the scan's region.

        Raises:
            ValueError: The mask is not on that grid.
        """
        order = self.axis_order(volume)
        turned = order.apply_to(dataclasses.replace(volume, label=None))
        region = self._region(turned)
        size = self.preprocessing.training_size(region.size, turned.spacing_mm)
        if mask.shape != size:
            raise ValueError(
                f"Expected a mask of case {volume.case_id!r} on the training grid, {size}. Received: {mask.shape}."
            )
        one_hot = np.eye(self.config.n_classes, dtype=np.float32)[mask]
        probs = self.preprocessing.probs_to_own_grid(one_hot, region.size)
        own = region.paste(np.argmax(probs, axis=-1).astype(np.uint8), turned.size)
        return np.ascontiguousarray(order.inverse.apply(own))


def chosen_model(config: Config, wanted: str = "auto") -> str:
    """ "student" or "teacher": what is asked for, else what the run decided, else the teacher.

    The teacher is the average of many students and steadier where labels are few; choosing it takes no label.
    """
    for choice in (wanted, config.eval_model):
        if choice != "auto":
            return choice
    return "teacher"


def require_local(config: Config) -> None:
    """Raises ValueError unless the run's network says the same of a voxel however large its window is."""
    if config.normalisation not in ("batch", "none"):
        raise ValueError(
            "--whole_scan: expected a run trained with --normalisation=batch or none. Received: "
            f"--normalisation={config.normalisation}, whose statistics are those of a whole window: in a larger one "
            "than it was trained on the network is worse."
        )


def load_network(workdir: Path, record: dict[str, Any], which: str) -> keras.Model:
    """The network of a run with its trained weights, to predict with: batch norm is taken into the convolutions.

    Args:
        record: From `read_run`.
        which: "student", "teacher" or "coarse".

    Raises:
        ValueError: The weights are missing, damaged, or of another network.
    """
    model, path = network_of(record["config"], record["channels"], which), workdir / f"{which}.weights.h5"
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"Expected the weights of the run in {path}. Received: {reason}. {REMEDY}") from error
    if record["config"].normalisation != "batch":
        return model
    plain = dataclasses.replace(record["config"], normalisation="none")
    return folded_into(network_of(plain, record["channels"], which), model)


def load_coarse_network(workdir: Path, record: dict[str, Any]) -> keras.Model | None:
    """The network that finds the organs, of a coarse-to-fine run; None of any other."""
    return load_network(workdir, record, "coarse") if record["config"].coarse_to_fine else None


def load_predictor(
    workdir: Path,
    wanted: str = "auto",
    overlap: float = WINDOW_OVERLAP,
    *,
    tta: bool = False,
    window_batch: int = 1,
    blend: str = WINDOW_BLEND,
    whole_scan: bool = False,
) -> tuple[Predictor, str]:
    """The finished run of `workdir` as a Predictor, and which weights it uses ("student" or "teacher").

    Args:
        tta: Averages over the flips that training made; a network that saw none is wrong about mirrored scans.
        whole_scan: See `Predictor`.

    Raises:
        FileNotFoundError: No run there, or it is not finished.
        ValueError: `tta` of a run that was trained without flips; `whole_scan` of one whose network looks at all of a
            window; a file of the run is damaged.
    """
    record = read_run(workdir)
    if whole_scan:
        require_local(record["config"])
    flips = flips_of(record["config"]) if tta else ""
    if tta and not flips:
        raise ValueError(
            f"--tta: expected a run trained with flips (--augment_on=flip). Received: {workdir}, trained without: "
            "averaging over mirrored scans would make it worse."
        )
    which = chosen_model(record["config"], wanted)
    read_result(workdir)
    model = load_network(workdir, record, which)
    # Runs of older versions have no orientation: their scans were taken in the order of their files, too.
    orientation = record.get("orientation")
    predictor = Predictor(
        record["config"],
        model,
        overlap,
        orientation=orientation,
        flips=flips,
        window_batch=window_batch,
        blend=blend,
        whole_scan=whole_scan,
        coarse_model=load_coarse_network(workdir, record),
    )
    return predictor, which
