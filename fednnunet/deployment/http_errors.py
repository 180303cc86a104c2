"""Error responses of the server over HTTP, as text."""

from __future__ import annotations

import json

import httpx

from fednnunet.errors import one_line


def error_text(response: httpx.Response) -> str:
    """Status and text of an error response, from Flower or from this project's gateway."""
    text = response.text
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        text = str(content.get("message") or content.get("detail") or text)
    return f"{response.status_code}: {one_line(text[:400]).rstrip('. ')}"
