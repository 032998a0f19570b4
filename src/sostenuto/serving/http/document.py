"""The OpenAPI 3.1 document, made from the table of operations: what is described is what is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sostenuto.schema.events import MOST_ID_BYTES
from sostenuto.serving.http import wire
from sostenuto.serving.http.edge import JSON, MSGPACK
from sostenuto.serving.http.operations import Operation
from sostenuto.serving.http.problems import MEDIA_TYPE, TITLES
from sostenuto.serving.http.settings import ServerSettings

_TEMPLATE = "#/components/schemas/{name}"
ABOUT = """Ranks from a user's whole history. Ids are strings, times are epoch milliseconds, scores are logits.

Bodies are JSON or msgpack, as Content-Type says; answers are what Accept asks for, else as the body was.
What goes wrong is answered with a problem document (RFC 9457), also where the request came in msgpack."""


def describe(operations: Iterable[Operation], settings: ServerSettings, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of the table, put together with one of other routes."""
    table = list(operations)
    structs: list[Any] = [wire.ProblemDocument]
    for operation in table:
        structs += [kind for kind in (operation.body, operation.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(structs, ref_template=_TEMPLATE)
    of_type = {str(kind): schema for kind, schema in zip(structs, schemas, strict=True)}
    paths: dict[str, Any] = {path: dict(found) for path, found in others.get("paths", {}).items()}
    for operation in table:
        described = _operation(operation, settings, of_type, components)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    _set_limits(table, settings, components)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {**others["info"], "description": ABOUT},
        "paths": paths,
        "components": {
            **others.get("components", {}),
            "schemas": {**others.get("components", {}).get("schemas", {}), **components},
        },
    }
    if not settings.is_open:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `sostenuto serve keys add`"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return document


def _operation(
    operation: Operation, settings: ServerSettings, of_type: Mapping[str, Any], components: Mapping[str, Any]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.path.split("/")[2] if operation.path.startswith("/v1/") else "server"],
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": MOST_ID_BYTES},
        }
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for one in operation.query:
        high = min(one.high, getattr(settings.limits, one.high_limit)) if one.high_limit else one.high
        schema: dict[str, Any] = {"type": "integer", "minimum": one.low, "maximum": high}
        if one.default is not None:
            schema["default"] = one.default
        parameters.append({"name": one.name, "in": "query", "description": one.description, "schema": schema})
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = _schema(operation.body, of_type)
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schema}, MSGPACK: {"schema": schema}},
        }
    described["responses"] = _responses(operation, settings, of_type)
    if not settings.is_open:
        # scopes of keys are not those of OAuth, so they are named in words
        described["security"] = [{"bearer": []}, {"header": []}] if operation.scope else []
        if operation.scope:
            described["description"] = f"Needs a key with the scope `{operation.scope}`."
    return described


def _responses(operation: Operation, settings: ServerSettings, of_type: Mapping[str, Any]) -> dict[str, Any]:
    if operation.answer is None:
        content: dict[str, Any] = {operation.media_type.split(";")[0]: {"schema": {"type": "string"}}}
    else:
        schema = _schema(operation.answer, of_type)
        forms = [operation.media_type] if operation.media_type else [JSON, MSGPACK]
        content = {form: {"schema": schema} for form in forms}
    identifier = {"X-Request-ID": {"schema": {"type": "string"}, "description": "As sent, or a new one"}}
    answers: dict[str, Any] = {"200": {"description": "Done", "headers": identifier, "content": content}}
    problem = {MEDIA_TYPE: {"schema": {"$ref": _TEMPLATE.format(name="ProblemDocument")}}}
    statuses = {400, 406, 422, 500, *operation.statuses}
    statuses |= {408, 413, 415} if operation.body is not None else set()
    statuses |= {503} if operation.lane is not None else set()
    statuses |= {421} if settings.is_open else {401, 403} if operation.scope else set()
    statuses |= {429} if operation.scope or settings.is_open else set()
    for status in sorted(statuses):
        headers = dict(identifier)
        if status in {429, 503}:
            headers["Retry-After"] = {"schema": {"type": "string"}, "description": "Seconds to wait"}
        if status == 401:
            headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
        answers[str(status)] = {"description": TITLES[status], "headers": headers, "content": problem}
    return answers


def _schema(kind: Any, of_type: Mapping[str, Any]) -> Any:
    return of_type[str(kind)]


def _set_limits(operations: Iterable[Operation], settings: ServerSettings, components: dict[str, Any]) -> None:
    """Write the limits of this server into the schemas of bodies."""
    for operation in operations:
        for name, limit in operation.limited:
            if name:
                schema = components[operation.body.__name__]["properties"][name]
                schema["maxItems"] = getattr(settings.limits, limit)
    properties = components["Recommend"]["properties"]
    properties["k"]["maximum"] = settings.limits.recommended


__all__ = ["describe"]
