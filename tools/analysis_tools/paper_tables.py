"""Print the paper's tables beside what the configs give, and write docs/paper_tables.md.

python tools/analysis_tools/paper_tables.py [--check]
"""

import argparse
from pathlib import Path

from mirrorla_mm.analysis.paper_tables import render
from mirrorla_mm.engine.atomic import whole_file

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'paper_tables.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's tables beside ours")
    parser.add_argument('--out', type=Path, default=PAGE, help=f'page to write (default: {PAGE})')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if the page is stale'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    text = render(ROOT / 'configs')
    print(text)
    if not args.check:
        with whole_file(args.out) as partial:
            partial.write_text(text, encoding='utf-8')
    elif not args.out.exists() or args.out.read_text(encoding='utf-8') != text:
        raise SystemExit(f'{args.out} is stale; run this tool without --check.')


if __name__ == '__main__':
    main()
