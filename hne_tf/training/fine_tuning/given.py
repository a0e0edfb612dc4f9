"""The Keras model that a run is cut from: its network in the settings, and its weights."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import keras
import ml_collections

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import KerasFunctional
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.functional import preprocessing, sources, starting
from hne_tf.models.functional.settings import FRESH
from hne_tf.training import build, checkpoints
from hne_tf.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class GivenModel:
    """A model that the settings name by its builder.

    Attributes:
      config: settings of the run.
      images: shape, classes and statistics of its data set.
    """

    config: ml_collections.ConfigDict
    images: ImageSpec

    @functools.cached_property
    def model(self) -> keras.Model:
        """The model, which takes RGB images."""
        section = self._section
        model = sources.load(
            section.builder, self.images.shape, section.options.to_dict(), section.weights
        )
        return preprocessing.in_order_of_rgb(model) if self._normalisation[2] else model

    def network(self, report: Callable[[str], None]) -> str:
        """The cut network with its normalisation, as `model.keras.network` has it.

        Args:
          report: gets a line if blocks that nobody has chosen differ much in cost.

        Raises:
          InputError: for a model or a cut that cannot be.
        """
        section = self._section
        mean, std, _ = self._normalisation
        cut = KerasFunctional.of(
            self.model,
            self.images.shape,
            build.tree(self.config).blocks,
            section.cut_at or None,
            section.classifier,
        )
        if not section.cut_at and (line := cut.unevenness()):
            report(f"note: {line}")
        return json.dumps({"architecture": cut.get_config(), "mean": mean, "std": std})

    def start(self, tree: TreeEnsemble) -> None:
        """Sets the weights that the nodes of the run's tree start from.

        Raises:
          InputError: for blocks that the tree does not have, or scales below 0.
        """
        section = self._section
        if section.perturb and len(section.perturb) != tree.tree.blocks:
            raise InputError(
                f"model.keras.perturb must have a number for each of the {tree.tree.blocks} "
                f"blocks, got {section.perturb}"
            )
        starting.start(
            tree,
            self.model,
            copy_weights=section.weights != FRESH,
            reinitialise=section.reinitialise,
            perturb=dict(enumerate(section.perturb)),
            seed=self.config.seed,
        )

    @property
    def _section(self) -> ml_collections.ConfigDict:
        return self.config.model.keras

    @functools.cached_property
    def _normalisation(self) -> tuple[Any, Any, bool]:
        """Mean and standard deviation, and whether channels are read in reverse order."""
        section, channels = self._section, self.images.shape[-1]
        if bool(section.mean) != bool(section.std):
            raise InputError(
                "model.keras.mean and std must be set together, got "
                f"{section.mean} and {section.std}"
            )
        if section.mean:
            for name in ("mean", "std"):
                if len(section[name]) != channels:
                    raise InputError(
                        f"model.keras.{name} must have a number for each of the {channels} "
                        f"channels, got {section[name]}"
                    )
            if not min(section.std) > 0:
                raise InputError(f"model.keras.std must be above 0, got {section.std}")
            return section.mean, section.std, False
        if preprocessing.is_known(section.builder):
            return preprocessing.normalisation(section.builder)
        if section.weights == FRESH:
            return self.images.mean, self.images.std, False
        raise InputError(
            "model.keras.mean and std must be those that the model was trained with, 0 and 1 "
            f"for one that normalises images itself, got none for {section.builder}"
        )


def given(
    config: ml_collections.ConfigDict,
    images: ImageSpec,
    workdir: Workdir,
    restart: bool,
    report: Callable[[str], None],
) -> tuple[ml_collections.FrozenConfigDict, GivenModel | None]:
    """The settings of a run with the network of its Keras model, and that model.

    A run that goes on keeps its network, whatever has become of the builder.

    Args:
      config: settings of the run.
      images: shape, classes and statistics of its data set.
      workdir: where the run is kept.
      restart: whether an older run in `workdir` does not count.
      report: gets a line for whatever the user should know.

    Returns:
      The settings as they were and None for other architectures.

    Raises:
      InputError: for a builder, weights or a cut that cannot be.
    """
    frozen = ml_collections.FrozenConfigDict(config)
    if not build.is_given(config):
        return frozen, None
    source = GivenModel(frozen, images)
    # Before the first checkpoint its weights are wanted, and names must be theirs.
    goes_on = (
        not restart and workdir.config_path.exists() and checkpoints.steps(workdir.checkpoints)
    )
    network = workdir.read_config().model.keras.network if goes_on else ""
    settings = ml_collections.ConfigDict(config.to_dict())
    settings.model.keras.network = network or source.network(report)
    return ml_collections.FrozenConfigDict(settings), source
