"""A factory of the user's, called with the settings of a config and with what it asks for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from t2g_jax import user_code
from t2g_jax.config.base import with_environment
from t2g_jax.errors import T2GError


def make(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    name: str,
    section: str,
    offers: Mapping[str, Any] | None = None,
) -> Any:
    """What a factory returns for its settings.

    Args:
      factory: a function or class, see `user_code.load`. It gets all settings as keywords, and of
        what is on offer, what it has parameters for.
      settings: `sections.Settings`; environment variables are looked up.
      name: of the factory, for messages.
      section: of the config, which has the settings.
      offers: values by name; no setting may have such a name.

    Raises:
      T2GError: a setting is unknown to the factory, or one that it needs is missing; or it fails.
    """
    given = _arguments(factory, settings, name, section, offers or {})
    called = f"{name}({', '.join(f'{key}=…' for key in given)})"
    return user_code.call(f"{section}.name: {called} failed", factory, **given)


def _arguments(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    name: str,
    section: str,
    offers: Mapping[str, Any],
) -> dict[str, Any]:
    key = f"{section}.settings"
    if taken := [setting for setting in settings if setting in offers]:
        raise T2GError(
            f"{key}: `{taken[0]}` is no setting: a factory that has a parameter of that name gets "
            f"the run's own ({', '.join(offers)}); rename it"
        )
    given = with_environment(settings, key)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a builtin
        return given
    named = [
        p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [parameter for parameter in named if parameter not in offers]
    for setting in settings:
        if setting not in known and not takes_any:
            near = difflib.get_close_matches(setting, known, n=1)
            guess = f"did you mean `{near[0]}`?" if near else f"it takes {_listed(known)}"
            raise T2GError(f"{key}: {name} takes no `{setting}`; {guess}")
    for parameter in parameters.values():
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise T2GError(
                f"{section}.name: {name} takes `{parameter.name}` by position alone, but it is "
                "called with keywords"
            )
        if parameter.name in known and parameter.name not in settings:
            raise T2GError(f"{key}: {name} needs `{parameter.name}`; set {key}.{parameter.name}")
    return given | {offer: value for offer, value in offers.items() if offer in named}


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
