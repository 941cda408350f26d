"""`python -m chart_tools`: rebuild what is generated, in place."""

import sys
from pathlib import Path

from chart_tools.generated import GENERATORS, chart_files
from chart_tools.metric_tables import metric_readmes


def main() -> int:
    """Write every generated file; later ones are made from earlier ones."""
    root = Path(__file__).parents[2]
    files = chart_files(root, helm=Path(sys.executable).with_name("helm"))
    for generator in GENERATORS:
        path, text = generator(files)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path, text in metric_readmes(root):
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
