import numpy as np
from PIL import Image

from t2i.image_grid import grid


def test_grid_places_images_and_labels():
    rows = [[Image.new("RGB", (64, 64), color) for color in row] for row in (("red", "lime"), ("blue", "black"))]
    sheet = np.asarray(grid(rows, ["a", "a caption that needs several lines"], ["step 0", "step 10"]))
    areas = [(sheet == color).all(-1) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert len({int(area.sum()) for area in areas}) == 1  # whole and of one size
    red, lime, blue = (np.argwhere(area).min(0) for area in areas)
    assert (red[0], red[1]) == (lime[0], blue[1])  # lime beside red, blue below it
    assert lime[1] > red[1]
    assert blue[0] > red[0]
