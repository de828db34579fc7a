"""What a run raises on purpose, each with a message for the user."""


class ConfigError(ValueError):
  """Says in one line which flag is wrong, what was given and what is allowed."""


class Interrupted(Exception):
  """A run that was asked to stop and has saved its state; says how to go on."""
