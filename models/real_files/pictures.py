"""Lines of text for models that read: set in the typefaces that matplotlib carries, dark on light and light on dark."""

from __future__ import annotations

import numpy as np

from models.minilm.sentences import split_sentences

HEIGHT, WIDTH = 48, 320
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")
LETTERS = 22  # of a line; about what the width holds


def text_lines(count: int) -> list[dict[str, np.ndarray]]:
    """Pictures [1, 3, 48, 320] in -1 to 1, the line at the left and 0 behind it, as PaddleOCR's users make them."""
    sentences, _ = split_sentences()
    lines = [sentence[: sentence.rfind(" ", 0, LETTERS + 1)] for sentence in sentences[:count]]
    return [{"x": line_picture(line, number)} for number, line in enumerate(lines)]


def line_picture(line: str, number: int) -> np.ndarray:
    """One line; typeface, size, shades and blur follow from the number."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    rng = np.random.default_rng(number)
    font = ImageFont.truetype(
        f"{get_data_path()}/fonts/ttf/{FACES[number % len(FACES)]}.ttf", int(rng.integers(22, 30))
    )
    paper, ink = int(rng.integers(190, 256)), int(rng.integers(0, 90))
    if number % 4 == 3:
        paper, ink = ink, paper
    width = min(WIDTH, int(font.getlength(line)) + 12)
    picture = Image.new("L", (width, HEIGHT), paper)
    ImageDraw.Draw(picture).text((6, 8), line, fill=ink, font=font)
    blurred = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))
    shades = np.asarray(blurred, np.float32) + rng.normal(0, 4, (HEIGHT, width))
    whole = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    whole[..., :width] = np.clip(shades, 0, 255) / 127.5 - 1
    return whole
