"""Drawn predictions: colours, order and labels that can be read."""

import numpy as np

from mirrorla_mm.apis.drawing import _draw_label, _overlap, draw_instances, draw_label_map

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
BLANK = np.zeros((200, 300, 3), np.uint8)


def rgb(image: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    return tuple(image[row, column, ::-1].tolist())


def test_box_of_the_higher_score_lies_on_top():
    boxes = np.array([[50.0, 50, 150, 150]] * 2)
    drawn = draw_instances(BLANK, boxes, ['', ''], [RED, BLUE])
    assert rgb(drawn, 100, 50) == RED
    assert (BLANK == 0).all()


def test_mask_is_laid_over_its_own_pixels_alone():
    masks = np.zeros((1, 200, 300), bool)
    masks[0, 150:160, 250:260] = True
    drawn = draw_instances(BLANK, np.array([[250.0, 150, 260, 160]]), [''], [GREEN], masks)
    assert rgb(drawn, 155, 255) == (0, 127, 0)
    assert rgb(drawn, 180, 280) == (0, 0, 0)


def test_no_label_covers_that_of_a_higher_score(monkeypatch):
    boxes = np.array([[50.0, 50, 150, 150]] * 40)
    plates = []

    def watched(pen, text, colour, places, taken):
        _draw_label(pen, text, colour, places, taken)
        plates[:] = taken

    monkeypatch.setattr('mirrorla_mm.apis.drawing._draw_label', watched)
    draw_instances(BLANK, boxes, [f'class .{i}' for i in range(40)], [RED] * 40)
    assert len(plates) > 1
    assert not any(_overlap(a, b) for i, a in enumerate(plates) for b in plates[:i])
    assert all(x >= 0 and right <= 300 and y >= 0 and low <= 200 for x, y, right, low in plates)


def test_boxes_out_of_order_or_off_the_image_draw():
    boxes = np.array([[20.0, 20, 10, 10], [-50, -50, 400, 400], [295, 195, 299, 199]])
    assert draw_instances(BLANK, boxes, ['a', 'b', 'a long name'], [RED] * 3).shape == BLANK.shape
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert draw_instances(tiny, np.array([[0.0, 0, 1, 1]]), ['a'], [RED]).shape == (1, 1, 3)


def test_label_map_is_drawn_in_the_colours_of_its_classes():
    label_map = np.zeros((200, 300), np.uint8)
    label_map[:, 150:] = 1
    drawn = draw_label_map(BLANK, label_map, ('left', 'right'), (RED, BLUE))
    assert rgb(drawn, 0, 0) == (128, 0, 0)
    assert rgb(drawn, 199, 299) == (0, 0, 128)
    # The name stands on a plate of the full colour in the middle of its region.
    middle = drawn[80:120, 40:110, ::-1].reshape(-1, 3)
    assert (middle == RED).all(axis=1).any()
