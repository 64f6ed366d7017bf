"""Which file holds the pepper, as a config says that cannot be loaded because that file is not there yet.

The first key is made before the gateway has ever run, and with it the pepper.
"""

import re
from pathlib import Path
from typing import Final

from .errors import Report
from .nodes import Items, Scalar, Table
from .yaml_nodes import parse

_FILE: Final = re.compile(r"\$\{file:([^}]+)\}")


def pepper_file(text: str) -> Path | None:
    """The file in `auth: {pepper: "${file:…}"}` of the text of a config; None where none stands there.

    Raises ConfigError where the text is not YAML.
    """
    filters = parse(text, Report("gateway.yaml")).entries.get("filters")
    for item in filters.items if isinstance(filters, Items) else []:
        auth = item.entries.get("auth") if isinstance(item, Table) else None
        pepper = auth.entries.get("pepper") if isinstance(auth, Table) else None
        if isinstance(pepper, Scalar) and (found := _FILE.fullmatch(pepper.text)):
            return Path(found[1])
    return None
