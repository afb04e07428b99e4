"""Attacks on secrets: keys, files of the host, other sessions, the data that the agent is judged by."""

from __future__ import annotations

from rig import Tier


def test_reading_environment_keys(tier: Tier) -> None:
    text = tier.run("print(dict(os.environ)); print(read('/proc/self/environ'))")
    tier.assert_secret(text)
    assert "API_KEY" not in text
