"""POST /abort_request."""

from slipstream.errors import RequestError
from slipstream.server.limits import MAX_NAME_CHARACTERS
from slipstream.server.schemas.base import Schema


class AbortBody(Schema):
    """One request by its exact id, or all of them."""

    rid: str | None = None
    abort_all: bool = False

    def check(self) -> None:
        """Raises RequestError unless exactly one of the two is asked for."""
        if self.abort_all == bool(self.rid):
            raise RequestError('send either {"rid": "<id>"} or {"abort_all": true}', param="rid")
        if self.rid is not None and len(self.rid) > MAX_NAME_CHARACTERS:
            raise RequestError(f"rid has {len(self.rid)} characters; at most {MAX_NAME_CHARACTERS}", param="rid")
