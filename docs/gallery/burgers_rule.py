"""Cuts the README's picture out of `burgers-samples.png`, the figure of a run of preset quick."""

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent
BLOCK, FIRST = 365.7, 84  # height of a row of the table, and where the first begins, in pixels
ROWS = (0, 1, 6)  # true data, diffusion model, mirror diffusion model, finetuned

figure = Image.open(DOCS / 'burgers-samples.png').convert('RGB')
parts = [figure.crop((0, 0, figure.width, FIRST))]
for row in ROWS:
    top = round(FIRST + row * BLOCK)
    parts.append(figure.crop((0, top, figure.width, top + round(BLOCK))))
picture = Image.new('RGB', (figure.width, sum(part.height for part in parts)), 'white')
top = 0
for part in parts:
    picture.paste(part, (0, top))
    top += part.height
picture.quantize(128).save(DOCS / 'burgers-rule.png', optimize=True)
