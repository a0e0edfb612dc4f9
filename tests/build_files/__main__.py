"""Prints what is wrong with the Bazel description of the checkout, and the text to paste:

python -m tests.build_files
"""

import sys

from tests.build_files.checkout import ROOT, Checkout
from tests.build_files.checks import build_file_problems
from tests.build_files.module_file import module_problems


def main() -> int:
    problems = [*build_file_problems(Checkout.read(ROOT)), *module_problems(ROOT)]
    print("\n".join(problems) or "the BUILD files describe the sources")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
