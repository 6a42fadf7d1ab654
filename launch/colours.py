"""A caption without a captioner: the colour of the wall behind the speaker."""

from jaxtyping import UInt8
import numpy as np

GREYS = ('black', 'gray', 'silver', 'white')
GREY_LIMITS = (0.2, 0.63, 0.87)
# Dark and bright names of the six hues: the rest of CSS's basic 16. A hue ends
# where people cease to call it so: sky is blue, though nearer to aqua.
HUE_LIMITS = (20, 75, 165, 190, 265, 330)
HUES = (
  ('maroon', 'red'),
  ('olive', 'yellow'),
  ('green', 'lime'),
  ('teal', 'aqua'),
  ('navy', 'blue'),
  ('purple', 'fuchsia'),
)


def wall_caption(frame: UInt8[np.ndarray, 'H W 3']) -> str:
  """'a person in front of a blue wall'.

  A deterministic stand-in for a vision-language captioner, for training text
  conditioning where there is none. The colour is the most frequent of CSS's 16
  basic names in the outer tenth of the picture, without the bottom (shoulders).
  """
  side = max(len(frame) // 10, 1)
  border = (frame[:side], frame[side:-side, :side], frame[side:-side, -side:])
  pixels = np.concatenate([b.reshape(-1, 3) for b in border])
  names, counts = np.unique(colour_names(pixels), return_counts=True)
  name = names[np.argmax(counts)]
  article = 'an' if name[0] in 'aeiou' else 'a'
  return f'a person in front of {article} {name} wall'


def colour_names(pixels: UInt8[np.ndarray, '*N 3']) -> np.ndarray:
  """The CSS basic colour word of each pixel, by hue, saturation and value."""
  rgb = pixels.astype(np.float32) / 255
  value = rgb.max(axis=-1)
  chroma = value - rgb.min(axis=-1)
  red, green, blue = np.moveaxis(rgb, -1, 0)
  safe = np.maximum(chroma, 1e-6)
  hue = 60 * np.select(
    [value == red, value == green],
    [(green - blue) / safe % 6, (blue - red) / safe + 2],
    (red - green) / safe + 4,
  )
  grey = np.array(GREYS)[np.searchsorted(GREY_LIMITS, value)]
  index = np.searchsorted(HUE_LIMITS, hue) % 6
  named = np.array(HUES)[index, (value > 0.55).astype(int)]
  plain = chroma < 0.2 * np.maximum(value, 0.25)
  return np.where(plain, grey, named)
