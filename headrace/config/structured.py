"""What ``--structured-outputs-config`` may hold. Knows no grammars."""

from typing import Any

import msgspec

from headrace.config.option import settings_in
from headrace.errors import ConfigError

BACKENDS = ("auto", "guidance", "llguidance", "xgrammar", "outlines", "lm-format-enforcer")


class StructuredSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The keys are vLLM's; there is one backend, llguidance, which serves under the names of all."""

    backend: str = "auto"
    disable_fallback: bool = False  # there is nothing to fall back to
    disable_any_whitespace: bool = False  # JSON without spaces, for every request
    disable_additional_properties: bool = False  # objects of schemas hold what is named only, unless they say otherwise
    enable_in_reasoning: bool = False  # outputs have their form from the first token on, so a model can't think first


def structured_settings(value: dict[str, Any]) -> StructuredSettings:
    """Raises ``ConfigError`` for an unknown key or a value out of place."""
    settings = settings_in("--structured-outputs-config", value, StructuredSettings)
    if settings.backend not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise ConfigError(f"--structured-outputs-config's backend must be one of {names}, got {settings.backend!r}.")
    return settings
