"""The first example of well-known frameworks, unchanged, with the real client over a real port: against the demo
family, which writes nonsense of the right shape, and against a server whose model calls a function and then answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from pydantic import BaseModel, SecretStr

from motet.engines.base import GenerationRequest
from motet.models.tool_formats import TOOL_FORMATS
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.service import Service
from tests.fakes import FakeEngine, FakeGeneration, byte_tokenizer, fake_member
from tests.server.conftest import listening

CLIENTS = Path(__file__).parents[2] / "clients"
HERMES = TOOL_FORMATS["hermes"]
CALL = HERMES.written([("get_weather", '{"city": "Paris"}')])
MODELS = ["small-chat", "large-proxy"]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


JOHN: Any = [{"role": "user", "content": "John Doe is 30 years old."}]
MODES = [None, "JSON_SCHEMA", "TOOLS_STRICT"]  # of instructor


class CityLocation(BaseModel):
    city: str
    country: str


class User(BaseModel):
    name: str
    age: int


@dataclass
class TalkingEngine(FakeEngine):
    """The model says one of `turns` after another."""

    turns: list[str] = field(default_factory=list[str])

    def generate(self, request: GenerationRequest) -> FakeGeneration:
        said = self.turns[min(len(self.requests), len(self.turns) - 1)]
        self.scripts = {"talker": TOKENIZER.encode(said)}
        return super().generate(request)

    def read(self) -> list[str]:
        """What the model read for each turn."""
        return [TOKENIZER.decode(request.contexts[0]) for request in self.requests]


TOKENIZER = byte_tokenizer()


@asynccontextmanager
async def talking(*turns: str) -> AsyncGenerator[tuple[str, TalkingEngine]]:
    """A server whose only model says these turns, greedily; (URL of its API, engine)."""
    member = fake_member("talker", TOKENIZER, "chat", max_model_len=8192)
    member = replace(member, own_format=HERMES)
    engine = TalkingEngine({"talker": member.info}, kv_bytes_budget=1 << 24, turns=list(turns))
    service = Service.assemble(ServerConfig(port=0), engine, Registry({"talker": member}))
    async with listening(service) as (url, _):
        yield f"{url}/v1", engine


def chat(url: str, model: str, temperature: float | None = None) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=url, api_key=SecretStr("none"), model=model, temperature=temperature, max_retries=0)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


def weather_by_langchain(url: str, model: str) -> list[Any]:
    agents: Any = import_module("langchain.agents")  # partially typed
    agent = agents.create_agent(model=chat(url, model, 0), tools=[get_weather], system_prompt="You help.")
    return agent.invoke({"messages": MESSAGES})["messages"]


def city_by_pydantic_ai(url: str, model: str) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    asked = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="none"))
    return Agent(asked, output_type=CityLocation).run_sync("Where were the olympics held in 2012?").output


def instructor(url: str, mode: str | None) -> Any:
    """Its client; mode None is its own default."""
    module: Any = import_module("instructor")  # partially typed
    chosen = {} if mode is None else {"mode": module.Mode[mode]}
    return module.from_openai(OpenAI(base_url=url, api_key="none", max_retries=0), **chosen).chat.completions


def user_by_instructor(url: str, model: str, mode: str | None = None) -> Any:
    return instructor(url, mode).create(model=model, response_model=User, messages=JOHN)


def users_by_instructor(url: str, model: str, mode: str | None) -> list[Any]:
    """As they grow while the answer comes."""
    return list(instructor(url, mode).create_partial(model=model, response_model=User, messages=JOHN))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("first", "kind"), [(city_by_pydantic_ai, CityLocation), (user_by_instructor, User)])
def test_typed_answers_of_the_demo_family(
    url: str, model: str, first: Callable[[str, str], Any], kind: type[BaseModel]
) -> None:
    """Both ask by tools in their default mode."""
    assert isinstance(first(f"{url}/v1", model), kind)


@pytest.mark.parametrize("mode", MODES)
def test_instructor_on_the_demo_family(url: str, mode: str | None) -> None:
    assert isinstance(user_by_instructor(f"{url}/v1", "large-proxy", mode), User)
    last = users_by_instructor(f"{url}/v1", "large-proxy", mode)[-1]
    User.model_validate(last.model_dump())


@pytest.mark.parametrize("model", MODELS)
def test_a_langchain_agent_on_the_demo_family(url: str, model: str) -> None:
    """It has never seen a tool, and answers."""
    assert weather_by_langchain(f"{url}/v1", model)[-1].content


@pytest.mark.parametrize("model", MODELS)
def test_the_sdk_streams_a_call_of_the_demo_family(url: str, model: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["get_weather"]
    assert set(json.loads(calls[0].function.arguments)) == {"city"}


async def test_a_langchain_agent_calls_and_answers() -> None:
    async with talking(f"I look.\n{CALL}", "It is sunny.") as (url, engine):
        messages = await asyncio.to_thread(weather_by_langchain, url, "talker")
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[1].tool_calls[0]["args"] == {"city": "Paris"}
    assert messages[-1].content == "It is sunny."
    assert "Sunny in Paris" in engine.read()[1]
    assert CALL in engine.read()[1]


async def test_pydantic_ai_gets_what_the_model_says() -> None:
    final = HERMES.written([("final_result", '{"city": "London", "country": "UK"}')])
    async with talking(final) as (url, _):
        assert await asyncio.to_thread(city_by_pydantic_ai, url, "talker") == CityLocation(city="London", country="UK")


@pytest.mark.parametrize("mode", MODES)
async def test_instructor_gets_what_the_model_says(mode: str | None) -> None:
    said = '{"name": "John", "age": 30}'
    calls = [HERMES.written([(name, said)]) for name in ("User", "PartialUser")]
    async with talking(*([said] if mode == "JSON_SCHEMA" else calls)) as (url, _):
        user = await asyncio.to_thread(user_by_instructor, url, "talker", mode)
        grown = await asyncio.to_thread(users_by_instructor, url, "talker", mode)
    assert (user.name, user.age) == ("John", 30)
    assert {one.name for one in grown} >= {"Jo", "John"}
    assert (grown[-1].name, grown[-1].age) == ("John", 30)


@pytest.mark.parametrize("streamed", ["0", "1"])
async def test_run_tools_of_the_sdk_for_node(tmp_path: Path, streamed: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    for name in ("package.json", "openai_tools.mjs"):
        shutil.copy(CLIENTS / name, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = await asyncio.to_thread(
        subprocess.run, install, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm cannot install the SDK: {installed.stderr.strip().splitlines()[-1:]}")
    async with talking(CALL, "It is sunny.") as (url, engine):
        environment = {
            "MOTET_URL": url,
            "MOTET_MODEL": "talker",
            "MOTET_STREAM": streamed,
            "PATH": "/usr/bin:/bin:/usr/local/bin",
        }
        run = await asyncio.create_subprocess_exec(
            "node", "openai_tools.mjs", cwd=tmp_path, env=environment, stdout=-1, stderr=-1
        )
        said, wrong = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0, wrong.decode()
    assert said.decode().splitlines() == ["called: Paris", "answer: It is sunny."]
    assert "Sunny in Paris" in engine.read()[1]


def test_the_page_names_the_versions() -> None:
    """Those that are installed here; the Node SDK's is the examples' own."""
    packages = {"LangChain": "langchain", "pydantic-ai": "pydantic-ai-slim", "instructor": "instructor"}
    node = json.loads((CLIENTS / "package.json").read_text())["dependencies"]["openai"]
    expected = {f"| {title} {version(package)} |" for title, package in packages.items()} | {f"| openai {node} |"}
    page = (CLIENTS.parent / "docs" / "clients.md").read_text().partition("## Frameworks")[2]
    assert {row for row in expected if row not in page} == set()
