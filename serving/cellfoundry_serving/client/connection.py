"""How both clients connect: URL, key and proxies."""

from __future__ import annotations

import ipaddress
from typing import Any

import httpx

from cellfoundry_serving.errors import ServingError


def http_options(url: str, api_key: str | None) -> dict[str, Any]:
    """Keywords of an httpx client; ServingError for a URL or a key that cannot be one."""
    parsed = parse_url(url)
    return {
        "base_url": parsed,
        # A proxy of the environment is for the outside; it cannot reach this machine's loopback.
        "trust_env": not is_loopback(parsed.host),
        "headers": {} if api_key is None else {"Authorization": f"Bearer {checked_key(api_key)}"},
    }


def parse_url(url: str) -> httpx.URL:
    """ServingError for what is no URL of HTTP."""
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ServingError(f"{url!r} is no URL; give one such as http://127.0.0.1:8000.")
    return parsed


def shown_url(url: str) -> str:
    """The URL as messages show it: without a user's name and password."""
    return str(parse_url(url).copy_with(userinfo=b""))


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked_key(api_key: str) -> str:
    """The key; ServingError, which does not repeat it, where a header cannot carry it."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        raise ServingError(
            "The API key must be ASCII characters without line ends and spaces around it; check api_key."
        )
    return api_key
