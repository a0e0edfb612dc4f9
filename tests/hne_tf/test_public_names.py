import subprocess
import sys

import hne_tf


def test_every_public_name_is_there():
    for name in hne_tf.__all__:
        assert getattr(hne_tf, name) is not None
    assert set(hne_tf.__all__) == {*hne_tf._NAMES, *hne_tf._MODULES, "__version__"}
    assert set(dir(hne_tf)) == set(hne_tf.__all__)


def test_importing_the_package_loads_neither_tensorflow_nor_numpy():
    loaded = "import sys, hne_tf; print({'tensorflow', 'keras', 'numpy'} & sys.modules.keys())"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert output.stdout.strip() == "set()", output.stderr


def test_export_is_the_function_whichever_module_was_imported_before():
    code = (
        "import hne_tf.export.warmup, hne_tf as hne\n"
        "from hne_tf.export import warmup\n"
        "print(hne.export.__name__, hne_tf.export.__module__, warmup.__name__)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.split() == ["export", "hne_tf.export.exporter", "hne_tf.export.warmup"]
