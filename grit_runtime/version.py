"""The version, of which nothing else knows the number."""

VERSION = "0.1.0"
