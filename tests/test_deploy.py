"""The files of deploy/: what they name exists, and their own tools understand them where they are at hand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from motet.cli import app
from motet.operator.settings import ServerConfig, Settings
from motet.server.app import create_app
from tests.server.conftest import World
from tests.server.conftest import make_world as make_world
from tests.server.conftest import world as world

DEPLOY = Path(__file__).parent.parent / "deploy"
DRAIN = ServerConfig.model_fields["drain_seconds"].default
METRIC = re.compile(r"motet:\w+")
LABELS = re.compile(r"by \(([^)]*)\)")
FROM_PROMETHEUS = {"instance"}  # labels that the scraper adds


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def check_command(words: list[str]) -> None:
    """`motet serve FILE` with options that it has."""
    assert words[0].endswith("motet")
    serve = cast(Any, typer.main.get_command(app)).commands["serve"]
    context = serve.make_context("serve", words[2:], resilient_parsing=False)
    assert Path(context.params["file"]).name == "models.yaml"


def check_variable(name: str) -> None:
    """`MOTET_SECTION__FIELD` of the operator's file."""
    section, field = name.removeprefix("MOTET_").lower().split("__")
    assert field in cast(Any, Settings.model_fields[section].annotation).model_fields


def test_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "motet.service").read_text()
    command = next(line for line in text.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    check_command(shlex.split(command))
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0])
    assert stop > DRAIN, "systemd kills what has not drained by then"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not at hand; the rest of the unit was looked at")
    unit = tmp_path / "motet.service"
    unit.write_text(text.replace(shlex.split(command)[0], sys.executable))
    verified = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_kubernetes_own_schemas_take_the_manifest() -> None:
    kubernetes: Any = import_module("kubernetes_validate")  # untyped
    for document in documents("kubernetes.yaml"):
        assert kubernetes.validate(document, "1.30", strict=True) == "1.30"
    mistyped: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "spec": {"prots": []}}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(mistyped, "1.30", strict=True)


def test_the_manifest(world: World) -> None:
    deployment, service = documents("kubernetes.yaml")
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    template = deployment["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert pod["terminationGracePeriodSeconds"] > DRAIN
    check_command(container["command"])
    for variable in container["env"]:
        check_variable(variable["name"])
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["containerPort"]
    paths = create_app(world.service).openapi()["paths"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["containerPort"]
        assert container[probe]["httpGet"]["path"] in paths
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_compose_file() -> None:
    (compose,) = documents("compose.yaml")
    service = compose["services"]["motet"]
    check_command(shlex.split(service["command"][0].partition("exec ")[2]))
    named = {volume.partition(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
    assert named == compose["volumes"].keys()


async def test_the_dashboard_shows_what_there_is(world: World) -> None:
    """Every metric and label of its queries is one of /metrics, and every metric of /metrics is in a panel."""
    for stream in (False, True):
        body = {"model": "large-proxy", "prompt": "a", "max_tokens": 3, "trace": True, "stream": stream}
        assert (await world.post("/v1/completions", **body)).status_code == 200
    world.service.metrics.gate_decisions.labels("touches", "true").inc()
    world.service.metrics.cascade_answers.labels("small").inc()
    world.service.metrics.routed_tokens.labels("base").inc()
    families = list(text_string_to_metric_families((await world.client.get("/metrics")).text))
    samples: dict[str, Sample] = {sample.name: sample for family in families for sample in family.samples}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for query in queries:
        (labels,) = {frozenset(samples[name].labels) for name in METRIC.findall(query)}
        for grouped in LABELS.findall(query):
            assert {label.strip() for label in grouped.split(",")} <= labels | FROM_PROMETHEUS, query
    asked = set(METRIC.findall(" ".join(queries)))
    for family in families:
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        assert names & asked or family.name.endswith("_created"), f"{family.name} is in no panel"
    (variable,) = (one for one in dashboard["templating"]["list"] if one["name"] == "instance")
    assert set(METRIC.findall(variable["query"]["query"])) <= samples.keys()


def test_panels_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["description"] for panel in panels)
