"""The providers of a file that names none: those whose key is in the environment, else the mock."""

from collections.abc import Mapping
from typing import Any, Final

from .endpoints import MOCK_URL
from .errors import Place, Report
from .secret import Secret

KNOWN: Final[Mapping[str, tuple[str, str]]] = {
    "OPENAI_API_KEY": ("openai", "https://api.openai.com/v1"),
    "OPENROUTER_API_KEY": ("openrouter", "https://openrouter.ai/api/v1"),
    "GROQ_API_KEY": ("groq", "https://api.groq.com/openai/v1"),
    "DEEPSEEK_API_KEY": ("deepseek", "https://api.deepseek.com/v1"),
    "MISTRAL_API_KEY": ("mistral", "https://api.mistral.ai/v1"),
    "TOGETHER_API_KEY": ("together", "https://api.together.xyz/v1"),
    "XAI_API_KEY": ("xai", "https://api.x.ai/v1"),
}
"""Variable -> (name, base_url) of providers that speak the OpenAI dialect. The first that is set is the default."""

LATER: Final[Mapping[str, str]] = {"ANTHROPIC_API_KEY": "anthropic", "GEMINI_API_KEY": "gemini"}
"""Variable -> a dialect that this version does not have."""


def implicit_providers(env: Mapping[str, str], report: Report) -> dict[str, Any]:
    """What `providers` would hold, had somebody written it. A key that cannot be sent is reported."""
    found: dict[str, Any] = {}
    for variable, (name, url) in KNOWN.items():
        secret = Secret(env.get(variable, ""), variable)
        if flaw := secret.flaw():
            report.add(Place(), flaw)
        elif secret:
            found[name] = {"base_url": url, "api_key": secret, "implicit": True}
    for variable, dialect in LATER.items():
        if env.get(variable):
            report.warnings.append(f"{variable} is set, but this version does not have the {dialect} dialect")
    return found or {"mock": {"base_url": MOCK_URL, "implicit": True}}
