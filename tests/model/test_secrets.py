"""Secrets are taken out of texts, and the rest is left."""

from __future__ import annotations

import pytest

from grit_runtime.model import secrets

SECRETS = {
    "DB_PASSWORD=hunter2xyz": "DB_PASSWORD=[removed]",
    '{"api_key": "a b\\"c", "pod": "web"}': '{"api_key": "[removed]", "pod": "web"}',
    "store: https://me:pa55@host/x?y": "store: https://[removed]@host/x?y",
    "Authorization: Bearer abcdefghijkl": "Authorization: [removed] [removed]",
    "see eyJhbGciOi.eyJzdWIiOi.c2ln end": "see [removed] end",
    "key AKIAABCDEFGHIJKLMNOP used": "key [removed] used",
    "s3://b/k?X-Amz-Signature=0a1b&X=2": "s3://b/k?X-Amz-Signature=[removed]&X=2",
    "a -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- b": "a [removed] b",
    "a -----BEGIN PRIVATE KEY-----\nMHc": "a [removed]",
    "hf_abcdefghijklmnopqrst": "[removed]",
}
PLAIN = (
    'signing_key = "/etc/grit/signing.pem"',
    '"manifest_sha256": "b89bd2c23e65bf0d577398b6587cbba7eda782c75af38fba4e46e3f5b73cc133"',
    "criu/sysctl.c:292: failed to open pid 1's ns uts: Too many open files",
    "peer://node-a:9465 has 3 checkpoints",
)


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    left, count = secrets.removed(text)
    assert left.replace("[removed] [removed]", "[removed]") == SECRETS[text].replace(
        "[removed] [removed]", "[removed]"
    )
    assert count >= 1


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_none_is_left(text: str) -> None:
    assert secrets.removed(text) == (text, 0)
