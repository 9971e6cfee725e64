"""Paths, methods, keys, ids, gates, bodies: what every route has in common."""

import asyncio
import logging

import httpx
import pytest

from slipstream.server import body
from slipstream.server.auth import Access
from slipstream.server.border import normal_path
from slipstream.server.routes.table import ROUTES

OPEN = {"/health", "/ready", "/metrics"}


def body_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def test_normal_path():
    assert [normal_path(path) for path in ("/", "//", "//v1//models/", "/a", "")] == ["/", "/", "/v1/models", "/a", "/"]


async def test_double_and_trailing_slashes_are_tolerated(rig_http):
    _, http = rig_http
    for path in ("/v1//models", "/v1/models/", "//v1/models//"):
        assert (await http.get("http://test" + path)).status_code == 200


async def test_unknown_paths_and_methods_have_openai_bodies(rig_http):
    _, http = rig_http
    missing = await http.get("/v1/embeddings")
    assert missing.status_code == 404 and "/v1/embeddings" in body_of(missing)["message"]
    wrong = await http.get("/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and body_of(wrong)
    assert (await http.delete("/health")).status_code == 405


async def test_head_and_options(rig_http):
    _, http = rig_http
    assert (await http.head("/health")).status_code == 200
    options = await http.options("/v1/models")
    assert options.status_code == 204 and options.headers["allow"] == "GET, HEAD, OPTIONS"
    assert not any(name.startswith("access-control") for name in options.headers)
    assert (await http.options("/nowhere")).status_code == 404


async def test_every_route_but_the_open_ones_needs_the_key(make_http):
    assert {route.path for route in ROUTES if route.access is Access.OPEN} == OPEN
    async with make_http(api_key="sesame") as (rig, http):
        for route in ROUTES:
            path = route.path.replace("{model:path}", "echo")
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "sesame"},
                {"authorization": "Bearer sesamé".encode()},
            ):
                response = await http.request(route.method, path, headers=headers)
                if path in OPEN:
                    assert response.status_code == 200
                else:
                    assert response.status_code == 401 and body_of(response)["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"] == "Bearer"
            right = await http.request(route.method, path, headers={"authorization": "bearer sesame"}, json={})
            assert right.status_code not in (401, 404, 405)
        for path in ("/nowhere", "/openapi.json", "/docs", "//HEALTH", "/health/x", "/metrics/..%2fv1/models"):
            assert (await http.get("http://test" + path)).status_code == 401
        assert rig.fake.of(object)[0].rid.startswith(("flush", "0:health"))  # only the keyed ones got through


async def test_the_api_page_lists_the_fields(rig_http):
    _, http = rig_http
    page = (await http.get("/openapi.json")).json()
    schema = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "temperature" in schema["properties"]
    assert "all branches together" in schema["properties"]["max_draft_tokens"]["description"]


@pytest.mark.parametrize(
    "phase,open_paths", [("starting", {"/": 200}), ("draining", {"/v1/models": 200, "/server_info": 200})]
)
async def test_gates(rig_http, phase, open_paths):
    rig, http = rig_http
    rig.state.phase = phase
    for route in ROUTES:
        path = route.path.replace("{model:path}", "echo")
        response = await http.request(route.method, path, json={} if route.method == "POST" else None)
        if path in open_paths:
            assert response.status_code == 200
        if path in ("/v1/chat/completions", "/generate", "/tokenize", "/health_generate", "/ready"):
            assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert (await http.get("/health")).status_code == (503 if phase == "starting" else 200)
    assert (await http.get("/metrics")).status_code == 200
    assert rig.fake.seen == []


async def test_a_failed_runtime_is_503(rig_http):
    rig, http = rig_http
    rig.state.fail("the worker process died")
    response = await http.post("/generate", json={"text": "a"})
    assert response.status_code == 503 and "worker process died" in body_of(response)["message"]
    assert "worker process died" in (await http.get("/health")).json()["reason"]


@pytest.mark.parametrize(
    "content,status,word",
    [
        (b"", 400, "empty"),
        (b"{", 400, "JSON"),
        (b"[1]", 400, "object"),
        (b"3", 400, "object"),
        (b'"x"', 400, "object"),
        (b"null", 400, "object"),
        (b'{"text": "\xff"}', 400, "UTF-8"),
        (b'{"text": "a\x00b"}', 400, "JSON"),
        (b'{"text": "\\ud800"}', 400, "JSON"),
        (b'{"text": NaN}', 400, "JSON"),
        (b'{"text": 1e999}', 400, "JSON"),
        (b'{"a":' * 100_00 + b"1" + b"}" * 100_00, 400, "deep"),
        (b"\xef\xbb\xbf{}", 400, "JSON"),
        (b'{"text": "' + b"x" * 300_000 + b'"}', 413, "--max-request-bytes"),
    ],
)
async def test_broken_bodies(rig_http, content, status, word):
    _, http = rig_http
    for path in ("/generate", "/v1/chat/completions", "/abort_request"):
        response = await http.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status and word in body_of(response)["message"]


