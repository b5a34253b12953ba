"""Requests out of the OpenAPI description: bodies that fit it, with values that mean something to this server, and then
some damage. Request i of a seed is always the same, whatever else was sent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from tests.soak.structured import Grammars
from tests.soak.values import NUMBERS, Rng, encode, odd, odd_text, weighted

JSON_TYPE = ("content-type", "application/json")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
STRUCTURED = frozenset({
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
})  # fmt: skip
EXTRAS = (
    "tools", "tool_choice", "functions", "echo", "previous_response_id", "background", "repeat_penalty", "topP",
    "best_of", "suffix", "chat_template", "logits_processors",
    "lora_request",
    "use_beam_search", "documents", "reasoning_effort", "extra_body", "compositon", "strategy", "user", "metadata",
    "cache_salt", "prompt_embeds", "__proto__", "", "self", "cls", "model_extra", "model_config",
)  # fmt: skip
TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"messages": []}, {"x": [[]]})
PROMPTS = ("Where was Lodry Vell born?", "Hi", "", "a b c " * 15, "The town of", "é🜂", "x" * 200, "\n")
DENSITY = (0.0, 0.0, 0.03, 0.03, 0.03, 0.1, 0.1, 0.3, 0.8)  # of the optional fields
DAMAGES = (0, 0, 0, 0, 0, 0, 1, 1, 2, 4)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Bodies:
    """Values for schemas of one description; one object per request. Schemas are plain JSON: `Any` here."""

    def __init__(self, rng: Rng, schemas: Mapping[str, Any], models: Sequence[str], explosive: float) -> None:
        self.rng = rng
        self.models = models
        self.density = rng.choice(DENSITY)
        self.explosive = explosive
        self.grammars = Grammars(rng, explosive)
        self._schemas = schemas
        self._hints = self._meaningful()

    def _meaningful(self) -> dict[str, Callable[[], Any]]:
        """Field → a value that the server can do something with; the schema alone would hardly ever be answered."""
        rng = self.rng
        return {
            "model": self.model,
            "prompt": lambda: rng.choice((*PROMPTS, [1, 2, 3], [PROMPTS[0]] * 2, [[5] * 9], [rng.randrange(500)] * 60)),
            "content": lambda: rng.choice((*PROMPTS, [{"type": "text", "text": PROMPTS[1]}], None)),
            "role": lambda: rng.choice((*("user", "assistant", "system", "developer") * 4, "tool")),
            "negative_prompt": lambda: rng.choice(PROMPTS),
            "continuations": lambda: [rng.choice(("a town", [1, 2], "x")) for _ in range(rng.choice((1, 2, 9)))],
            "max_tokens": lambda: rng.choice((0, 1, 2, 8, 20, 60)),
            "max_completion_tokens": lambda: rng.choice((1, 4, 20)),
            "max_output_tokens": lambda: rng.choice((1, 4, 20)),
            "input": lambda: rng.choice((*PROMPTS, [{"role": "user", "content": PROMPTS[0]}], {"a": [1]})),
            "instructions": lambda: rng.choice(PROMPTS),
            "system": lambda: rng.choice((*PROMPTS, [{"type": "text", "text": PROMPTS[0]}])),
            "min_tokens": lambda: rng.choice((0, 1, 2, 8)),
            "n": lambda: rng.choice((1, 2, 3, 16, 128)),
            "temperature": lambda: rng.choice((0, 0, 0.7, 1, 2)),
            "seed": lambda: rng.choice((0, 1, -1, 2**40)),
            "stop": lambda: rng.choice((".", ["a", "\n"], [], "é")),
            "logit_bias": lambda: {
                str(rng.randrange(420)): rng.choice((-100, 5.5, 100)) for _ in range(rng.randint(0, 9))
            },
            "stop_token_ids": self._tokens,
            "allowed_token_ids": self._tokens,
            "tokens": self._tokens,
            "bad_words": lambda: rng.sample(("a", " ", "town", "é", "\n"), rng.randint(0, 4)),
            "truncate_prompt_tokens": lambda: rng.choice((-1, 1, 5, 100)),
            "chat_template_kwargs": lambda: rng.choice(TEMPLATE_OPTIONS),
            "candidates": lambda: [
                rng.choice((self.model(), {"model": self.model()})) for _ in range(rng.randint(1, 4))
            ],
            "token_offsets": lambda: {rng.choice(("a", "id:7", "id:9999", "town")): rng.choice((-5, 0, 100))},
        }

    def model(self) -> str:
        return odd_text(self.rng) if self.rng.random() < 0.03 else self.rng.choice(self.models)

    def _tokens(self) -> list[int]:
        return [self.rng.randrange(410) for _ in range(self.rng.choice((1, 2, 10, 100)))]

    def of(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """A value that fits, as far as the description says it."""
        if name in self._hints and self.rng.random() < 0.9:
            return self._hints[name]()
        if "$ref" in schema:
            return self.of(self._schemas[schema["$ref"].rpartition("/")[2]], name, depth + 1)
        options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if options:
            return self._one_of(options, name, depth)
        if "const" in schema or "enum" in schema:
            return self.rng.choice(schema.get("enum") or [schema["const"]])
        return self._typed(schema, depth)

    def _one_of(self, options: Sequence[Any], name: str, depth: int) -> Any:
        meant = [option for option in options if option.get("type") != "null"]
        option = self.rng.choice(options if self.rng.random() < 0.1 else meant)
        role = option.get("type") == "string" and any(other.get("$ref", "").endswith("Object") for other in options)
        return self.model() if role else self.of(option, name, depth)

    def _typed(self, schema: Any, depth: int) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                least, most = schema.get("minItems", 0), min(schema.get("maxItems", 9), 9)
                count = self.rng.randint(least, max(least, min(most, least + 3)))
                return [self.of(schema.get("items", {}), depth=depth + 1) for _ in range(count)]
            case "string":
                return (odd_text(self.rng) or "a")[: schema.get("maxLength", 99)]
            case "integer" | "number" as kind:
                return self._number(schema, kind)
            case "boolean":
                return self.rng.random() < 0.5
            case _:
                return odd(self.rng, self.explosive)

    def _number(self, schema: Any, kind: str) -> int | float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
        high = schema.get("maximum", schema.get("exclusiveMaximum", max(low + 1, 1000)))
        inside = self.rng.choice((low, high, self.rng.uniform(low, high), min(max(1, low), high)))
        return int(inside) if kind == "integer" else float(inside)

    def _object(self, schema: Any, depth: int) -> dict[str, Any]:
        if depth > 12:
            return {}
        required = schema.get("required", ())
        density = max(self.density, 0.5) if depth > 1 else self.density  # parts of a composition need their fields
        named = {
            name: self.of(inner, name, depth + 1)
            for name, inner in schema.get("properties", {}).items()
            if (name in required or name == "strategy" or self.rng.random() < density) and name not in STRUCTURED
        }
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and self.rng.random() < 0.5:
            named[odd_text(self.rng)] = self.of(more, depth=depth + 1)
        return named

    def body(self, schema: Any) -> Any:
        """A request's body: fits, or nearly."""
        value = self.of(schema)
        fields = self._properties(schema)
        if isinstance(value, dict):
            body = value = cast("dict[str, Any]", value)
            self._complete(body, fields)
            if STRUCTURED & fields.keys() and self.rng.random() < 0.2:
                body.update(self.grammars.any())
            if self.rng.random() < 0.05:
                body[self.rng.choice(EXTRAS)] = odd(self.rng, self.explosive)
        for _ in range(self.rng.choice(DAMAGES)):
            value = self.damaged(value)
        return value

    def _complete(self, body: dict[str, Any], fields: Mapping[str, Any]) -> None:
        """What most requests have; else nearly all of them would be refused for the same reason, or be long."""
        usual: dict[str, Callable[[], Any]] = {
            "model": self.model,
            "max_tokens": self._hints["max_tokens"],
            "composition": lambda: self.of(fields["composition"]) if self.rng.random() < 0.4 else None,
            "stream": lambda: self.rng.random() < 0.3,
            "prompt": lambda: self._hints["prompt"]() if "messages" not in body else None,
        }
        for name, value in usual.items():
            if name in fields and name not in body and self.rng.random() < 0.9:
                body[name] = value()

    def _properties(self, schema: Any) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema.get("properties", {})

    def damaged(self, value: Any) -> Any:
        """The value with one place of it changed, dropped, doubled or filled with something odd."""
        if isinstance(value, dict) and value and self.rng.random() < 0.97:
            tree = dict(cast("dict[str, Any]", value))
            name = self.rng.choice(sorted(tree))
            if self.rng.random() < 0.1:
                tree.pop(name)
            elif self.rng.random() < 0.1:
                tree[odd_text(self.rng)] = tree[name]
            else:
                tree[name] = self.damaged(tree[name])
            return tree
        if isinstance(value, list) and value and self.rng.random() < 0.7:
            items = list(cast("list[Any]", value))
            if self.rng.random() < 0.15:
                return items * self.rng.choice((2, 20, 200))
            at = self.rng.randrange(len(items))
            return [*items[:at], self.damaged(items[at]), *items[at + 1 :]]
        if isinstance(value, int | float) and abs(value) < 2**64 and self.rng.random() < 0.5:
            return self.rng.choice((value + 1, value - 1, -value, str(value), float(value), self.rng.choice(NUMBERS)))
        return odd(self.rng, self.explosive)


