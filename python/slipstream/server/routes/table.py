"""Every route of the server. What is not here does not exist; what is not OPEN needs the key."""

from slipstream.server.auth import Access
from slipstream.server.routes.chat import chat_completions
from slipstream.server.routes.completions import completions
from slipstream.server.routes.control import abort_request, flush_cache
from slipstream.server.routes.generate import generate
from slipstream.server.routes.info import get_model_info, get_server_info
from slipstream.server.routes.models import get_model, list_models
from slipstream.server.routes.probes import get_health, get_metrics, get_ready, health_generate
from slipstream.server.routes.route import Gate, Route
from slipstream.server.routes.status_page import status_page
from slipstream.server.routes.tokens import detokenize, tokenize
from slipstream.server.schemas.chat import ChatRequest
from slipstream.server.schemas.completions import CompletionRequest
from slipstream.server.schemas.control import AbortBody
from slipstream.server.schemas.generate import GenerateRequest
from slipstream.server.schemas.tokens import DetokenizeRequest, TokenizeRequest

ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions, Access.KEY, Gate.ACCEPTING, ChatRequest),
    Route("POST", "/v1/completions", completions, Access.KEY, Gate.ACCEPTING, CompletionRequest),
    Route("GET", "/v1/models", list_models, Access.KEY, Gate.STARTED),
    Route("GET", "/v1/models/{model:path}", get_model, Access.KEY, Gate.STARTED),
    Route("POST", "/generate", generate, Access.KEY, Gate.ACCEPTING, GenerateRequest),
    Route("POST", "/tokenize", tokenize, Access.KEY, Gate.ACCEPTING, TokenizeRequest),
    Route("POST", "/detokenize", detokenize, Access.KEY, Gate.ACCEPTING, DetokenizeRequest),
    Route("POST", "/abort_request", abort_request, Access.KEY, Gate.STARTED, AbortBody),
    Route("POST", "/flush_cache", flush_cache, Access.KEY, Gate.ACCEPTING),
    Route("GET", "/get_model_info", get_model_info, Access.KEY, Gate.STARTED),
    Route("GET", "/model_info", get_model_info, Access.KEY, Gate.STARTED),
    Route("GET", "/get_server_info", get_server_info, Access.KEY, Gate.STARTED),
    Route("GET", "/server_info", get_server_info, Access.KEY, Gate.STARTED),
    Route("GET", "/health", get_health, Access.OPEN, Gate.ALWAYS),
    Route("GET", "/ready", get_ready, Access.OPEN, Gate.ALWAYS),
    Route("GET", "/metrics", get_metrics, Access.OPEN, Gate.ALWAYS),
    Route("GET", "/health_generate", health_generate, Access.KEY, Gate.ACCEPTING),
    Route("GET", "/", status_page, Access.KEY, Gate.ALWAYS),
)
