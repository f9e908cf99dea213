"""The same examples on every machine and at every run, and nothing left in the user's folders."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="onnx-amc-tests-")
