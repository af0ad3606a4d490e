"""Secrets are taken out of texts, and the rest is left."""

from __future__ import annotations

import time

import pytest

from grit_runtime.model import secrets

SECRETS = {
    "DB_PASSWORD=hunter2xyz": "DB_PASSWORD=[removed]",
    '{"api_key": "a b\\"c", "pod": "web"}': '{"api_key": "[removed]", "pod": "web"}',
    "store: https://me:pa55@host/x?y": "store: https://[removed]@host/x?y",
    "Authorization: Bearer abcdefghijkl": "Authorization: [removed]",
    "see eyJhbGciOi.eyJzdWIiOi.c2ln end": "see [removed] end",
    "key AKIAABCDEFGHIJKLMNOP used": "key [removed] used",
    "s3://b/k?X-Amz-Signature=0a1b&X=2": "s3://b/k?X-Amz-Signature=[removed]&X=2",
    "a -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- b": "a [removed] b",
    "a -----BEGIN PRIVATE KEY-----\nMHc": "a [removed]",
    "hf_abcdefghijklmnopqrst": "[removed]",
    # As grit's own lines have it, and JSON in JSON.
    r'msg="reply {\"password\": \"hunter2xyz\", \"token\": \"hunter2xyz\"}" pod=web': (
        r'msg="reply {\"password\": \"[removed]\", \"token\": \"[removed]\"}" pod=web'
    ),
    r'{"a": "{\"b\": \"{\\\"secret\\\": \\\"x \\\\\\\"y\\\"}\"}", "pod": "web"}': (
        r'{"a": "{\"b\": \"{\\\"secret\\\": \\\"[removed]\\\"}\"}", "pod": "web"}'
    ),
    r'{"reason": "password=\"hunter2 two words\"", "pod": "web"}': (
        r'{"reason": "password=\"[removed]\"", "pod": "web"}'
    ),
    "{'reason': \"password='hunter2 two words'\"}": "{'reason': \"password='[removed]'\"}",
    'was cut: password="hunter2 two wor': "was cut: password=[removed]",
    "git clone https://gh-hunter2@host/x": "git clone https://[removed]@host/x",
    "https://user:p@hunter2@host/x?a@b": "https://[removed]@host/x?a@b",
    "mysql --password hunter2 --host db": "mysql --password [removed] --host db",
    '["mysql", "--password", "hunter2", "db"]': '["mysql", "--password", "[removed]", "db"]',
    "DB_PASS=hunter2 MYSQL_PWD=hunter2": "DB_PASS=[removed] MYSQL_PWD=[removed]",
    "passphrase: hunter2": "passphrase: [removed]",
    '"tokens": ["hunter2", "b"], "x": 1': '"tokens": [removed], "x": 1',
    '"tokens": [\n "hunter2",\n "b"\n], "x": 1': '"tokens": [removed], "x": 1',
    '"tokens": ["hunter2", "b': '"tokens": [removed]',
    '{"ghcr.io": {"auth": "aHVudGVyMg=="}}': '{"ghcr.io": {"auth": "[removed]"}}',
    "AccountName=a;AccountKey=aHVu/Mg==;B=c": "AccountName=a;AccountKey=[removed];B=c",
    "> Cookie: a=hunter2; b=hunter2\n> Host: x": "> Cookie: [removed]\n> Host: x",
    "authorization: Token hunter2\nHost: x": "authorization: [removed]\nHost: x",
    '{"a": "Authorization: Token hunter2", "b": 1}': '{"a": "Authorization: [removed]", "b": 1}',
    r'{"a": "Cookie: b=\"hunter2\"; c=d\nHost: x"}': r'{"a": "Cookie: [removed]\nHost: x"}',
    '"Authorization": "Token hunter2", "b": 1': '"Authorization": "[removed]", "b": 1',
    "s3://b/k?a=1&X-Goog-Signature=0a1b&X=2": "s3://b/k?a=1&X-Goog-Signature=[removed]&X=2",
    r"https://h/k?a=1\u0026sig=0a1b\u0026b=2": r"https://h/k?a=1\u0026sig=[removed]\u0026b=2",
    "https://h/k?sharedKey=0a1b": "https://h/k?sharedKey=[removed]",
    "a:\n  password: |\n    hunter2\n    two\n  b: c": "a:\n  password: [removed]\n  b: c",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ\n-----END PGP PRIVATE KEY BLOCK-----\nb": (
        "[removed]\nb"
    ),
    "AQEEIA+/\nhunter2xyz==\n-----END EC PRIVATE KEY-----\nb": "[removed]\nb",
    "DB_PASSWORD=ab,cd9&zz next": "DB_PASSWORD=[removed] next",
    "password=it's5ecret next": "password=[removed] next",
    '{"a": "password=it\'s5ecret", "b": 1}': '{"a": "password=[removed]", "b": 1}',
    '{"a":"token=x,y","b":{"token":5},"c":1}': (
        '{"a":"token=[removed]","b":{"token":[removed]},"c":1}'
    ),
    r'{"a":"{\"token\":5,\"b\":\"password=x\"}\n"}': (
        r'{"a":"{\"token\":[removed],\"b\":\"password=[removed]\"}\n"}'
    ),
    '{"password": {"value": "hunter2"}, "b": 1}': '{"password": [removed], "b": 1}',
    '{"password": {\n "value": "hunter2"\n}}': '{"password": [removed]}',
    '{"name": "DB_PASSWORD", "value": "hunter2"}': '{"name": "DB_PASSWORD", "value": "[removed]"}',
    '{"name":"DBPASS","value":"hunter2"}': '{"name":"DBPASS","value":"[removed]"}',
    "- name: DB_PASSWORD\n  value: hunter2\n": "- name: DB_PASSWORD\n  value: [removed]\n",
    "- name: SIGNING_KEY\n  value: 'hun ter2'\n": "- name: SIGNING_KEY\n  value: '[removed]'\n",
    "ENCRYPTION_KEY=hunter2 SIGNING_KEY=hunter2": "ENCRYPTION_KEY=[removed] SIGNING_KEY=[removed]",
    'encryption_key: "hunter2"': 'encryption_key: "[removed]"',
    "STRIPE_KEY=sk_live_0a1b2c": "STRIPE_KEY=[removed]",
    "sk_live_abcdefghijklmnopqrst": "[removed]",
    "Uid=sa;Pwd=hunter2;Database=x": "Uid=sa;Pwd=[removed];Database=x",
    "pass: hunter2\nDBPASS=/hunter2 dbpass=x": "pass: [removed]\nDBPASS=[removed] dbpass=[removed]",
    "AIzaSyA0123456789abcdefghijklmnopqrstuv": "[removed]",
    f"npm_{'a1' * 18}": "[removed]",
    "dckr_pat_abcdefghijklmnopqrstuvwxyz0": "[removed]",
    "xapp-1-A0123456789-0123456789-abcdef": "[removed]",
    f"AGE-SECRET-KEY-1{'Q2' * 29}": "[removed]",
    "https://user:pa/ss@host/x?a=b": "https://[removed]@host/x?a=b",
    "redis://:pa/s@s@host:6379": "redis://[removed]@host:6379",
    "at 10:\nAQEEIA\nMg==\n-----END PRIVATE KEY-----": "at 10:[removed]",
}
PLAIN = (
    'signing_key = "/etc/grit/signing.pem"',
    '"manifest_sha256": "b89bd2c23e65bf0d577398b6587cbba7eda782c75af38fba4e46e3f5b73cc133"',
    "criu/sysctl.c:292: failed to open pid 1's ns uts: Too many open files",
    "peer://node-a:9465 has 3 checkpoints",
    "the token bucket is empty, its key missing: wait",
    "no cookies, no authorization and no password were asked for",
    "PWD=/root OLDPWD=/ bypass=1 compass: north auth=mutual",
    'store_key = "/etc/grit/store.key"',
    "see grit store --token-file /etc/grit/token and https://host/a@b?x=y&monkeys=2",
    "docker://registry:5000/library/busybox@sha256:b89bd2c23e65bf0d577398b6587cbba7eda782c75af38fba4e",
    'store_key: /etc/grit/store.key: no such file, signing_key = "/etc/x", SIGNING_KEY=/etc/x',
    "npm_config_registry_of_this_node and key: a, KEYS=3, pass by",
    '{"name": "PATH", "value": "/bin"}, {"name": "TERM", "value": "xterm"}',
    "docker.io/library/busybox@sha256:b89bd2c23e65bf0d577398b6587cbba7eda782c75af38fba4e46e3f5b73c",
    "-----BEGIN PUBLIC KEY-----\nMHc\n-----END PUBLIC KEY-----",
)
# Each makes an expression that goes back look at all that follows it, again and again.
HOSTILE = (
    *("token", "a", "-", "=", " ", "\n", "\\", '"', "'", "[", "A\n", "://", "@"),
    *("token=[", 'token="', "token='", 'token=\\"', "token ", "token:\n", "--token ", "-eyJaaaaa"),
    *("-----BEGIN ", "-----END PRIVATE ", "-----END PRIVATE KEY", "A" * 64 + "\n", "://a:", "&a"),
    *("pass={", "token={{", "token=,", "token=;a", "a_KEY=", "A_", "PASS=']", "://a:b/", "://:::"),
    *("name: token value: ", "name: ", '"name":"TOKEN", ', "token=}]", "token='x", "A_KEY:"),
    *("cookie:", "cookie: \\", 'cookie: "', "password: |\n ", "bearer ", '"auth": ', "?sig"),
)


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    left, count = secrets.removed(text)
    assert left == SECRETS[text]
    assert count >= 1


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_none_is_left(text: str) -> None:
    assert secrets.removed(text) == (text, 0)


def test_no_text_takes_the_square_of_its_length() -> None:
    for part in HOSTILE:
        begin_s = time.process_time()
        secrets.removed(part * (500_000 // len(part)))
        assert time.process_time() - begin_s < 2, part  # its square would take minutes
