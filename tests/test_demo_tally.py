"""Objects are counted as found as somebody would who looks at the figure."""

import json

import pytest

from mirrorla_mm.demo.tally import MIN_SCORE, count_found, tally

DISC, SQUARE = 1, 2


def box(left, top, kind=DISC, size=20):
    return dict(bbox=[left, top, size, size], category_id=kind)


APART = [box(0, 0), box(50, 50, SQUARE)]


@pytest.mark.parametrize(
    ('boxes', 'found'),
    [
        ([], 0),
        (APART, 2),
        ([box(0, 3), box(50, 48, SQUARE)], 2),  # boxes need not be exact
        ([box(0, 0), box(50, 50, DISC)], 1),  # wrong class
        ([box(0, 0), box(50, 62, SQUARE)], 1),  # IoU of .25
        ([*APART, box(2, 2)], 1),  # a second box of the same class
        ([*APART, box(55, 50, DISC)], 1),  # a second box of another class
        ([*APART, box(10, 10, size=4)], 1),  # a second box on a part
        ([*APART, box(120, 120)], 2),  # a box on nothing is on no object
        ([box(120, 120)], 0),
    ],
)
def test_an_object_is_found_by_one_box_that_is_right(boxes, found):
    assert count_found(APART, boxes) == found
    assert count_found(APART, boxes[::-1]) == found


def test_a_box_between_two_objects_lies_on_one_of_them():
    touching = [box(0, 0), box(18, 0)]
    assert count_found(touching, touching) == 2
    assert count_found(touching, [box(1, 0)]) == 1


def test_an_image_without_objects_has_none_to_find():
    assert count_found([], APART) == 0


def test_low_scores_are_left_out_and_scenes_are_counted_apart(tmp_path):
    truth = [dict(each, image_id=image) for image in (0, 1) for each in APART]
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/instances_val.json').write_text(json.dumps(dict(annotations=truth)))
    boxes = [dict(each, score=0.9) for each in truth[:3]]
    boxes += [dict(truth[0], score=MIN_SCORE - 0.01), dict(truth[3], score=MIN_SCORE - 0.01)]
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    said = tally(tmp_path, tmp_path / 'boxes.json', [1])
    assert said == 'right, with one box each: 3 of 4 objects, 1 of 2 in the figure'
