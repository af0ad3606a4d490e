"""Taking secrets out of texts that leave the node. Pure.

By what they look like: too much is taken out rather than too little.
"""

from __future__ import annotations

import re

REMOVED = "[removed]"

_WORDS = (
    *("passwd", "password", "secret", "token", "credential", "authorization"),
    *("api[_-]?key", "access[_-]?key", "private[_-]?key"),
)
_NAME = rf"(?<![\w.-])[\w.-]*(?:{'|'.join(_WORDS)})[\w.-]*"
_VALUE = r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;&"']+)"""
_PATTERNS = (
    # PEM, in one line of JSON too.
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"),  # a JSON web token
    re.compile(r"(?i)\b(?:bearer|basic) +[\w.~+/=-]{8,}"),
    re.compile(r"(?<=://)[^/\s:@\"']*:[^/\s@\"']*(?=@)"),  # of a URL
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abp]-|sk-|hf_|hvs\.)[\w-]{16,}"),
    re.compile(r"(?i)(?<=[?&])(?:x-amz-signature|signature|sig)=(?P<value>[^\s&\"']+)"),
    # NAME=VALUE, name: value and "name": "value".
    re.compile(rf'(?i){_NAME}"?\s*[=:]\s*{_VALUE}'),
)


def removed(text: str) -> tuple[str, int]:
    """*text* without what looks like a secret, and how many of them there were."""
    count = 0
    for pattern in _PATTERNS:
        text, found = pattern.subn(_without_value, text)
        count += found
    return text, count


def _without_value(match: re.Match[str]) -> str:
    value = match.groupdict().get("value")
    if value is None:
        return REMOVED
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match[0][: -len(value)]}{quote}{REMOVED}{quote}"