class Generator:
    """`spec`: the OpenAPI description. `explosive`: the share of grammars and values that are made
    to explode."""

    def __init__(self, spec: Mapping[str, Any], models: Sequence[str], seed: int, explosive: float) -> None:
        self.seed = seed
        self._models = models
        self._explosive = explosive
        self._schemas: Mapping[str, Any] = spec["components"]["schemas"]
        paths: Mapping[str, Mapping[str, Any]] = spec["paths"]
        self._calls = [(path, method.upper(), call) for path, calls in paths.items() for method, call in calls.items()]
        posts = [(path, call) for path, method, call in self._calls if method == "POST"]
        self._posts = [post for post in posts for _ in range(3 if post[0].endswith("completions") else 1)]

    def request(self, index: int) -> Request:
        rng = random.Random(f"{self.seed}/{index}")
        bodies = Bodies(rng, self._schemas, self._models, self._explosive)
        if rng.random() < 0.07:
            return self._without_body(rng, bodies)
        path, call = rng.choice(self._posts)
        schema = call["requestBody"]["content"]["application/json"]["schema"]
        text = encode(bodies.body(schema))
        return Request("POST", path, _headers(rng), _sent(rng, text))

    def _without_body(self, rng: Rng, bodies: Bodies) -> Request:
        path, method, _ = rng.choice(self._calls)
        named = path.replace("{name}", rng.choice((bodies.model(), odd_text(rng), "../" * 9, "x" * 5000)))
        if rng.random() < 0.3:
            named = rng.choice(("/", "/v1", "/v1/nothing", named + "/", "//", "/v1/embeddings", "/docs", "/%00%0a%1b"))
        if rng.random() < 0.3:
            named += "?" + rng.choice(("model=large", "model=%00", "x=" + "y" * 3000, "model=a&model=b", "%zz=%"))
        named = quote(named, safe="/?&=%+")
        return Request(rng.choice(METHODS) if rng.random() < 0.3 else method, named, _headers(rng))


