"""The one way from a JSON object to a checked request."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from slipstream.errors import RequestError
from slipstream.server.error_body import from_validation, unknown_field
from slipstream.server.schemas.unsupported import UNSUPPORTED, check_unsupported


class Schema(BaseModel):
    """Base of all schemas: no coercion, no unknown names, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Schema)


def parse(schema: type[S], body: dict[str, Any], path: str = "") -> S:
    """Check `body`, which stands at `path` of the request ("" for all of it).

    null means "as if it were not there". Raises RequestError with the field, its value and its limit.
    """
    fields: dict[str, Any] = {}
    for name, value in body.items():
        where = f"{path}.{name}" if path else name
        if name in schema.model_fields:
            if value is not None:
                fields[name] = value
        elif name in UNSUPPORTED:
            check_unsupported(name, value, where)
        else:
            raise RequestError(
                unknown_field(where, name, schema.model_fields.keys() | UNSUPPORTED.keys()),
                param=where[:200],
                code="unknown_field",
            )
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _moved(from_validation(error, schema.model_fields), path) from None


def _moved(error: RequestError, path: str) -> RequestError:
    if not path:
        return error
    param = f"{path}.{error.param}" if error.param else path
    return RequestError(f"{path}.{error}" if error.param else f"{path}: {error}", param=param, code=error.code)
