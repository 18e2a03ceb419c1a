import numpy as np
from PIL import Image

from t2i.evaluation.copy_pairs import copy_pairs


def test_each_sample_stands_above_its_nearest_training_image():
    red, green, blue = (Image.new("RGB", (96, 96), colour) for colour in ("red", "lime", "blue"))
    pair = {"prompt": 1, "seed": 0, "training_image": 2, "similarity": 0.99, "copy": True}
    sheet = copy_pairs([red, red, green, green], [red, red, blue], ["a", "b"], [pair])
    columns = np.asarray(sheet)[:, sheet.width - 50]
    assert (columns[50] == (0, 255, 0)).all()
    assert (columns[150] == (0, 0, 255)).all()
