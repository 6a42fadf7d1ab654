"""Where a model's encoders lie, as flags of a binary that samples."""

from absl import flags

from launch.encoder_sources import FLAGS, Places

_HELP = {
  'speech': 'folder of launch.convert with the speech encoder, of a checkpoint '
  'that was trained on features of one; unset, where it was then, or beside the '
  'checkpoint',
  'text': 'of its text encoder, likewise',
  'tokenizer': 'spiece.model or tokenizer.json of that encoder, likewise',
}


class EncoderFlags:
  """Making one defines them, as flags of the binary that does so."""

  def __init__(self):
    flags.disclaim_key_flags()
    self._places = {
      name: flags.DEFINE_string(flag, '', _HELP[name])
      for name, flag in FLAGS.items()
    }

  @property
  def places(self) -> Places:
    """What they say."""
    return Places(**{name: flag.value for name, flag in self._places.items()})
