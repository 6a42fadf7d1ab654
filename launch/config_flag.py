"""--config and its overrides: what is wrong with them takes one line."""

from absl import flags

from launch.errors import UserError, one_line


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser for a binary with a config_flags' --config.

  Raises:
    SystemExit: with the line that names the flag or the key.
  """
  with one_line():
    try:
      rest = flags.FLAGS(argv)
      if flags.FLAGS.config is not None:
        flags.FLAGS.config.keys()  # An unreadable file only says so here.
    except (AttributeError, KeyError) as error:
      # The text is the repr of a repr.
      said = str(error).replace('\\nDid', '; did').replace('\\', '')
      said = said.replace("'", '')
      raise UserError(f'the config has no key {said}') from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
      # ml_collections quotes a whole traceback; its last line says it.
      cause = error.__cause__ or error
      said = str(cause).strip().splitlines()[-1].strip()
      raise UserError(f'{said}; see --help') from error
  return rest
