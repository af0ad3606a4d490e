"""Taking secrets out of texts that leave the node. Pure.

By what they look like: too much is taken out rather than too little.
"""

from __future__ import annotations

import re

REMOVED = "[removed]"

# Names, or parts of them, whose values are secret.
_WORDS = (
    *("passwd", "password", "passphrase", "secret", "token", "credential", "authorization"),
    *("(?:api|access|account|private)[_-]?key", "[_-](?:pass|pwd)(?![a-z])"),
)
_KEY = r"[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_END_OF_KEY = re.compile(rf"-----END {_KEY}")
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\\r\n"

# What may be long is matched whole or not at all (*+), or ends where the next one begins: else
# a hostile text takes the square of its length. JSON in JSON has backslashes before its quotes.
# No group is repeated so: Python 3.11.2 goes on where the last try has failed.
_QUOTE = r"""\\{0,15}+["']"""
_IS = rf"(?:{_QUOTE})?\s*+[=:]\s*+"
# Secret at the end of a name, or as a whole one; a shell's PWD is a directory, a key may be a path.
_PATH = rf"(?:{_QUOTE})?(?:\s*+[=:]|,?\s)\s*+(?:{_QUOTE})?/"
_LAST = (
    *("(?-i:PASS)(?![\\w.-])", f"(?-i:_KEY)(?![\\w.-])(?!{_PATH})"),
    f"(?:encryption|signing|master|session|shared)[_-]?key(?!{_PATH})",
)
_WHOLE = rf"-{{0,2}}(?:pass|(?:db|user|root|admin)pass|pwd(?<!(?-i:PWD))|pwd(?!{_PATH}))(?![\w.-])"
_SECRET = rf"(?={_WHOLE}|[\w.-]*?(?:{'|'.join((*_WORDS, *_LAST))}))[\w.-]++"
# What comes after a name is looked for first: that is quick, and few names have it.
_NAMED = rf"(?=[\w.-])(?<![\w.-])(?=[\w.-]++{_IS}){_SECRET}{_IS}"
_THEN_VALUE = rf"(?:{_QUOTE})?(?:,\s*+|\s++)(?:{_QUOTE})?value"
_QUOTED = rf"(?P<quote>{_QUOTE})[^\n]*?(?<!\\)(?P=quote)"
_LEFT = rf"(?!(?:{_QUOTE})?{re.escape(REMOVED)})"
# A value without quotes ends with its line's word, or where what it stands in goes on or ends.
_AFTER = r"""(?:\s|\Z|\\{0,15}["'{\[]|\\{1,15}[nrt])"""
_END = rf"""(?:[,;)\]}}]{{1,8}}{_AFTER}|;[\w.-]+=|\\{{0,15}}["'][,;:)\]}}]{{0,8}}{_AFTER})"""
_VALUE = (
    rf"{_LEFT}(?P<value>{_QUOTED}|{_QUOTE}[^\n]*+"  # the second was cut off
    rf"|\[[^\]\[]*+\]|\[[^\n]*+|\{{[^}}{{]*+\}}|\{{[^\n]*+|(?:(?!{_END})\S)+)"
)
_PATTERNS = (
    # PEM, in one line of JSON too.
    re.compile(rf"-----BEGIN {_KEY}.*?(?:-----END {_KEY}|\Z)", re.DOTALL),
    re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"),  # a JSON web token
    # A header, to the end of its line or of the text that has it.
    re.compile(
        rf"(?im)(?<![\w-])(?:(?:proxy-)?authorization|(?:set-)?cookie)(?:{_QUOTE})?[ \t]*+:[ \t]*+"
        rf"{_LEFT}(?P<value>{_QUOTED}|\S[^\n]*?(?=\\{{1,15}}[nr]|{_QUOTE}\s*+[,}}\]]|$))"
    ),
    re.compile(r"(?i)\b(?:bearer|basic) +[\w.~+/=-]{8,}"),
    # Of a URL; a password may have what ends a host's name, but what looks like a port is one.
    re.compile(r"(?<=://)[^/?#\s\"\\]+(?=@)"),
    re.compile(
        r"(?<=://)[^/?#\s\"\\:@]*+:(?!\d{1,5}[/?#])(?:[^\s\"\\@:]|:(?!/))*"
        r"(?:@[^/?#\s\"\\@]*)*(?=@)"
    ),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|xapp-|sk-|[rs]k_(?:live|test)_|hf_|hvs\."
        r"|dckr_pat_|AIza|AGE-SECRET-KEY-1)[\w-]{16,}"
    ),
    re.compile(r"\bnpm_[A-Za-z0-9]{36}"),
    # A URL's parameters; Go's JSON has \u0026 for &.
    re.compile(
        r"(?i)(?:[?&;]|\\u0026)[\w.%-]*+(?:(?<=sig)|(?<=key)|(?<=token)|(?<=signature))="
        rf"{_LEFT}(?P<value>[^\s&;\"'\\]+)"
    ),
    # A block of YAML, which is indented deeper than its name.
    re.compile(
        rf"(?im)^(?P<indent>[ \t]*+)(?:- ++)?{_NAMED}"
        r"(?P<value>[|>][-+\d]*+[ \t]*+(?:\n(?P=indent)[ \t]++[^\n]*+)+)"
    ),
    # NAME=VALUE, name: value and "name": "value"; then a command's words; then docker's.
    re.compile(rf"(?i){_NAMED}{_VALUE}"),
    # A variable of a pod's specification, as JSON or YAML.
    re.compile(
        rf"name(?<![\w.-]name)(?i:{_IS}(?:{_QUOTE})?(?=[\w.-]++{_THEN_VALUE}){_SECRET}{_THEN_VALUE}"
        rf"{_IS}{_VALUE})"
    ),
    re.compile(
        rf"(?i)(?=-)(?<![\w.-])(?=[\w.-]++(?:{_QUOTE},?)?\s){_SECRET}(?<!file)(?<!path)(?<!dir)"
        rf"(?:{_QUOTE},?)?\s++(?!-){_VALUE}"
    ),
    re.compile(rf"(?i){_QUOTE}_?auth{_QUOTE}\s*+:\s*+(?={_QUOTE}){_VALUE}"),
)


def removed(text: str) -> tuple[str, int]:
    """*text* without what looks like a secret, and how many of them there were."""
    count = 0
    for pattern in _PATTERNS:
        text, found = pattern.subn(_without_value, text)
        count += found
    # The end of a log may begin within a key.
    *cut, rest = _END_OF_KEY.split(text)
    return REMOVED.join([*(one.rstrip(_BASE64) for one in cut), rest]), count + len(cut)


def _without_value(match: re.Match[str]) -> str:
    groups = match.groupdict()
    value, quote = groups.get("value"), groups.get("quote") or ""
    if value is None:
        return REMOVED
    return f"{match[0][: -len(value)]}{quote}{REMOVED}{quote}"
