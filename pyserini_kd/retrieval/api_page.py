"""Make a page that describes an HTTP interface, from its OpenAPI schema. The page needs no network and no script."""

from collections.abc import Mapping
from typing import Any

import jinja2

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ info.title }} {{ info.version }}: interface</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
  code, pre { font-family: ui-monospace, monospace } table { border-collapse: collapse } pre { overflow-x: auto }
  td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
</style>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>The same in a form for programs: <a href="openapi.json">openapi.json</a>.</p>
{% for path, method, operation, fields in operations %}
<h2><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ operation.summary }}</p>
{% if fields %}<table>
<tr><th>field<th>type<th>default<th>limits
{% for name, field in fields %}<tr><td><code>{{ name }}</code><td>{{ field.type }}<td>
{{- field.default | tojson if field.default is defined else "" if field.required == false else "required" -}}
<td>{{ field.limits }}
{% endfor %}</table>{% endif %}
{% endfor %}
<h2>Example</h2>
<pre>curl 'http://127.0.0.1:8080/search?query=merge+two+sorted+arrays&amp;hits=5'
{"results": [{"query": "merge two sorted arrays", "hits": [{"rank": 1, "doc_id": "...", "score": 0.71}, ...]}]}</pre>
<p>Errors have a status of 4xx and one line under <code>detail</code>.</p>
</html>
"""
LIMITS = {"minimum": "at least", "maximum": "at most", "minLength": "at least", "maxLength": "at most",
          "minItems": "at least", "maxItems": "at most"}  # fmt: skip


def page(schema: Mapping[str, Any]) -> str:
    """The page in HTML."""
    operations = [
        (path, method, operation, _fields(schema, operation))
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    return template.render(info=schema["info"], operations=operations)


def _fields(schema: Mapping[str, Any], operation: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, description) of the query parameters, or of the fields of the JSON body."""
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        model = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        return [(name, _described(field)) for name, field in model["properties"].items()]
    fields = operation.get("parameters", [])
    return [(field["name"], _described(field["schema"] | {"required": field["required"]})) for field in fields]


def _described(field: Mapping[str, Any]) -> dict[str, Any]:
    field = {**field, **field.get("anyOf", [{}])[0]}  # the type of an optional field
    kind = f"list of {field['items']['type']}" if field.get("type") == "array" else field.get("type", "")
    units = {"Length": " characters", "Items": " items"}
    limits = [
        f"{words} {field[name]}{next((unit for end, unit in units.items() if name.endswith(end)), '')}"
        for name, words in LIMITS.items()
        if name in field
    ]
    return {**field, "type": kind, "limits": ", ".join(limits)}
