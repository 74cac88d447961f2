"""Annotations in COCO's format that would train or score something false."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from .data import DataError

__all__ = ['CheckedCOCO']

NEEDED = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}
NUMBER = (int, float)
KINDS = {
    **dict.fromkeys(('id', 'image_id', 'category_id'), (int, str)),
    **dict.fromkeys(('file_name', 'name'), str),
    **dict.fromkeys(('width', 'height', 'area'), NUMBER),
    'bbox': object,  # Judged one by one, see annotation_problem.
}
NAMED = 20


class CheckedCOCO(COCO):
    """A COCO file that has what mmdet needs, and the classes that the config names, in their order.

    mmdet numbers classes as the file lists them: names in another order than the config's, or one
    that is spelled otherwise, would exchange labels, and no metric would show it. Annotations of
    images that the file does not list are warned about.

    Args:
        annotation_file (str | os.PathLike): JSON.

    Raises:
        DataError: If the file is no COCO JSON, lacks something that is needed, gives an id twice,
            or all its annotations are of other images.
    """

    def __init__(self, annotation_file: str | os.PathLike) -> None:
        self.file = os.fspath(annotation_file)
        try:
            super().__init__(self.file)
        except Exception as error:
            problem = _reading_problem(self.file) or f'cannot be used ({_first_line(error)})'
            raise DataError(f'{self.file} {problem}.') from error
        problem = _content_problem(self.dataset)
        if problem:
            raise DataError(f'{self.file} {problem}.')
        self._warn_of_strangers()

    def get_cat_ids(
        self,
        cat_names: Sequence[str] = (),
        sup_names: Sequence[str] = (),
        cat_ids: Sequence[int] = (),
    ) -> list[int]:
        """Ids of the categories of these names.

        Raises:
            DataError: If a name is not in the file, or the file has them in another order.
        """
        found = super().get_cat_ids(cat_names, sup_names, cat_ids)
        wanted = [cat_names] if isinstance(cat_names, str) else list(cat_names)
        listed = [category['name'] for category in self.dataset['categories']]
        missing = [name for name in wanted if name not in listed]
        if missing:
            raise DataError(
                f'{self.file} has no category {_names(missing)}: the file has {_names(listed)}; '
                f'metainfo.classes of the config are {_names(wanted)}.'
            )
        names = [self.cats[i]['name'] for i in found]
        if wanted and names != wanted:
            raise DataError(
                f'{self.file} lists the classes in another order than metainfo.classes, which '
                f'would exchange labels: the file has {_names(names)}; the config has '
                f'{_names(wanted)}. Put metainfo.classes in the order of the file.'
            )
        return found

    def _warn_of_strangers(self) -> None:
        known = {image['id'] for image in self.dataset['images']}
        annotations = self.dataset.get('annotations', [])
        strangers = [a['image_id'] for a in annotations if a['image_id'] not in known]
        if strangers and len(strangers) == len(annotations):
            raise DataError(
                f'{self.file} belongs to other images: none of its {len(annotations)} annotations '
                f'is of an image that it lists (such as image_id {strangers[0]!r}).'
            )
        if strangers:
            print_log(
                f'{self.file}: {len(strangers)} of {len(annotations)} annotations are left out, as '
                f'the file does not list their images (such as image_id {strangers[0]!r}).',
                'current',
                logging.WARNING,
            )


def _reading_problem(file: str) -> str | None:
    """Why a file is no COCO JSON, if it is none."""
    try:
        with open(file, encoding='utf-8') as stream:
            text = stream.read()
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    except UnicodeDecodeError:
        return 'is no JSON file, but binary'
    if not text.strip():
        return 'is empty, where COCO annotations are expected'
    try:
        return _content_problem(json.loads(text))
    except RecursionError:
        return 'is nested deeper than JSON of annotations is'
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or 'Unterminated' in error.msg
        reason = 'it is cut short' if cut else error.msg
        return f'is no JSON: {reason}, in line {error.lineno}, column {error.colno}'


def _content_problem(content: Any) -> str | None:
    """Faults of a COCO file: what it lacks or has twice; only test sets have no annotations."""
    if not isinstance(content, dict):
        return f'holds a {type(content).__name__}, where a dict of COCO annotations is expected'
    absent = [name for name in ('images', 'categories') if not isinstance(content.get(name), list)]
    if absent:
        return f'has no list of {_names(absent)}, as COCO annotations do: it has {_names(content)}'
    for name, keys in NEEDED.items():
        for index, entry in enumerate(content.get(name, [])):
            lacks = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacks:
                return f'has no {_names(lacks)} in entry {index} of {name!r}'
            odd = [key for key in keys if not isinstance(entry[key], KINDS[key])]
            if odd:
                return f'has an odd {odd[0]!r} in entry {index} of {name!r}: {entry[odd[0]]!r:.60}'
        ids = Counter(entry['id'] for entry in content.get(name, []))
        twice = [key for key, count in ids.items() if count > 1]
        if twice:
            return f'gives the id {twice[0]!r} to {ids[twice[0]]} entries of {name!r}'
    names = Counter(category['name'] for category in content['categories'])
    twice = [name for name, count in names.items() if count > 1]
    return f'has {names[twice[0]]} categories named {twice[0]!r}' if twice else None


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return ', '.join(map(repr, names[:NAMED])) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
