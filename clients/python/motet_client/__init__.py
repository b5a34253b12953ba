"""Typed compositions for the openai SDK: `client.chat.completions.create(…, **compose(ProxyTuning(…)))`."""

from motet_client.answer import *  # noqa: F403
from motet_client.compositions import *  # noqa: F403
from motet_client.request import *  # noqa: F403
