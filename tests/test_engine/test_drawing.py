"""Drawn predictions of a test run."""

from types import SimpleNamespace

from PIL import Image

from mirrorla_mm.engine.drawing import DrawHook


def test_images_are_drawn_in_their_colours_and_a_second_of_a_name_gets_a_number(tmp_path):
    drawn = []

    def add_datasample(name, image, *, out_file, **kwargs):
        drawn.append((name, image[0, 0].tolist(), out_file))

    samples = []
    for folder, colour in (('a', (255, 0, 0)), ('b', (0, 255, 0))):
        (tmp_path / folder).mkdir()
        Image.new('RGB', (4, 3), colour).save(tmp_path / folder / 'x.png')
        samples.append(SimpleNamespace(img_path=str(tmp_path / folder / 'x.png')))
    runner = SimpleNamespace(visualizer=SimpleNamespace(add_datasample=add_datasample))
    DrawHook(folder='out').after_test_iter(runner, 0, outputs=samples)
    assert drawn == [('x', [255, 0, 0], 'out/x.png'), ('x', [0, 255, 0], 'out/x-2.png')]
