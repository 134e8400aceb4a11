"""Requests made up from an OpenAPI document: mostly as it says, now and then with something else in some place."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def bodies(document: Schema, path: str) -> st.SearchStrategy[Any]:
    """Bodies of POST requests to ``path``."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return _Strategies(document, wild=False).values(schema) | _Strategies(document, wild=True).values(schema)


class _Strategies:
    """Values of a document's schemas; ``wild`` ones are, one in a dozen, anything at all, at any depth."""

    def __init__(self, document: Schema, *, wild: bool) -> None:
        self.document, self.wild = document, wild

    def values(self, schema: Schema) -> st.SearchStrategy[Any]:
        if not self.wild:
            return self.proper(schema)
        return st.integers(0, 11).flatmap(lambda die: ANY_JSON if die == 0 else self.proper(schema))

    def proper(self, schema: Schema) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self.proper(self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return st.one_of([self.values(option) for option in schema["anyOf"]])
        if "const" in schema or "enum" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        least = schema.get("minItems", 0)
        kinds = {
            "object": lambda: self.objects(schema),
            "array": lambda: st.lists(
                self.values(schema["items"]),
                min_size=least,
                max_size=min(schema.get("maxItems", 3), least + 3),
            ),
            "string": lambda: st.text(
                st.characters(codec=None), min_size=schema.get("minLength", 0), max_size=20
            ),
            "integer": lambda: (
                st.integers(schema.get("minimum", -9), schema.get("maximum", 99)) | st.integers(0, 3)
            ),
            "number": lambda: st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False),
            "boolean": st.booleans,
            "null": st.none,
        }
        return kinds[schema["type"]]() if "type" in schema else ANY_JSON

    def objects(self, schema: Schema) -> st.SearchStrategy[Any]:
        """All that is required, and a few of the others: with all of them, nearly every request would be refused."""
        properties = {name: self.values(value) for name, value in schema.get("properties", {}).items()}
        required = set(schema.get("required", ()))
        others = sorted(properties.keys() - required)

        def of(chosen: list[str]) -> st.SearchStrategy[dict[str, Any]]:
            return st.fixed_dictionaries({name: properties[name] for name in sorted({*required, *chosen})})

        chosen = st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])
        return chosen.flatmap(of)
