"""What makes an HTML file stand by itself: its templates, and the one script that its own policy lets run.

Jinja2 escapes what data says, scripts set it as text, and the Content-Security-Policy lets no script run whose hash it does not
name, and nothing load.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "template"


def environment() -> jinja2.Environment:
    """The templates: all is escaped, and what is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def scripted(names: Sequence[str]) -> str:
    """Files of scripts as one, in a scope of its own."""
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    return f'"use strict";\n(() => {{\n{script}}})();\n'


def policy(script: str, style: str) -> str:
    """A page's Content-Security-Policy: this script and this style sheet, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_hashed(script)}'; style-src '{_hashed(style)}'; base-uri 'none'; "
        "form-action 'none'"
    )


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: no character in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _hashed(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