def _headers(rng: Rng) -> tuple[tuple[str, str], ...]:
    if rng.random() < 0.95:
        return (JSON_TYPE,)
    return (
        rng.choice((JSON_TYPE, ("content-type", "text/plain"), ("content-type", "application/json; charset=utf-16"))),
        rng.choice((
            ("x-request-id", rng.choice(("é", "x" * 500, "a b", "<script>"))),
            ("authorization", rng.choice(("Bearer", "Bearer é", "Basic eA==", "x" * 5000))),
            ("accept-encoding", "gzip, br, zstd"),
            ("content-encoding", "gzip"),
            ("expect", "100-continue"),
            ("range", "bytes=0-1"),
            ("host", "evil.example"),
            ("x-forwarded-for", "1.2.3.4"),
        )),
    )  # fmt: skip


def _sent(rng: Rng, text: str) -> bytes:
    """The bytes of a body; one in thirty is damaged as bytes."""
    body = text.encode("utf-8", "surrogatepass")
    if rng.random() > 1 / 30:
        return body
    ways: tuple[tuple[int, Callable[[], bytes]], ...] = (
        (4, lambda: body[: rng.randrange(len(body) + 1)]),
        (2, lambda: body + rng.choice((b"x", b"{}", b"\x00", b" "))),
        (2, lambda: b"\xef\xbb\xbf" + body),
        (2, lambda: text.encode("utf-16", "surrogatepass")),
        (2, lambda: body.replace(b"e", b"\xff", 1)),
        (1, lambda: b" " * 10_000 + body),
        (1, lambda: b"[" + body + b"]"),
        (1, lambda: encode(odd_text(rng)).encode()),
        (1, lambda: b""),
    )
    return weighted(rng, ways)()
