"""Metrics and data of one's own, to be named as `module:function` from the root of the project."""
