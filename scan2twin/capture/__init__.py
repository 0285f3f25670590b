"""The capture bundle: models, reader, writer, JSON Schema."""
