"""YAML as recipes are written in it: numbers as in YAML 1.2, `1e-3` is one."""

from __future__ import annotations

import re

import yaml


class Loader(yaml.SafeLoader):
    """PyYAML reads numbers as in YAML 1.1, where an exponent needs a point and a sign."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
