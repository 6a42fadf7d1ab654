"""Which model is judged on which clips, as flags give it."""

import pathlib

from absl import flags

from launch import bundle, encoder_flags, evaluation
from launch.errors import UserError


class ClipFlags:
  """The flags of a binary that judges a model on real clips.

  Making one defines them, as flags of the binary that does so.

  Args:
    limit: How many clips count if --limit is not given; None: all.
    limit_help: What --limit is for.
  """

  def __init__(
    self,
    limit: int | None = None,
    limit_help: str = 'only the first so many clips',
  ):
    flags.disclaim_key_flags()
    self._checkpoint = flags.DEFINE_string(
      'checkpoint', str(bundle.DEFAULT), 'a bundle; the shipped one if unset'
    )
    self._encoders = encoder_flags.EncoderFlags()
    self._data = flags.DEFINE_string(
      'data', None, 'folder of video files with sound'
    )
    self._split = flags.DEFINE_string(
      'split', None, 'JSON {subset: [names without suffix]}; all files if unset'
    )
    self._subset = flags.DEFINE_string(
      'subset', 'val', 'which list of the split'
    )
    self._limit = flags.DEFINE_integer('limit', limit, limit_help, 2)
    self._out = flags.DEFINE_string(
      'out', None, 'folder for figures, tables, pictures'
    )
    self._seed = flags.DEFINE_integer(
      'seed', 0, 'of the first clip; one more for each'
    )

  def files(self, limited: bool = True) -> dict[str, pathlib.Path]:
    """{id: file} of the clips; all of them if not `limited`.

    Raises:
      UserError: --data or --out is missing, or as `evaluation.list_clips`.
    """
    if not self._data.value or not self._out.value:
      raise UserError('--data and --out are needed; see --help')
    split = pathlib.Path(self._split.value) if self._split.value else None
    limit = self._limit.value if limited else None
    return evaluation.list_clips(
      pathlib.Path(self._data.value), split, self._subset.value, limit
    )

  def weights(self) -> bundle.Bundle:
    """The model."""
    loaded = bundle.load(self.checkpoint)
    return bundle.relocated(loaded, self._encoders.places)

  @property
  def checkpoint(self) -> str:
    """The model's name or file."""
    return self._checkpoint.value

  @property
  def limit(self) -> int | None:
    """How many clips count."""
    return self._limit.value

  @property
  def out(self) -> pathlib.Path:
    """Where results go."""
    return pathlib.Path(self._out.value)

  @property
  def seed(self) -> int:
    """Of the first clip."""
    return self._seed.value
