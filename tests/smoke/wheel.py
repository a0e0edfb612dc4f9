"""Checks what a wheel installs: python tests/smoke/wheel.py FILE.whl."""

import pathlib
import sys
import zipfile


def main(wheel: str) -> None:
    """Asserts that the wheel holds the package alone, with its data."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    installed = {name for name in top if not name.endswith(".dist-info")}
    assert installed == {"hne_tf"}, f"the wheel must install hne_tf alone, got {sorted(installed)}"
    suffixes = {pathlib.PurePath(name).suffix for name in names if name.startswith("hne_tf/")}
    assert suffixes == {".py", ".npz", ".json", ".css", ".html", ".js"}, sorted(suffixes)
    print(f"{pathlib.Path(wheel).name} installs hne_tf alone, {len(names)} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
