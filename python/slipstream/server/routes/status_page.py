"""GET /: a page for people. Plain HTML that reloads itself; no scripts."""

import html
import time

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from slipstream.messages.to_tokenizer import SchedulerStatus
from slipstream.server.context import Context
from slipstream.server.state import health

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>Slipstream</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}}
td{{padding:.1rem 1.5rem .1rem 0}}pre{{background:#8882;padding:1rem;overflow-x:auto}}</style></head>
<body><h1>Slipstream</h1><table>{rows}</table><p>Try it:</p><pre>{curl}</pre></body></html>
"""


async def status_page(request: Request, context: Context) -> Response:
    """State, model, load, and a request to copy."""
    state, status = context.state, context.state.status
    healthy, reason = health(state, time.monotonic(), context.config.watchdog_timeout_s)
    rows = [
        ("state", reason if not healthy else state.stage),
        ("model", context.config.served_model_name),
        ("in flight", f"{context.client.num_choices} answers"),
    ]
    if status is not None:
        rows += [
            ("running", str(status.num_running)),
            ("queued", str(status.num_waiting)),
            ("tokens generated", f"{status.counters.num_generated_tokens:,}"),
        ]
        if context.config.speculative_algorithm is not None:
            rows.append(("speculation", _speculation(context.config.speculative_algorithm, status)))
    return HTMLResponse(
        PAGE.format(
            rows="".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in rows),
            curl=html.escape(_curl(str(request.base_url), with_key=context.config.api_key is not None)),
        )
    )


def _speculation(algorithm: str, status: SchedulerStatus) -> str:
    length = status.counters.acceptance_length
    said = "nothing drafted yet" if length is None else f"acceptance length {length:.2f} so far"
    return f"{algorithm}, K = {status.draft_depth or 0} now, {said}"


def _curl(base_url: str, *, with_key: bool) -> str:
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    return (
        f"curl {base_url}v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        """  -d '{"messages": [{"role": "user", "content": "What does textwrap.dedent do?"}]}'"""
    )
