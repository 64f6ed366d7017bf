"""The status page at `/`: one file without anything from elsewhere. It polls /stats and shows what comes.

Its content policy names the hash of its own script and style, so nothing else runs in it, whatever a model is called.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("status.html")


def page() -> tuple[bytes, str]:
    """The page, and the value of its `content-security-policy`."""
    html = FILE.read_bytes()
    script, style = (_hash(html, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(html: bytes, tag: bytes) -> str:
    (content,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), html, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()
