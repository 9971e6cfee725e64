"""Whatever a client sends, the answer is 200 or names the client's mistake: never a 500, never a hang."""

from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.server.schemas.chat import ChatRequest
from slipstream.server.schemas.completions import CompletionRequest
from slipstream.server.schemas.generate import GenerateRequest, NativeSampling
from slipstream.server.schemas.unsupported import UNSUPPORTED

ROUTES = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "hi"}),
    "/generate": (GenerateRequest, {"text": "hi"}),
    "/tokenize": (None, {"prompt": "hi"}),
    "/detokenize": (None, {"tokens": [1]}),
    "/abort_request": (None, {"rid": "x"}),
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["type", "text", "role", "content", "include_usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = sorted(
    {
        *ChatRequest.model_fields,
        *CompletionRequest.model_fields,
        *GenerateRequest.model_fields,
        *UNSUPPORTED,
        "tokens",
        "abort_all",
    }
)
SAMPLING = st.dictionaries(st.sampled_from(sorted(NativeSampling.model_fields)), VALUES, max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "x"])}, optional={"content": VALUES, "name": VALUES}
    ),
    max_size=3,
)
FIELDS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=4)


def check(live, response):
    """An error names itself, and nothing is left behind."""
    if response.status_code not in (200, 204):
        error = response.json()["error"]
        assert isinstance(error["message"], str) and 0 < len(error["message"]) < 3000
    assert live.until(lambda: live.rig.client.num_requests == live.rig.client.num_choices == 0)
    return response.status_code


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url, timeout=5) as client:
        yield client


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_objects(live, http, data):
    path = data.draw(st.sampled_from(sorted(ROUTES)))
    body = {**ROUTES[path][1], **data.draw(FIELDS)}
    if data.draw(st.booleans()):
        body["messages" if "chat" in path else "sampling_params"] = data.draw(MESSAGES if "chat" in path else SAMPLING)
    assert check(live, http.post(path, json=body)) in (200, 400, 404)


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    path=st.sampled_from(sorted(ROUTES)),
)
def test_bytes(live, http, content, path):
    assert check(live, http.post(path, content=content, headers={"content-type": "application/json"})) == 400


@settings(max_examples=100, deadline=None)
@given(path=st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_paths(live, http, path):
    assert check(live, http.get(live.url + "/" + quote(path))) in (200, 404, 405)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.tuples(
            st.sampled_from(["x-request-id", "authorization", "content-type", "accept"]),
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
        ),
        max_size=3,
    )
)
def test_headers(live, http, values):
    request = http.build_request("POST", "/generate", content=b'{"text": "a"}', headers=values)
    response = http.send(request)
    assert response.status_code in (200, 400, 415)
