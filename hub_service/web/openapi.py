"""The OpenAPI document, made from the operations and the contract's dataclasses."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from federator.contract import API_VERSION, SERVICE_PREFIX, Problem
from pydantic import TypeAdapter

from hub_service.web.schema import OPERATIONS, Operation, adapter

_REFERENCE = "#/components/schemas/{model}"


@cache
def document(prefix: str = SERVICE_PREFIX) -> dict[str, Any]:
    """The description of the API served below `prefix`."""
    schemas, definitions = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = paths.setdefault(f"/{operation.route.value}", {})
        path[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Notebook Federator",
            "version": str(API_VERSION),
            "description": "Federated projects of a JupyterHub's researchers. Send a Hub token with scope"
            " custom:federation:use in the Authorization header.",
        },
        "servers": [{"url": prefix.rstrip("/")}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": '"token " followed by a token of this Hub',
                }
            },
        },
    }


def _schemas() -> tuple[dict[tuple[Any, Any], Any], dict[str, Any]]:
    """JSON schemas by (type, mode), and the definitions that they refer to."""
    inputs: list[tuple[Any, Any, TypeAdapter[Any]]] = [(Problem, "serialization", adapter(Problem))]
    for operation in OPERATIONS:
        if isinstance(operation.body, type):
            inputs.append((operation.body, "validation", adapter(operation.body)))
        if operation.answer is not None and not isinstance(operation.answer, str):
            inputs.append((operation.answer, "serialization", adapter(operation.answer)))
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)
    return dict(schemas), shared["$defs"]


def _operation(operation: Operation, schemas: dict[tuple[Any, Any], Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{operation.route.name.lower()}",
        "summary": operation.summary,
        "responses": {
            str(operation.status.value): _answer(operation, schemas),
            "default": {
                "description": "What went wrong and what to do next",
                "content": {"application/json": {"schema": schemas[(Problem, "serialization")]}},
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.route)
    ] + [
        {
            "name": query.name,
            "in": "query",
            "required": query.required,
            "schema": query.schema,
            "description": query.description,
        }
        for query in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _body(operation, schemas)}
    return described


def _body(operation: Operation, schemas: dict[tuple[Any, Any], Any]) -> dict[str, Any]:
    if isinstance(operation.body, str):
        return {operation.body: {"schema": _file(operation.body)}}
    return {"application/json": {"schema": schemas[(operation.body, "validation")]}}


def _file(content_type: str) -> dict[str, Any]:
    """A file of this type; a notebook is JSON, which readers of the document parse."""
    return {"type": "object"} if content_type.endswith("+json") else {"type": "string", "format": "binary"}


def _answer(operation: Operation, schemas: dict[tuple[Any, Any], Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.summary}
    if isinstance(operation.answer, str):
        answer["content"] = {operation.answer: {"schema": _file(operation.answer)}}
    elif operation.answer is not None:
        answer["content"] = {"application/json": {"schema": schemas[(operation.answer, "serialization")]}}
    return answer
