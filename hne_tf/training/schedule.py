"""A run in steps: how many, and when the host has something to do."""

import dataclasses

import ml_collections

from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run in steps of one global batch each.

    Attributes:
      steps_per_epoch: need not be whole; batches straddle epochs.
      total: steps of the run.
      per_call: steps between returns to the host.
      checkpoint_every: steps between checkpoints.
      validate_every: steps between passes over the validation split.
    """

    steps_per_epoch: float
    total: int
    per_call: int
    checkpoint_every: int
    validate_every: int

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, examples: int) -> "Schedule":
        """The schedule of a run on a training split of so many `examples`.

        Raises:
          InputError: for a setting that is not positive.
        """
        training = config.training
        for field in (
            "epochs",
            "batch_size",
            "steps_per_call",
            "keep_checkpoints",
            "checkpoint_every_epochs",
            "validate_every_epochs",
        ):
            if not training[field] > 0:
                raise InputError(f"training.{field} must be above 0, got {training[field]}")
        epoch = examples / training.batch_size
        return cls(
            steps_per_epoch=epoch,
            total=max(1, round(training.epochs * epoch)),
            per_call=training.steps_per_call,
            checkpoint_every=max(1, round(training.checkpoint_every_epochs * epoch)),
            validate_every=max(1, round(training.validate_every_epochs * epoch)),
        )

    def next_stop(self, step: int) -> int:
        """The step at which the host is needed next, after `step`."""
        strides = (self.per_call, self.checkpoint_every, self.validate_every)
        return min(self.total, *((step // stride + 1) * stride for stride in strides))

    def is_due(self, step: int, every: int) -> bool:
        """Whether what happens `every` so many steps, and at the end, happens at `step`."""
        return step % every == 0 or step == self.total
