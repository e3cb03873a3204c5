"""Imported first, for what it does: `asyncio` then does without `ssl`, as it does in a Python without OpenSSL.

The agent serves Unix sockets and needs none; with OpenSSL its process would be 5 MB larger.
"""

import sys
from typing import Any, Dict

_modules: Dict[str, Any] = sys.modules
_modules.setdefault("ssl", None)
