"""Measures models side by side: hne-profile --models=models/digits/1,models/digits.tflite.

Latency per ensemble size of published versions and TFLite files, warm, in turns, for some
numbers of threads, and of versions with and without oneDNN; what they take on disk; and the
accuracy in their manifests. The figures go into the manifests, with the faster setting of oneDNN:
a file's is replaced, a version is published again as the next one.

The picture of --results needs an extra: pip install 'hne_tf[report]'
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    app.define_paths(
        values,
        "models",
        None,
        "Versions' folders, folders of versions for the newest, and TFLite files, with commas "
        "between them.",
    )
    flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads.", flag_values=values)
    flags.DEFINE_list("batch_sizes", ["1"], "Images per call.", flag_values=values)
    flags.DEFINE_integer(
        "runs", 100, "Timed calls per size, batch size and number of threads.", flag_values=values
    )
    flags.DEFINE_bool(
        "publish",
        True,
        "Keep the figures in manifests; --nopublish only prints them.",
        flag_values=values,
    )
    app.define_path(
        values,
        "results",
        None,
        "Also write a page of results, e.g. results/mobile.md, and a picture beside it.",
    )
    flags.mark_flags_as_required(["models"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Profiles with the parsed flags."""
    app.reject_positional(positional)
    threads = app.integers("threads", values.threads)
    batch_sizes = app.integers("batch_sizes", values.batch_sizes)
    with app.quiet_import():
        from hne_tf.evaluation import results, tables
        from hne_tf.exported.model import load
        from hne_tf.exported.profiling.profile import profile

        # Its extra is missed now, not after measuring.
        if values.results:
            from hne_tf.evaluation import plots

    # LiteRT greets on standard error as TensorFlow does.
    with app.quiet_import():
        models = [load(path) for path in values.models]
        measured = profile(models, threads, batch_sizes, values.runs, values.publish)
    text = tables.profiles_markdown(measured, threads, batch_sizes)
    print(text)
    if values.results:
        page = pathlib.Path(values.results)
        picture = page.with_suffix(".png")
        body = f"![Accuracy against latency]({picture.name})\n\n{text}"
        results.write_page(page, page.stem, app.command("hne-profile", values), body)
        plots.plot_profiles(measured, threads[0], batch_sizes[0], [picture])
        print(f"Written: {page}, {picture}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-profile", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
