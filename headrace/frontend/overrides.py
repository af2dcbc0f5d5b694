"""``hf_overrides`` as a function of the model's configuration, as vLLM takes them: made into the dictionary they are
here, which can go to another process.
"""

import copy
from typing import Any

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.models import source


def configured(options: dict[str, Any]) -> Config:
    """``Config.from_kwargs(**options)``, but ``hf_overrides`` may take a ``PretrainedConfig`` and return a changed one.

    Raises ``ConfigError``.
    """
    change = options.get("hf_overrides")
    if not callable(change):
        return Config.from_kwargs(**options)
    config = Config.from_kwargs(**options | {"hf_overrides": {}})
    files = source.resolve(config.model, config.load)
    given = source.load_config(files, trust_remote_code=config.model.trust_remote_code)
    changed = change(copy.deepcopy(given))
    if not hasattr(changed, "to_dict"):
        raise ConfigError(f"hf_overrides must return the model's configuration, got {changed!r}.")
    before = given.to_dict()
    values = changed.to_dict().items()
    return config.replace(hf_overrides={name: value for name, value in values if before.get(name) != value})
