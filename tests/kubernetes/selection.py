"""What of a list a client of the Kubernetes API asks for, and how it changes an object."""

import re

from pod_processes import Json


def selects(selector: str, labels: Json) -> bool:
    """Tell whether a label selector with `=`, `!=`, `key` and `!key` selects these labels."""
    for term in filter(None, (part.strip() for part in selector.split(","))):
        name, operator, value = re.fullmatch(r"(!?[^!=]+?)(?:(==|=|!=)(.*))?", term).groups()  # type: ignore[union-attr]
        if operator == "!=":
            fits = labels.get(name) != value
        elif operator:
            fits = labels.get(name) == value
        else:
            fits = name.removeprefix("!") in labels if not name.startswith("!") else name[1:] not in labels
        if not fits:
            return False
    return True


def field_selects(selector: str, document: Json) -> bool:
    """Tell whether a field selector of `path=value` terms selects a document."""
    for term in filter(None, selector.split(",")):
        path, _, wanted = term.partition("=")
        found: Json | str | None = document
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != wanted:
            return False
    return True


def merge(document: Json, patch: Json) -> None:
    """Apply a JSON merge patch (RFC 7396)."""
    for name, value in patch.items():
        if value is None:
            document.pop(name, None)
        elif isinstance(value, dict) and isinstance(document.get(name), dict):
            merge(document[name], value)
        else:
            document[name] = value
