"""What limits training: images per second of the decoder, the input pipeline and the training step.

    python benchmarks/input_pipeline.py --config=configs/imagenet_small.py

Reads JPEG files of ImageNet's usual size (500 x 375), made for the purpose and kept in the
page cache, with the config's augmentation; with --own_data, the data set of the config. Each
is measured alone: the decoder of pictures, on all cores, is what no pipeline can be faster
than; the step takes the same batch again and again. --steps=0 leaves the step out.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import ml_collections
import numpy as np
from absl import flags

from hne_tf.bin import app, config_file

PICTURE_SIZE = (500, 375)
CLASSES = 10


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    config_file.define(values, argv, "Config file.")
    flags.DEFINE_bool("own_data", False, "Read the config's data set.", flag_values=values)
    flags.DEFINE_integer("pictures", 500, "JPEG files made.", lower_bound=50, flag_values=values)
    flags.DEFINE_integer("batches", 20, "Timed batches.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "steps", 20, "Timed training steps; 0 for none.", lower_bound=0, flag_values=values
    )
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")
    flags.mark_flags_as_required(["config"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    with app.quiet_import():
        from hne_tf.data import load
        from hne_tf.evaluation import results
        from hne_tf.evaluation.tables import aligned
        from hne_tf.training.machines.cluster import Cluster
        from hne_tf.training.machines.devices import strategy_of, use_best_threads

    config = ml_collections.ConfigDict(values.config)
    # Before data start TensorFlow.
    use_best_threads(config)
    strategy = strategy_of(config, Cluster())
    with contextlib.ExitStack() as stack:
        if not values.own_data:
            config.data.name = "image_folder"
            config.data.data_dir = stack.enter_context(_pictures(values.pictures))
        data_set = load(config.data)
        seconds = _measured(values, config, data_set, strategy)
    batch_size = config.training.batch_size
    rows = [
        [name, f"{1000 * each:.0f}", f"{batch_size / each:.0f}"] for name, each in seconds.items()
    ]
    lines = [aligned(["alone", "ms per batch", "images/s"], rows, words={"alone"})]
    slowest, fastest = (choose(seconds, key=seconds.get) for choose in (max, min))
    ratio = seconds[slowest] / seconds[fastest]
    size = config.data.image_size
    lines += ["", f"Batches of {batch_size} at {size} x {size} pixels."]
    lines[-1] += f" The {slowest} limits; the {fastest} is {ratio:.1f} times as fast."
    table = "\n".join(lines)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/input_pipeline.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "The input pipeline against the training step", command, table)


def _measured(values, config, data_set, strategy) -> dict[str, float]:
    """Seconds per batch of each part, by its name."""
    batch_size = config.training.batch_size
    batches = iter(
        data_set.train_batches(
            batch_size=batch_size, start_step=0, total_steps=values.batches + 2, seed=0
        )
    )
    batch = next(batches)
    seconds = {}
    if hasattr(data_set.splits["train"], "fetch"):
        seconds["decoder"] = _seconds(_decoding(data_set, batch_size), values.batches)
    seconds["input pipeline"] = _seconds(lambda: next(batches), values.batches)
    if values.steps:
        step = _training_step(config, data_set, strategy, batch)
        seconds["training step"] = _seconds(step, values.steps)
    return seconds


def _decoding(data_set, count: int) -> Callable[[], object]:
    """A function that decodes so many pictures for training, on all cores."""
    from hne_tf.data.pixels import decode

    split = data_set.splits["train"]
    encoded = [split.fetch(index % split.examples).read() for index in range(count)]

    def decode_all() -> None:
        with futures.ThreadPoolExecutor() as pool:
            # Dropped as they come: all of them take more memory than a batch.
            for _ in pool.map(lambda data: decode(data).size, encoded):
                pass

    return decode_all


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
