"""The same examples on every machine and at every run, and nothing left in the user's folders."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

cache = tempfile.mkdtemp(prefix="onnx-amc-tests-")
os.environ["XDG_CACHE_HOME"] = cache
atexit.register(shutil.rmtree, cache, ignore_errors=True)
