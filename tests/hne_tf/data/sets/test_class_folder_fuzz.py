"""Folders as other people have them: any names, formats, links, depths and sizes.

`pytest --hypothesis-profile=fuzz` looks at ten thousand of them. Loading and reading
one ends with all that is in it told, or with one line.
"""

import ast
import contextlib
import io
import os
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hne_tf.data import sources
from hne_tf.data.pixels import FORMATS, SUFFIXES, Pixels, decode, read_bytes
from hne_tf.errors import InputError
from hne_tf.training.config import default


def encoded(kind):
    """A small picture in a format, its pixels nothing special."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


WHOLE = Pixels(8, 8)
USED = {"train", "test", "validation", "valid", "val"}
ENCODED = {kind: encoded(kind) for kind in FORMATS}

# Any bytes but those that end a name.
raw_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
plain_names = st.sampled_from(
    [b"ant", b"bee", b"b e", b"\xc3\xa9", b".git", b"__MACOSX", b"a\nb", b"caf\xe9", b"~", b"-x"]
)
suffixes = st.sampled_from(
    [
        *sorted(suffix.encode() for suffix in SUFFIXES),
        b".JPG",
        b".Png",
        b".heic",
        b".txt",
        b"",
        b".",
    ]
)
file_names = st.builds(
    lambda stem, suffix: (stem + suffix)[-200:],
    st.sampled_from([b"0", b"1", b"2", b"._3", b"x.y", b"a\nb", b"\xff"]) | raw_names,
    suffixes,
).filter(lambda name: name not in (b".", b".."))


# Of a file: the format of the picture in it, where it is cut short, and bytes that are changed.
SOUND = ("PNG", None, [])
contents = st.tuples(
    st.sampled_from(sorted(ENCODED)),
    st.none() | st.integers(0, 400),
    st.just([]) | st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=8),
)


def bytes_of(content):
    kind, end, changes = content
    data = bytearray(ENCODED[kind])
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data[:end])


# How a file comes to be, given its path and content.
KINDS = {
    "file": lambda path, content: path_of(path).write_bytes(bytes_of(content)),
    "dangling": lambda path, content: os.symlink(b"nowhere", path),
    "circle": lambda path, content: os.symlink(os.path.basename(path), path),
    "loop": lambda path, content: os.symlink(b"..", path),
    "pipe": lambda path, content: os.mkfifo(path),
    "folder": lambda path, content: os.mkdir(path),
    "huge": lambda path, content: make_sparse(path, 2**31),
    "device": lambda path, content: os.symlink(b"/dev/zero", path),
}
files = st.tuples(st.sampled_from(["file"] * 12 + list(KINDS)), file_names, st.booleans(), contents)
classes = st.dictionaries(plain_names | raw_names, st.lists(files, max_size=4), max_size=3)
trees = st.dictionaries(
    st.sampled_from(
        [b"train", b"test", b"Train", b"val", b"valid", b"validation", b"TEST", b"dev"]
    ),
    classes,
    max_size=4,
)


@st.composite
def layouts(draw):
    """A tree of folders that is often one that can be read."""
    if draw(st.booleans()):
        return draw(trees)
    names = draw(st.lists(plain_names, min_size=1, max_size=3, unique=True))
    least = [("file", name, False, SOUND) for name in (b"0.png", b"1.png")]
    return {
        split: {name: least + draw(st.lists(files, max_size=3)) for name in names}
        for split in (b"train", b"test")
    }


def path_of(path):
    return pathlib.Path(os.fsdecode(path))


def make_sparse(path, size):
    """A file that takes no room on the disk."""
    with open(path, "wb") as file:
        file.truncate(size)


def make_tree(root, tree):
    """Makes the folders and files that the file system takes."""
    for split, classes in tree.items():
        for name, files in classes.items():
            folder = os.path.join(os.fsencode(root), split, name)
            with contextlib.suppress(OSError):
                os.makedirs(folder, exist_ok=True)
            for kind, file_name, inside, content in files:
                parent = os.path.join(folder, b"inside") if inside else folder
                path = os.path.join(parent, file_name)
                with contextlib.suppress(OSError):
                    os.makedirs(parent, exist_ok=True)
                    # Writing into a pipe would wait for somebody who reads.
                    if not os.path.lexists(path):
                        KINDS[kind](path, content)


def pictures_in(root):
    """Paths of what counts as a picture in a folder of classes, found in another way."""
    return {
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if not any(part.startswith(".") for part in pathlib.Path(folder, name).parts[1:])
        and "__MACOSX" not in pathlib.Path(folder).parts
        and os.path.splitext(name)[1].lower() in SUFFIXES
        and not os.path.isdir(os.path.join(folder, name))
    }


def sound(path):
    """Whether a picture can be read."""
    try:
        WHOLE.image(decode(read_bytes(path)))
    except InputError:
        return False
    return True


def assert_one_line(text):
    """As a terminal and a log take it."""
    assert text.splitlines() == [text]
    text.encode()


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """Changed bytes may ask for large pictures, of which each takes 4 bytes a pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hne_tf.data.pixels.MAX_PIXELS", 1_000_000)
        yield


def check(tree, skip_corrupt):
    with tempfile.TemporaryDirectory(prefix="folders") as place:
        root = pathlib.Path(place, "pictures")
        root.mkdir()
        make_tree(root, tree)
        config = default().data
        config.update(name="image_folder", data_dir=str(root), image_size=8)
        config.skip_corrupt = skip_corrupt
        try:
            data_set = sources.load(config)
        except InputError as error:
            assert_one_line(str(error))
            return
        for line in data_set.found:
            assert_one_line(line)
        listed = set()
        for split in data_set.splits.values():
            listed |= {split.fetch(index).name for index in range(split.examples)}
            check_split(split, len(data_set.spec.class_names))
        # Folders of no split, such as dev, were passed over.
        used = [folder for folder in root.iterdir() if folder.name.lower() in USED]
        assert listed == {repr(path) for folder in used for path in pictures_in(folder)}


def check_split(split, classes):
    readers = [split.fetch(index) for index in range(split.examples)]
    good = [sound(ast.literal_eval(reader.name)) for reader in readers]
    try:
        images, labels = split.arrays(np.arange(split.examples))
    except InputError as error:
        assert_one_line(str(error))
        assert not all(good)
        assert not split.skip_corrupt or not any(good)
        return
    assert images.shape == (sum(good), 8, 8, 3)
    assert labels.tolist() == [
        reader.label for reader, is_good in zip(readers, good, strict=True) if is_good
    ]
    assert all(0 <= label < classes for label in labels)
    assert split.skipped == {
        reader.name for reader, is_good in zip(readers, good, strict=True) if not is_good
    }


@settings(suppress_health_check=list(HealthCheck))
@given(layouts(), st.booleans())
def test_any_folder_is_read_or_refused_in_one_line(bounded, tree, skip_corrupt):
    with bounded():
        check(tree, skip_corrupt)


@settings(suppress_health_check=list(HealthCheck))
@given(contents)
def test_any_bytes_are_a_picture_or_refused_in_one_line(bounded, content):
    try:
        with bounded():
            image = WHOLE.image(decode(bytes_of(content)))
    except InputError as error:
        assert_one_line(str(error))
    else:
        assert image.shape == (8, 8, 3)
