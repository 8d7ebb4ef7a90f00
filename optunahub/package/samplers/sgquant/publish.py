"""Build the package for OptunaHub: the files of this folder and the source of the sampler.

``python optunahub/package/samplers/sgquant/publish.py <folder of the registry>/package`` writes
``samplers/sgquant`` there, ready to commit. The source is copied from this repository with
relative imports, so that it is maintained in one place.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[3] / "sgquant_optuna" / "sampler"
COPIED = ("README.md", "LICENSE", "requirements.txt", "example.py", "tests")


def publish(package: Path) -> Path:
    """Write the package.

    Args:
        package:
            Folder ``package`` of the registry; created if it does not exist.

    Returns:
        The folder that was written.
    """
    target = package / "samplers" / "sgquant"
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (HERE / name).is_dir() else shutil.copyfile
        copy(HERE / name, target / name)
    for module in SOURCE.glob("*.py"):
        source = module.read_text().replace("from sgquant_optuna.sampler.", "from .")
        (target / module.name).write_text(source)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument: the registry's package folder")
    print(publish(Path(sys.argv[1])))
