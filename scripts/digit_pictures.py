"""Writes the test digits as pictures, a folder for each class.

python -m scripts.digit_pictures runs/quickstart/test
"""

import pathlib
import sys

from PIL import Image

from hne_tf.bin import app
from hne_tf.training.config import default

with app.quiet_import():
    from hne_tf.data.sources import load


def main(folder: pathlib.Path) -> None:
    """Writes `<folder>/<class>/<number>.png`."""
    digits = load(default().data)
    batches = digits.evaluation_batches("test", digits.examples("test"))
    images, labels = next(iter(batches))
    for number, (image, label) in enumerate(zip(images.numpy(), labels.numpy(), strict=True)):
        path = folder / digits.spec.class_names[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
