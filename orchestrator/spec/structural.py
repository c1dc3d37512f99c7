"""JSON Schema as pydantic writes it -> a structural schema, which is the part of it that CustomResourceDefinitions may use.

References are written out, bounds take the older form, unions lose their type or take their long form, and what the API server
itself does otherwise (it prunes unknown keys) is left away. A construct without a counterpart stops the generator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

_ANYTHING = "x-kubernetes-preserve-unknown-fields"
_KEPT = (
    *(_ANYTHING, "type", "description", "default", "pattern", "enum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"),
)
_HANDLED = {"anyOf", "items", "prefixItems", "properties", "required", "exclusiveMinimum", "exclusiveMaximum"}
_DROPPED = {"$defs", "additionalProperties", "examples"}


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """One node and everything below it."""
    node = _resolved(node, definitions)
    assert not (unknown := node.keys() - set(_KEPT) - _HANDLED - _DROPPED), f"no counterpart for {unknown}"
    if "anyOf" in node:
        node = _union(node, [_resolved(option, definitions) for option in node["anyOf"]])
    made: Schema = {key: _plain_number(node[key]) for key in _KEPT if key in node}
    if made.get("default") == []:  # as good as absent
        del made["default"]
    if made.get("type") == "integer" and made.get("maximum", 0) >= 2**31:
        made["format"] = "int64"
        if made["maximum"] > 2**53:  # the API server holds bounds as floats, and this one comes back as a negative number
            del made["maximum"]
    if made.get("type") == "string" and "enum" not in made and re.fullmatch(made.get("pattern", ""), ""):
        made["nullable"] = True  # Kubernetes 1.20 takes an empty text for null; the models still refuse null
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive in node:
            made |= {bound: _plain_number(node[exclusive]), exclusive: True}
    if "prefixItems" in node or "items" in node:
        made["items"] = structural(_item(node), definitions)
    if "properties" in node:
        made["properties"] = {key: structural(value, definitions) for key, value in node["properties"].items()}
        if node.get("required"):
            made["required"] = list(node["required"])
    elif made.get("type") == "object":
        made |= _values(_resolved(node.get("additionalProperties", {}), definitions), definitions)
    return made


def without_defaults(node: Schema) -> Schema:
    """The same schema, for a section in which an absent key does not mean its default."""
    made = {key: value for key, value in node.items() if key != "default"}
    if "properties" in made:
        made["properties"] = {key: without_defaults(value) for key, value in made["properties"].items()}
    return made


def with_empty_sections(node: Schema) -> Schema:
    """The same schema in which an absent section gets the defaults of what is in it, as an empty one does."""
    if "properties" not in node:
        return node
    properties = {key: with_empty_sections(value) for key, value in node["properties"].items()}
    for key, value in properties.items():
        if "required" not in value and any("default" in one for one in value.get("properties", {}).values()):
            properties[key] = {**value, "default": {}}
    return {**node, "properties": properties}


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in node:
        return node
    return {**definitions[node["$ref"].rpartition("/")[2]], **{key: value for key, value in node.items() if key != "$ref"}}


def _union(node: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A number or a text; or, of a value and a list of such values, the list.

    Not x-kubernetes-int-or-string: with one of these Kubernetes 1.20 gives up typed server-side apply for the whole kind, and
    two managers can no longer share the conditions. Without a type the bounds hold for numbers and the pattern for texts.
    """
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    by_type = {option.get("type", "string"): option for option in options}
    if by_type.keys() == {"integer", "string"}:
        text = by_type["string"]
        pattern = text.get("pattern") or f"^{text['const']}$"
        bounds = {key: by_type["integer"][key] for key in ("minimum", "maximum") if key in by_type["integer"]}
        return {_ANYTHING: True, "pattern": pattern, **bounds, **rest}
    assert by_type.keys() == {"boolean", "array"}, f"no counterpart for a union of {sorted(by_type)}"
    return {**by_type["array"], **rest}


def _item(node: Mapping[str, Any]) -> Mapping[str, Any]:
    items = node.get("prefixItems") or [node["items"]]
    assert all(item == items[0] for item in items), "no counterpart for a list of unlike items"
    first: Mapping[str, Any] = items[0]
    return first


def _values(value: Any, definitions: Mapping[str, Any]) -> Schema:
    """What a mapping with free keys holds: values of a kind, or anything."""
    if not value or value is True:
        return {_ANYTHING: True}
    return {"additionalProperties": structural(value, definitions)}


def _plain_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == int(value) else value
