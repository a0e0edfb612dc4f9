"""What limits training: images per second of the input pipeline alone and of the training step.

    python benchmarks/input_pipeline.py --config=configs/imagenet_small.py

Reads JPEG files of ImageNet's usual size (500 x 375), made for the purpose and kept in the
page cache, with the config's augmentation; with --own_data, the data set of the config. The
step takes the same batch again and again.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from hne_tf.bin import app

PICTURE_SIZE = (500, 375)
CLASSES = 10


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file.", flag_values=values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_bool("own_data", False, "Read the config's data set.", flag_values=values)
    flags.DEFINE_integer("pictures", 500, "JPEG files made.", lower_bound=50, flag_values=values)
    flags.DEFINE_integer("steps", 20, "Timed batches.", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "results", None, "Also write the table to this Markdown page.", flag_values=values
    )
    flags.mark_flags_as_required(["config"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    with app.quiet_import():
        from hne_tf.data import load
        from hne_tf.evaluation import results
        from hne_tf.training.cluster import Cluster
        from hne_tf.training.devices import strategy_of

    config = ml_collections.ConfigDict(values.config)
    # Before data start TensorFlow.
    strategy = strategy_of(config, Cluster())
    with contextlib.ExitStack() as stack:
        if not values.own_data:
            config.data.name = "image_folder"
            config.data.data_dir = stack.enter_context(_pictures(values.pictures))
        data_set = load(config.data)
        batch_size = config.training.batch_size
        batches = iter(
            data_set.train_batches(
                batch_size=batch_size, start_step=0, total_steps=values.steps + 2, seed=0
            )
        )
        batch = next(batches)
        pipeline_s = _seconds(lambda: next(batches), values.steps)
    step_s = _seconds(_training_step(config, data_set, strategy, batch), values.steps)
    lines = ["| alone | ms per batch | images/s |", "| :--- | ---: | ---: |"]
    for name, seconds in (("input pipeline", pipeline_s), ("training step", step_s)):
        lines.append(f"| {name} | {1000 * seconds:.0f} | {batch_size / seconds:.0f} |")
    slower = "training step" if step_s > pipeline_s else "input pipeline"
    ratio = max(step_s, pipeline_s) / min(step_s, pipeline_s)
    lines += ["", f"Batches of {batch_size}. The {slower} limits, by a factor of {ratio:.1f}."]
    table = "\n".join(lines)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/input_pipeline.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "The input pipeline against the training step", command, table)


def _seconds(run: Callable[[], object], count: int) -> float:
    """Mean time of a run, after one that does not count."""
    run()
    started = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - started) / count


@contextlib.contextmanager
def _pictures(count: int) -> Iterator[str]:
    """An image folder of so many JPEG files for training."""
    from PIL import Image

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for split, pictures in (("train", count), ("test", CLASSES)):
            for number in range(pictures):
                # Shapes and some noise: about as many bytes as ImageNet's pictures have.
                coarse = random.integers(0, 256, (24, 32, 3), np.uint8)
                shapes = Image.fromarray(coarse).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
                pixels = np.asarray(shapes) + random.normal(0, 10, (*PICTURE_SIZE[::-1], 3))
                path = pathlib.Path(folder, split, str(number % CLASSES), f"{number}.jpg")
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.save(path, quality=95)
        yield folder


def _training_step(config, data_set, strategy, batch) -> Callable[[], object]:
    """A function that takes one step with the config's model and objective."""
    import tensorflow as tf

    from hne_tf.training.run import TrainingRun
    from hne_tf.training.schedule import Schedule

    schedule = Schedule.of(config, data_set.examples("train"))
    run = TrainingRun(config, data_set.spec, schedule, strategy)
    batch = tf.data.Dataset.from_tensors(batch).repeat()
    batches = iter(strategy.experimental_distribute_dataset(batch))
    return lambda: run.take_steps(batches, 1)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("input_pipeline", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
