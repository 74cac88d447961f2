"""Fill Parameters and FLOPs of the metafiles, the tables of the READMEs and the model zoo.

python tools/analysis_tools/metafiles.py [--check]
"""

import argparse
from pathlib import Path

from mirrorla_mm.analysis.metafiles import fill, models_of, tabulate, zoo
from mirrorla_mm.engine.atomic import whole_file

from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Fill the metafiles and the tables of configs')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if a file is stale'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    stale = []

    def update(path: Path, text: str) -> None:
        if path.read_text(encoding='utf-8') == text:
            return
        stale.append(str(path.relative_to(ROOT)))
        if not args.check:
            with whole_file(path) as partial:
                partial.write_text(text, encoding='utf-8')

    for metafile in track(sorted((ROOT / 'configs').glob('*/metafile.yml')), 'Counting'):
        update(metafile, fill(metafile))
        readme = metafile.with_name('README.md')
        update(readme, tabulate(readme, models_of(metafile)))
    update(ROOT / 'docs' / 'model_zoo.md', zoo(ROOT))
    if not stale:
        print('All metafiles, READMEs and the model zoo are up to date.')
    elif args.check:
        raise SystemExit(f'Stale: {", ".join(stale)}. Run this tool without --check.')
    else:
        print('Updated:', ', '.join(stale))


if __name__ == '__main__':
    main()