async def test_a_body_that_does_not_arrive_ends_the_connection(rig_http, monkeypatch):
    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.02)
    _, http = rig_http
    response = await http.post("/generate", content=slow(), headers={"content-type": "application/json"})
    assert response.status_code == 408 and response.headers["connection"] == "close"


async def test_content_types(rig_http):
    _, http = rig_http
    for kind, status in (
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("", 200),
    ):
        response = await http.post("/generate", content=b'{"text": "a"}', headers={"content-type": kind})
        assert response.status_code == status


async def test_request_ids_are_taken_echoed_and_used(rig_http):
    rig, http = rig_http
    response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "trace-1"})
    assert response.headers["x-request-id"] == "trace-1" and response.json()["id"].startswith("trace-1-")
    assert rig.fake.seen[0].rid == "0:" + response.json()["id"]
    for bad in ("x" * 129, "a b", "a\tb", ""):
        response = await http.get("/health", headers={"x-request-id": bad})
        assert response.headers["x-request-id"] not in (bad, "trace-1") and len(response.headers["x-request-id"]) == 32


async def test_access_log_leaves_out_probes_ready_or_not(rig_http, caplog):
    rig, http = rig_http
    with caplog.at_level(logging.INFO, logger="slipstream.server.access"):
        await http.get("/health")
        await http.get("/metrics")
        assert caplog.records == []
        rig.state.phase = "draining"
        await http.get("/ready")
        await http.get("/no%0Awhere")
    assert [record.getMessage().split()[1:3] for record in caplog.records] == [
        ["'/no\\nwhere'", "404"],
    ]


async def test_one_broken_request_fails_alone(rig_http, monkeypatch, caplog):
    rig, http = rig_http
    monkeypatch.setattr(rig.client, "generate", lambda *requests, name: 1 / 0)
    response = await http.post("/generate", json={"text": "a"})
    assert response.status_code == 500 and "division" not in response.text and body_of(response)
    assert "ZeroDivisionError" in caplog.text
    assert (await http.get("/health")).status_code == 200
    assert 'error="ZeroDivisionError"' in (await http.get("/metrics")).text


async def test_queue_full_is_503_before_tokenising(make_http):
    async with make_http(max_running_requests=1, max_queued_requests=2) as (rig, http):
        hanging = [asyncio.create_task(http.post("/generate", json={"text": "HANG", "rid": f"h{i}"})) for i in range(3)]
        while rig.client.num_requests < 3:
            await asyncio.sleep(0.001)
        response = await http.post("/v1/completions", json={"prompt": "a"})
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert "--max-queued-requests 2" in body_of(response)["message"]
        too_many = await http.post("/v1/completions", json={"prompt": "a", "n": 4})
        assert too_many.status_code == 400 and too_many.json()["error"]["param"] == "n"
        duplicate = await http.post("/abort_request", json={"rid": "h"})
        assert duplicate.json() == {"num_aborted": 0}  # exact ids only
        assert (await http.post("/abort_request", json={"rid": "h1"})).json() == {"num_aborted": 1}
        assert (await hanging[1]).json()["meta_info"]["finish_reason"] == {"type": "abort"}
        assert (await http.post("/generate", json={"text": "a"})).status_code == 200
        busy = await http.post("/flush_cache")
        assert busy.status_code == 400 and "2 requests" in body_of(busy)["message"]
        taken = await http.post("/generate", json={"text": "a", "rid": "h0"})
        assert taken.status_code == 400 and taken.json()["error"]["code"] == "duplicate_rid"
        assert (await http.post("/abort_request", json={"abort_all": True})).json() == {"num_aborted": 2}
        assert [task.result().status_code for task in hanging if await task] == [200] * 3
        for body in ({}, {"rid": ""}, {"rid": "a", "abort_all": True}, {"abort_all": False}, {"rid": 3}):
            assert (await http.post("/abort_request", json=body)).status_code == 400


async def test_upper_case_methods_only_reach_known_routes(rig_http):
    _, http = rig_http
    response = await http.request("BREW", "/health")
    assert response.status_code == 405 and isinstance(response, httpx.Response)
