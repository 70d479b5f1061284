"""A detector built from a config: model, anchors, inputs, loss and detections."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.models.parts import frozen_norms, split_names, stop_frozen
from scratchdet_jax.models.ssd import SSD, build_model, feature_sizes
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops.anchors import AnchorSpecification, anchors_per_cell, make_anchors
from scratchdet_jax.ops.augment import AugmentOptions, augment
from scratchdet_jax.ops.losses import MultiBoxSums, multibox_sums
from scratchdet_jax.ops.matching import Targets, match
from scratchdet_jax.ops.nms import Detections, select_detections

Batch = dict[str, jax.Array]


class Detector(NamedTuple):
    """The functions shared by training, evaluation and prediction; pure functions of arrays.

    Attributes:
        config: the run's config.
        model: Flax module; `model.apply(variables, images, train)` returns class logits
            [B, A, C+1] and box offsets [B, A, 4].
        anchors: float32 [A, 4], (ymin, xmin, ymax, xmax) normalised, not clipped.
        class_names: names of the labels 1…C.
    """

    config: ml_collections.ConfigDict
    model: SSD
    anchors: np.ndarray
    class_names: tuple[str, ...]

    def normalize(self, images: jax.Array) -> jax.Array:
        """Turns RGB pixels 0…255 into network input: (pixel − mean) / std, `config.normalize`."""
        settings = self.config.normalize
        return (images - jnp.asarray(settings.mean)) / jnp.asarray(settings.std)

    def inputs(self, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Targets]:
        """Augments a training batch and matches its boxes to the anchors.

        Args:
            batch: image uint8 [b, H, W, 3], size [b, 2], boxes [b, M, 4], labels and ignore [b, M].
            keys: one random key per image, [b].

        Returns:
            Normalised images float32 [b, S, S, 3], and Targets with a leading axis b.
        """
        config, options = self.config, augment_options(self.config)

        def one(key: jax.Array, example: Batch) -> tuple[jax.Array, Targets]:
            image, boxes, labels, ignore = augment(
                key,
                example["image"],
                example["size"],
                example["boxes"],
                example["labels"],
                example["ignore"],
                options,
                config.image_size,
            )
            if not config.data.train_on_ignored:
                labels = jnp.where(ignore, 0, labels)
            return image, match(jnp.asarray(self.anchors), boxes, labels, config.loss.match_iou)

        used = {k: batch[k] for k in ("image", "size", "boxes", "labels", "ignore")}
        images, targets = jax.vmap(one)(keys, used)
        return self.normalize(images), targets

    def forward(
        self, params: Any, batch_stats: Any, images: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        """Applies the model in training mode, except for `config.freeze`.

        Returns:
            (Class logits, box offsets), and the updated running statistics.
        """
        frozen = split_names(self.config.freeze)
        variables = {"params": stop_frozen(params, frozen), "batch_stats": batch_stats}
        with frozen_norms(frozen):
            outputs, updated = self.model.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
        return outputs, updated.get("batch_stats", {})

    def loss(
        self, params: Any, batch_stats: Any, images: jax.Array, targets: Targets
    ) -> tuple[MultiBoxSums, Any]:
        """Computes the sums of the loss in training mode; the loss is total / positives.

        Args:
            params: parameters of the model.
            batch_stats: running statistics of BatchNorm.
            images: float32 [b, S, S, 3], normalised.
            targets: from `inputs`.

        Returns:
            The sums, and the updated running statistics.
        """
        (logits, offsets), batch_stats = self.forward(params, batch_stats, images)
        ratio = self.config.loss.negative_ratio
        with jax.named_scope("loss"):
            sums = multibox_sums(logits, offsets, targets.labels, targets.offsets, ratio)
        return sums, batch_stats

    def detect(self, variables: dict[str, Any], images: jax.Array) -> Detections[jax.Array]:
        """Detects objects in a batch of normalised images; `config.eval` holds the thresholds.

        Args:
            variables: `params` and `batch_stats`.
            images: float32 [B, S, S, 3], normalised.

        Returns:
            Detections with boxes [B, K, 4], scores [B, K], labels [B, K].
        """
        outputs: Any = self.model.apply(variables, images, train=False)
        class_logits, box_offsets = outputs
        with jax.named_scope("detections"):
            probabilities = jax.nn.softmax(class_logits, axis=-1)
            boxes = box_ops.decode(box_offsets, self.anchors)
            settings = self.config.eval
            return jax.vmap(
                lambda b, p: select_detections(
                    b,
                    p,
                    score_threshold=settings.score_threshold,
                    iou_threshold=settings.nms_iou,
                    candidates_per_class=settings.candidates_per_class,
                    max_detections=settings.max_detections,
                )
            )(boxes, probabilities)


def build_detector(
    config: ml_collections.ConfigDict, class_names: tuple[str, ...], axis_name: str | None = None
) -> Detector:
    """Builds the model of `config.model` and the anchors of `config.anchors`.

    `axis_name` is the mapped axis over which BatchNorm shares its statistics in training.
    """
    cells = anchors_per_cell(config.anchors.aspect_ratios)
    model = build_model(config.model, len(class_names), cells, axis_name)
    specification = AnchorSpecification(image_size=config.image_size, **config.anchors.to_dict())
    sizes = feature_sizes(model, config.image_size)
    return Detector(config, model, make_anchors(specification, sizes), tuple(class_names))


def augment_options(config: ml_collections.ConfigDict) -> AugmentOptions:
    """Returns `config.augment` as options; `normalize.mean` fills the border of expanded images."""
    return AugmentOptions(**config.augment.to_dict(), mean=config.normalize.mean)
